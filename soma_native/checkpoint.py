"""Trained models as Hugging Face folders: `config.json`, `model.safetensors`, `tokenizer.json`, `generation_config.json`.

A `gpt2` folder is what `transformers` itself writes and reads; a `soma` folder has our own names. All files of one save
come into force together (`atomic_folder`), and the weights carry checksums of every tensor and file, so that damage is
found on loading instead of being generated from. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .atomic_folder import FolderView, replace_files
from .checkpoint_config import config_to_json, generation_config, json_to_config
from .config import ModelConfig
from .errors import CheckpointError
from .model import Model
from .safetensors_io import TensorFile, crc32_of_array, open_regular, parse_json, write_tensors
from .tokenizer import Tokenizer

__all__ = ["extra_file", "load", "load_config", "load_model", "save"]

_log = logging.getLogger("soma_native")
_Loaded = TypeVar("_Loaded")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
GENERATION = "generation_config.json"
_CHECKSUMS = "soma_checksums"  # key in the weights' metadata: {"tensors": {name: crc}, "files": {name: [size, crc]}}
_MAX_JSON_BYTES = 1 << 20
_READ_ATTEMPTS = 5


def save(
    folder: str | os.PathLike[str],
    model: Model,
    tok: Tokenizer | None,
    *,
    extra_files: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Save a model and its tokenizer as a Hugging Face folder, all files at once or none.

    A process killed or a machine stopped at any moment leaves a folder that `load` reads as the complete old or the
    complete new state. Other files in the folder stay as they are.

    Args:
        folder: made if need be, with its parents.
        model: its float32 weights are written.
        tok: its tokenizer; None for weights alone, which only `load_model` reads.
        extra_files: more files of the same save, such as a training state: a function per plain file name, called with
            the path to write. Read them back with `extra_file`. Those of an earlier save that are not named again are
            deleted, because they do not belong to these weights.

    Raises:
        CheckpointError: a weight is NaN or infinite, the tokenizer has more tokens than the model, or the folder cannot be
            written (disk full, read-only, a file in its place); what was there before is then unchanged.
    """
    folder = Path(folder)
    parameters = model.parameters()
    for name, array in parameters.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                "holds NaN or infinity, so the model is not saved", path=folder / WEIGHTS, tensor=name
            )
    if tok is not None and tok.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"cannot save: the tokenizer has {tok.vocab_size} tokens, the model only {model.config.vocab_size}",
            path=folder,
        )
    extra_files = dict(extra_files or {})
    for name in extra_files:
        if (
            name in {CONFIG, WEIGHTS, WEIGHTS_INDEX, TOKENIZER, GENERATION}
            or name != os.path.basename(name)
            or not name
        ):
            raise ValueError(f"extra_files: {name!r} must be a plain file name other than those of the model itself")

    with replace_files(folder) as staging:
        for old in _files_of_last_save(folder):
            staging.remove(old)
        _write_json(staging.path / CONFIG, config_to_json(model.config, tok))
        _write_json(staging.path / GENERATION, generation_config(tok))
        if tok is not None:
            tok.save(staging.path / TOKENIZER)
        for name, write in extra_files.items():
            write(staging.path / name)
        checksums = {
            "tensors": {name: crc32_of_array(array) for name, array in parameters.items()},
            "files": {name: _size_and_crc32(staging.path / name) for name in sorted(os.listdir(staging.path))},
        }
        metadata = {"format": "pt", _CHECKSUMS: json.dumps(checksums, separators=(",", ":"))}
        write_tensors(staging.path / WEIGHTS, parameters, metadata)
    _log.info("saved %d parameters to %s", model.num_parameters, folder)


