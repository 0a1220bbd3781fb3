"""Reads the weights of a saved model from files that may be damaged. It checks places, types and shapes of all tensors
before it allocates memory for them, and checksums and values as it reads each tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soma_native.checkpoint.architectures import Architecture, of_config
from soma_native.core import _core
from soma_native.errors import CheckpointError
from soma_native.files.atomic_folder import FolderView
from soma_native.files.safetensors_io import TensorFile, crc32_of_array
from soma_native.files.untrusted import PICKLE, open_regular, parse_json, short
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CHECKSUMS = "soma_checksums"  # key in the weights' metadata: {"tensors": {name: crc}, "files": {name: [size, crc]}}
_MAX_INDEX_BYTES = 16 << 20


class _Source(NamedTuple):
    """One tensor of the folder: its open file, and its name in this file."""

    file: TensorFile
    name: str


def read_model(view: FolderView, config: ModelConfig, precision: str, verify: bool, device: str = "cpu") -> Model:
    """The model of `config` on `device` with the weights of the folder.

    Raises:
        CheckpointError: a tensor is missing, unknown, damaged or does not fit `config`.
    """
    _, architecture = of_config(config)
    files = _open_weights(view)
    try:
        sources = {}
        for file in files:
            for name in file.entries:
                own = _own_name(architecture, name)
                if own is None:
                    continue
                if own in sources:
                    raise CheckpointError(f"stands for {own!r}, which is there already", path=file.path, tensor=name)
                sources[own] = _Source(file, name)
        expected = stored_shapes(config, len(sources), files[0].path)
        for own, shape in expected.items():
            if own not in sources:
                raise CheckpointError("is missing", path=files[0].path, tensor=own)
            file, name = sources[own]
            entry = file.entries[name]
            if entry.shape != shape:
                raise CheckpointError(
                    f"has the shape {list(entry.shape)}, config.json asks for {list(shape)}",
                    path=file.path,
                    tensor=name,
                )
            if entry.dtype not in {"F64", "F32", "F16", "BF16"}:
                raise CheckpointError(
                    f"has the type {entry.dtype}; F64, F32, F16 and BF16 can be loaded", path=file.path, tensor=name
                )
        for own, (file, name) in sources.items():
            if own not in expected and own != architecture.head:
                raise CheckpointError(f"is not one of a {config.block!r} model's", path=file.path, tensor=name)
        model = Model._blank(config, precision, device)
        tensor_checksums = _tensor_checksums(files) if verify else {}
        in_place = model.parameters() if model._core.on_host else {}
        for own, whole in _core.parameter_shapes(config.core).items():
            array = in_place[own] if own in in_place else np.empty(whole, np.float32)
            for stored, part in stored_parts(architecture, config, own, array):
                _fill(part, sources[stored], tensor_checksums)
            if own not in in_place:
                model.write(own, array)
        if architecture.head in sources and architecture.head not in expected:
            _check_tied(model.read(architecture.embedding), sources[architecture.head])
        return model
    finally:
        for file in files:
            file.close()


def _fill(array: NDArray[np.float32], source: _Source, checksums: Mapping[str, object]) -> None:
    file, name = source
    dtype = file.entries[name].dtype
    stored = file.read(name)
    array[...] = _to_float32(stored, dtype)
    if name in checksums and checksums[name] != crc32_of_array(stored):
        raise CheckpointError("is damaged: its checksum does not match", path=file.path, tensor=name)
    if not np.isfinite(array).all():
        raise CheckpointError("holds NaN or infinity", path=file.path, tensor=name)


def _to_float32(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The values as float32, numbers that are too large as infinity. BF16 comes as the uint16 of its bits."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        return stored.astype(np.float32, copy=False)


def _check_tied(embedding: NDArray[np.float32], source: _Source) -> None:
    """The file of a model with a tied head may hold the head too. Raise unless it is equal to the embedding."""
    stored = source.file.read(source.name)
    if stored.shape != embedding.shape or not np.array_equal(
        _to_float32(stored, source.file.entries[source.name].dtype), embedding
    ):
        raise CheckpointError(
            "differs from the embedding, although config.json ties them (tie_word_embeddings)",
            path=source.file.path,
            tensor=source.name,
        )


def _own_name(architecture: Architecture, name: str) -> str | None:
    """Our name of a file's tensor; None for a constant, which is no weight."""
    if name.endswith(architecture.no_weights):
        return None
    if name == architecture.head or name.startswith(architecture.prefix):
        return name
    return architecture.prefix + name