def load(folder: str | os.PathLike[str], precision: str = "auto", *, verify: bool = True) -> tuple[Model, Tokenizer]:
    """Load what `save` wrote, or a GPT-2 folder that `transformers` wrote together with one of our tokenizers.

    Args:
        folder: the folder.
        precision: as for `Model`.
        verify: compare the files with the checksums of the save. Switch it off to load a folder in which you changed
            `config.json` or `tokenizer.json` on purpose; sizes, shapes, types and NaN are always checked.

    Returns:
        the model and its tokenizer.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: a file is missing, damaged or of a kind we cannot read; the message names file and tensor.
    """

    def read(view: FolderView) -> tuple[Model, Tokenizer]:
        checksums = _file_checksums(view) if verify else {}
        config = _read_config(view, checksums)
        tok = _read_tokenizer(view, config, checksums)
        return _read_model(view, config, precision, verify), tok

    return _consistently(folder, read)


def load_model(folder: str | os.PathLike[str], precision: str = "auto", *, verify: bool = True) -> Model:
    """Load the model alone, from a folder with or without a `tokenizer.json`; otherwise as `load`."""

    def read(view: FolderView) -> Model:
        checksums = _file_checksums(view) if verify else {}
        return _read_model(view, _read_config(view, checksums), precision, verify)

    return _consistently(folder, read)


def load_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Read only the model's shape, without its weights; errors as `load`."""
    return _consistently(folder, lambda view: _read_config(view, _file_checksums(view)))


def extra_file(folder: str | os.PathLike[str], name: str) -> Path:
    """Where the extra file `name` of the last complete save lies, after comparing it with its checksum.

    Args:
        folder: the saved folder.
        name: a name that was given to `save` in `extra_files`.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: the last save wrote no such file, or it was damaged or exchanged since.
    """

    def find(view: FolderView) -> Path:
        checksums = _file_checksums(view)
        if name not in checksums:
            raise CheckpointError("does not belong to the last save of this folder", path=view.folder / name)
        _read_checked(view, name, checksums, keep=False)
        return view.path(name)

    return _consistently(folder, find)


def _consistently(folder: str | os.PathLike[str], read: Callable[[FolderView], _Loaded]) -> _Loaded:
    """Call `read` until no other process has completed a save in between."""
    folder = Path(folder)
    if not os.path.lexists(folder):
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise CheckpointError("is not the folder of a saved model", path=folder)
    for _ in range(_READ_ATTEMPTS):
        view = FolderView(folder)
        before = view.stamp()
        try:
            return read(view)
        except CheckpointError:
            if view.stamp() == before:
                raise
    return read(FolderView(folder))


class _Source(NamedTuple):
    """One tensor of the folder: the open file it stands in, and the name it has there."""

    file: TensorFile
    name: str


def _read_model(view: FolderView, config: ModelConfig, precision: str, verify: bool) -> Model:
    """Check every tensor's place and shape against `config` before anything of their size is allocated, then read."""
    files = _open_weights(view)
    try:
        sources = {}
        for file in files:
            for name in file.entries:
                own = _own_name(config, name)
                if own is None:
                    continue
                if own in sources:
                    raise CheckpointError(f"stands for {own!r}, which is there already", path=file.path, tensor=name)
                sources[own] = _Source(file, name)
        expected = _expected_shapes(config, len(sources), files[0].path)
        for own, shape in expected.items():
            if own not in sources:
                raise CheckpointError("is missing", path=files[0].path, tensor=own)
            file, name = sources[own]
            entry = file.entries[name]
            if entry.shape != shape:
                raise CheckpointError(
                    f"has the shape {list(entry.shape)}, {CONFIG} asks for {list(shape)}", path=file.path, tensor=name
                )
            if entry.dtype not in {"F32", "F16", "BF16"}:
                raise CheckpointError(
                    f"has the type {entry.dtype}; F32, F16 and BF16 can be loaded", path=file.path, tensor=name
                )
        for own, (file, name) in sources.items():
            if own not in expected and not (own == "lm_head.weight" and config.block == "gpt2"):
                raise CheckpointError(f"is not one of a {config.block!r} model's", path=file.path, tensor=name)
        model = Model(config, seed=0, precision=precision)
        tensor_checksums = _tensor_checksums(files) if verify else {}
        for own, array in model.parameters().items():
            _fill(array, sources[own], tensor_checksums)
        if "lm_head.weight" in sources and "lm_head.weight" not in expected:
            _check_tied(model, sources["lm_head.weight"])
        return model
    finally:
        for file in files:
            file.close()


def _fill(array: NDArray[np.float32], source: _Source, checksums: Mapping[str, object]) -> None:
    file, name = source
    dtype = file.entries[name].dtype
    if dtype == "F32" and array.flags.c_contiguous:
        found = file.read_into(name, array)
    else:
        stored = file.read(name)
        found = crc32_of_array(stored)
        array[...] = _to_float32(stored, dtype)
    if name in checksums and checksums[name] != found:
        raise CheckpointError("is damaged: its checksum does not match", path=file.path, tensor=name)
    if not np.isfinite(array).all():
        raise CheckpointError("holds NaN or infinity", path=file.path, tensor=name)


def _to_float32(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """float16 and float32 by NumPy; bfloat16, which came as uint16, is the upper half of a float32."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def _check_tied(model: Model, source: _Source) -> None:
    """A tied model's file may repeat the embedding as `lm_head.weight`; it must then be the same."""
    stored = source.file.read(source.name)
    embedding = model.parameters()["transformer.wte.weight"]
    if stored.shape != embedding.shape or not np.array_equal(
        _to_float32(stored, source.file.entries[source.name].dtype), embedding
    ):
        raise CheckpointError(
            f"differs from the embedding, although {CONFIG} ties them (tie_word_embeddings)",
            path=source.file.path,
            tensor=source.name,
        )


def _own_name(config: ModelConfig, name: str) -> str | None:
    """Our name of a file's tensor; None for the constant masks that old GPT-2 files carry."""
    if config.block != "gpt2":
        return name
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    if name != "lm_head.weight" and not name.startswith("transformer."):
        return f"transformer.{name}"
    return name


def _expected_shapes(config: ModelConfig, tensors: int, path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, from its configuration alone."""
    if config.n_layers > tensors:
        raise CheckpointError(
            f"holds only {tensors} tensors, too few for the {config.n_layers} layers {CONFIG} names", path=path
        )
    vocab, width, hidden, context = config.vocab_size, config.d_model, config.d_ff, config.max_seq_len
    shapes: dict[str, tuple[int, ...]] = {}
    if config.block == "soma":
        shapes |= {"wte": (vocab, width), "wpe": (context, width)}
        for layer in range(config.n_layers):
            shapes |= {
                f"h.{layer}.attn.w_qkv": (width, 3 * width),
                f"h.{layer}.attn.w_proj": (width, width),
                f"h.{layer}.mlp.w_fc": (width, hidden),
                f"h.{layer}.mlp.b_fc": (hidden,),
                f"h.{layer}.mlp.w_proj": (hidden, width),
                f"h.{layer}.mlp.b_proj": (width,),
            }
        return shapes if config.tied_head else shapes | {"lm_head": (vocab, width)}
    shapes |= {"transformer.wte.weight": (vocab, width), "transformer.wpe.weight": (context, width)}
    for layer in range(config.n_layers):
        for part, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, hidden),
            ("mlp.c_proj", hidden, width),
        ):
            shapes[f"transformer.h.{layer}.{part}.weight"] = (rows, columns)
            shapes[f"transformer.h.{layer}.{part}.bias"] = (columns,)
        for part in ("ln_1", "ln_2"):
            shapes |= {f"transformer.h.{layer}.{part}.{kind}": (width,) for kind in ("weight", "bias")}
    shapes |= {f"transformer.ln_f.{kind}": (width,) for kind in ("weight", "bias")}
    return shapes if config.tied_head else shapes | {"lm_head.weight": (vocab, width)}


def _open_weights(view: FolderView) -> list[TensorFile]:
    """The folder's weight file, or the files its index lists."""
    if os.path.lexists(view.path(WEIGHTS)):
        return [TensorFile(view.path(WEIGHTS))]
    index_path = view.path(WEIGHTS_INDEX)
    if not os.path.lexists(index_path):
        for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
            if os.path.lexists(view.folder / name):
                raise CheckpointError(
                    "is a pickle, which can run any code when it is opened, so it is never read. Where you trust it, "
                    "convert it with transformers: AutoModelForCausalLM.from_pretrained(folder)"
                    ".save_pretrained(folder, safe_serialization=True)",
                    path=view.folder / name,
                )
        raise CheckpointError(f"holds no saved model: {WEIGHTS} is missing", path=view.folder)
    with open_regular(index_path) as file:
        index = parse_json(file.read(16 * _MAX_JSON_BYTES), index_path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map", path=index_path)
    names = sorted({str(name) for name in weight_map.values()})
    if any(name != os.path.basename(name) or not name.endswith(".safetensors") for name in names):
        raise CheckpointError("names a file that is not a safetensors file of this folder", path=index_path)
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
    return {name: value for file in files for name, value in _checksums_in(file)[0].items()}


def _file_checksums(view: FolderView) -> dict[str, object]:
    """Size and CRC-32 of the other files of the save the weights belong to; {} for weights that others wrote."""
    path = view.path(WEIGHTS)
    if not os.path.lexists(path):
        return {}
    with TensorFile(path) as file:
        return _checksums_in(file)[1]


def _checksums_in(file: TensorFile) -> tuple[dict[str, object], dict[str, object]]:
    text = file.metadata.get(_CHECKSUMS)
    if text is None:
        return {}, {}
    try:
        document = json.loads(text)
        tensors, files = document["tensors"], document["files"]
        if isinstance(tensors, dict) and isinstance(files, dict) and set(tensors) == set(file.entries):
            return tensors, files
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CheckpointError(f"is damaged: its metadata entry {_CHECKSUMS} does not fit its tensors", path=file.path)


def _files_of_last_save(folder: Path) -> list[str]:
    """Names of the files that the folder's weights name as belonging to them; damage there counts as none."""
    try:
        return [name for name in _file_checksums(FolderView(folder)) if name == os.path.basename(name)]
    except CheckpointError:
        return []


def _size_and_crc32(path: Path) -> list[int]:
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _read_checked(view: FolderView, name: str, checksums: Mapping[str, object], *, keep: bool = True) -> bytes:
    """The bytes of a file (b"" unless `keep`) after comparing them with the save's checksum, where there is one."""
    path = view.path(name)
    size = crc = 0
    chunks = []
    with open_regular(path) as file:
        try:
            while chunk := file.read(1 << 20):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
                if keep:
                    chunks.append(chunk)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", path=path) from error
    if name in checksums and checksums[name] != [size, crc]:
        raise CheckpointError(
            f"is not the file that was saved with {WEIGHTS}: damaged or changed since (where you changed it on purpose, "
            "load with verify=False)",
            path=path,
        )
    return b"".join(chunks)


def _read_config(view: FolderView, checksums: Mapping[str, object]) -> ModelConfig:
    path = view.path(CONFIG)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > _MAX_JSON_BYTES:
        raise CheckpointError(f"is larger than {_MAX_JSON_BYTES} bytes, so it is no model's configuration", path=path)
    return json_to_config(parse_json(_read_checked(view, CONFIG, checksums), path), path)


def _read_tokenizer(view: FolderView, config: ModelConfig, checksums: Mapping[str, object]) -> Tokenizer:
    path = view.path(TOKENIZER)
    if not os.path.lexists(path):
        raise CheckpointError(
            "is missing; soma_native.checkpoint.load_model(folder) loads the model without a tokenizer", path=path
        )
    _read_checked(view, TOKENIZER, checksums, keep=False)
    try:
        tok = Tokenizer.load(path)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"cannot be loaded: {error}", path=path) from error
    if tok.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"has {tok.vocab_size} tokens, more than the {config.vocab_size} of the model in {CONFIG}", path=path
        )
    return tok


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