def stored_parts(
    architecture: Architecture, config: ModelConfig, own: str, array: NDArray[np.float32]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of a file that make up our tensor `own`, by name: views of `array` with the shapes of the file."""
    parts = architecture.parts_of(own)
    if not parts:
        yield own, array
    column = 0
    for name, width in parts:
        yield name, array[:, column : column + width(config)].T
        column += width(config)


def stored_tensors(
    config: ModelConfig, parameters: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The parameters of a model as a file holds them."""
    _, architecture = of_config(config)
    return {
        name: np.ascontiguousarray(part)
        for own, array in parameters.items()
        for name, part in stored_parts(architecture, config, own, array)
    }


def stored_shapes(config: ModelConfig, tensors: int, path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model's file, from its configuration alone.

    Raises:
        CheckpointError: the file at `path` has fewer than one tensor per layer.
    """
    if config.n_layers > tensors:
        raise CheckpointError(
            f"holds only {tensors} tensors, too few for the {config.n_layers} layers config.json names", path=path
        )
    _, architecture = of_config(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for own, shape in _core.parameter_shapes(config.core).items():
        parts = architecture.parts_of(own)
        shapes.update({name: (width(config), shape[0]) for name, width in parts} if parts else {own: shape})
    return shapes


def _open_weights(view: FolderView) -> list[TensorFile]:
    """The folder's weight file, or the files of its index, opened."""
    if os.path.lexists(view.path(WEIGHTS)):
        return [TensorFile(view.path(WEIGHTS))]
    index_path = view.path(WEIGHTS_INDEX)
    if not os.path.lexists(index_path):
        for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            if os.path.lexists(view.folder / name):
                raise CheckpointError(PICKLE, path=view.folder / name)
        raise CheckpointError(f"holds no saved model: {WEIGHTS} is missing", path=view.folder)
    with open_regular(index_path) as listing:
        index = parse_json(listing.read(_MAX_INDEX_BYTES), index_path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map", path=index_path)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if "\0" in name or len(name) > 255 or name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise CheckpointError(f"names {name!r:.60}, not a safetensors file of this folder", path=index_path)
    files: list[TensorFile] = []
    try:
        for name in names:
            files.append(TensorFile(view.path(name)))
        for tensor, name in weight_map.items():
            if tensor not in files[names.index(name)].entries:
                raise CheckpointError("is missing", path=view.path(name), tensor=tensor)
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


def _tensor_checksums(files: list[TensorFile]) -> dict[str, object]:
    return {name: value for file in files for name, value in saved_checksums(file)[0].items()}


def saved_checksums(file: TensorFile) -> tuple[dict[str, object], dict[str, object]]:
    """The checksums in a weight file's metadata: CRC-32 by tensor, [size, CRC-32] by file; two {} without checksums.

    Raises:
        CheckpointError: the checksums do not fit the tensors, or their key is damaged.
    """
    text = file.metadata.get(CHECKSUMS)
    if text is None:
        for name, other in file.metadata.items():
            if other.startswith('{"tensors":{'):  # a damaged key; the file is not one without checksums
                raise CheckpointError(
                    f"is damaged: its metadata entry {short(name)} should be {CHECKSUMS}", path=file.path
                )
        return {}, {}
    try:
        document = json.loads(text)
        tensors, files = document["tensors"], document["files"]
        if isinstance(tensors, dict) and isinstance(files, dict) and set(tensors) == set(file.entries):
            return tensors, files
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CheckpointError(f"is damaged: its metadata entry {CHECKSUMS} does not fit its tensors", path=file.path)
