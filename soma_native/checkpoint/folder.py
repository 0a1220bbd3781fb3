"""Saves and loads models as Hugging Face folders.

`transformers` reads and writes the same `gpt2` and `llama` folders; a `soma` folder has names of its own. All files of
one save come into force together (`atomic_folder`). The weight file holds checksums of every tensor and file, so that
loading finds damage. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from soma_native import _checks
from soma_native.checkpoint.hf_config import (
    CONFIG,
    GENERATION,
    config_to_json,
    generation_config,
    json_to_config,
    tokenizer_config,
)
from soma_native.checkpoint.weights import (
    CHECKSUMS,
    WEIGHTS,
    WEIGHTS_INDEX,
    read_model,
    saved_checksums,
    stored_tensors,
)
from soma_native.errors import ArgumentError, CheckpointError
from soma_native.files.atomic_folder import FolderView, plain_name, replace_files, stamp
from soma_native.files.safetensors_io import TensorFile, crc32_of_array, write_tensors
from soma_native.files.untrusted import is_shallow, open_regular, parse_json, read_regular
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.formats.gpt2_folder import is_gpt2_folder
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")
_Loaded = TypeVar("_Loaded")

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_BESIDE = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_OWN_FILES = (CONFIG, WEIGHTS, WEIGHTS_INDEX, TOKENIZER, TOKENIZER_CONFIG, GENERATION)
_MAX_JSON_BYTES = 1 << 20
_READ_ATTEMPTS = 25  # enough: next to a process that saves without pause, no read was ever begun four times


def save(
    folder: str | os.PathLike[str],
    model: Model,
    tok: Tokenizer | None,
    *,
    extra_files: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Save a model and its tokenizer as a Hugging Face folder, all files at once or none.

    The files: `config.json`, `model.safetensors`, `tokenizer.json`, `generation_config.json`, `tokenizer_config.json`.

    A model that was loaded keeps the other settings of its folder in these files, and its `special_tokens_map.json`,
    `added_tokens.json` and `chat_template.jinja`. Settings of the old weights, such as type or quantization, are not
    kept.

    If the process or the machine stops at any moment, `load` reads the complete old or the complete new state. Other
    files in the folder stay unchanged.

    Args:
        folder: the folder, created with its parents if missing.
        model: the model; its float32 weights are written.
        tok: its tokenizer. None saves weights alone, which only `load_model` reads.
        extra_files: more files of the same save, such as a training state: a function per plain file name, called with
            the path to write. Read them with `extra_file`. Extra files of an earlier save that are not named again are
            deleted, because they belong to other weights.

    Raises:
        CheckpointError: a weight is NaN or infinite, the tokenizer has more tokens than the model, or the folder cannot
            be written (disk full, read-only, a file in its place). The old files are then unchanged.

    >>> import tempfile
    >>> import soma_native as soma
    >>> tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="word")
    >>> config = soma.ModelConfig(
    ...     vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
    >>> folder = tempfile.mkdtemp()
    >>> soma.save(folder, soma.Model(config, seed=0), tok)
    >>> model, tok = soma.load(folder)
    >>> model.config == config, tok.decode(tok.encode("the mat"))
    (True, 'the mat')
    """
    folder = _checks.path("folder", folder, "folder")
    if not hasattr(model, "parameters"):  # a copy of a model's weights is accepted too
        _checks.instance("model", model, Model)
    if tok is not None:
        _checks.instance("tok", tok, Tokenizer)
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
        if plain_name(name) in _OWN_FILES:
            raise ArgumentError("extra_files", f"must not name the model's own files, got {name!r}")

    with replace_files(folder) as staging:
        for old in _files_of_last_save(folder):
            staging.remove(old)
        kept = getattr(model, "_settings", {})
        config = config_to_json(model.config, tok, kept.get(CONFIG, {}))
        _write_json(staging.path / CONFIG, config)
        _write_json(staging.path / GENERATION, kept.get(GENERATION) or generation_config(tok, config))
        if tok is not None:
            tok.save(staging.path / TOKENIZER)
            ours = tokenizer_config(model.config, tok)
            _write_json(staging.path / TOKENIZER_CONFIG, ours)
            for name, content in tok._beside.items():
                if name == TOKENIZER_CONFIG and GENERATION not in kept:  # the file was written for another model
                    length = {"model_max_length": ours["model_max_length"]}
                    content = json.dumps({**json.loads(content), **length}, indent=2).encode()
                (staging.path / name).write_bytes(content)
        for name, write in extra_files.items():
            write(staging.path / name)
        tensors = stored_tensors(model.config, parameters)
        checksums = {
            "tensors": {name: crc32_of_array(array) for name, array in tensors.items()},
            "files": {name: _size_and_crc32(staging.path / name) for name in sorted(os.listdir(staging.path))},
        }
        metadata = {"format": "pt", CHECKSUMS: json.dumps(checksums, separators=(",", ":"))}
        write_tensors(staging.path / WEIGHTS, tensors, metadata)
    _log.info("saved %d parameters to %s", model.num_parameters, folder)


def load(
    folder: str | os.PathLike[str],
    precision: str = "auto",
    device: str = "cpu",
    *,
    verify: bool = True,
    verify_config: bool = True,
) -> tuple[Model, Tokenizer]:
    """Load what `save` wrote, or a GPT-2, Llama or Qwen3 folder that `transformers` wrote.

    Args:
        folder: the folder.
        precision: as for `Model`.
        device: as for `Model`. A folder has none, so a model may go to another than it was trained on.
        verify: whether to compare the files with the checksums of the save. Set it to False if you changed
            `config.json` or `tokenizer.json` on purpose. Sizes, shapes, types and NaN are always checked.
        verify_config: False takes a changed `config.json`, and still compares all other files.

    Returns:
        the model and its tokenizer.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: a file is missing, damaged or of an unsupported kind. The message names file and tensor. A
            folder without a tokenizer is one of them: `load_model` reads it.
    """

    def read(view: FolderView) -> tuple[Model, Tokenizer]:
        checksums = _file_checksums(view) if verify else {}
        config, document = _read_config(view, checksums if verify_config else {})
        tok = _read_tokenizer(view, config, checksums)
        model = read_model(view, config, precision, verify, device)
        model._settings = _read_settings(view, document)
        if verify and _file_checksums(view) != checksums:
            raise CheckpointError("was saved anew while it was read", path=view.folder)  # _consistently reads it again
        return model, tok

    return _consistently(folder, read)


def load_model(
    folder: str | os.PathLike[str],
    precision: str = "auto",
    device: str = "cpu",
    *,
    verify: bool = True,
    verify_config: bool = True,
) -> Model:
    """Load the model alone, from a folder with or without a `tokenizer.json`. Arguments and errors as `load`."""

    def read(view: FolderView) -> Model:
        config, document = _read_config(view, _file_checksums(view) if verify and verify_config else {})
        model = read_model(view, config, precision, verify, device)
        model._settings = _read_settings(view, document)
        return model

    return _consistently(folder, read)


def has_tokenizer(folder: str | os.PathLike[str]) -> bool:
    """Whether the last `save` into the folder wrote a tokenizer. Raises as `load` does."""
    return _consistently(folder, lambda view: TOKENIZER in _file_checksums(view))


def load_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Read only the model's configuration, without its weights. Raises as `load` does."""
    return _consistently(folder, lambda view: _read_config(view, _file_checksums(view))[0])


def model_files(folder: str | os.PathLike[str]) -> list[str]:
    """The files in the folder that a save would replace, also if another program wrote them."""
    view = FolderView(folder)
    return [name for name in _OWN_FILES if os.path.lexists(view.path(name))]


def foreign_models(folder: str | os.PathLike[str]) -> list[str]:
    """The model files of other programs in the folder, which a save leaves there."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if fnmatch(name.lower(), "*.gguf") or fnmatch(name, "pytorch_model*.bin")]


def extra_file(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of the extra file `name` of the last complete save, after a comparison with its checksum.

    Args:
        folder: the saved folder.
        name: a name that was given to `save` in `extra_files`.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: the last save wrote no such file, or the file was damaged or replaced since.
    """

    def find(view: FolderView) -> Path:
        checksums = _file_checksums(view)
        if name not in checksums:
            raise CheckpointError("does not belong to the last save of this folder", path=view.folder / name)
        _read_checked(view, name, checksums, keep=False)
        return view.path(name)

    return _consistently(folder, find)


def _consistently(folder: str | os.PathLike[str], read: Callable[[FolderView], _Loaded]) -> _Loaded:
    """The result of `read`, which is called again if another process saved meanwhile."""
    folder = _checks.path("folder", folder, "folder")
    if not os.path.lexists(folder):
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise CheckpointError("is not the folder of a saved model", path=folder)
    for _ in range(_READ_ATTEMPTS):
        before = stamp(folder)
        try:
            return read(FolderView(folder))
        except CheckpointError:
            if stamp(folder) == before:
                raise
    return read(FolderView(folder))


def _file_checksums(view: FolderView) -> dict[str, object]:
    """Size and CRC-32 of the other files of the weights' save; {} for weights of other programs."""
    path = view.path(WEIGHTS)
    if not os.path.lexists(path):
        return {}
    with TensorFile(path) as file:
        return saved_checksums(file)[1]


def _files_of_last_save(folder: Path) -> list[str]:
    """Names of the files of the last save, read from its weights; none if the weights are damaged."""
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
    """The bytes of a file (b"" unless `keep`), compared with the save's checksum if there is one."""
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
    # A save lists the configuration, and with a tokenizer both of its files. A missing name is damage.
    expected = {CONFIG: bool(checksums), TOKENIZER: TOKENIZER_CONFIG in checksums}
    unnamed = name not in checksums and expected.get(name, False)
    if unnamed or checksums.get(name, [size, crc]) != [size, crc]:
        raise CheckpointError(
            f"is not the file that was saved with {WEIGHTS}: damaged or changed since",
            path=path,
            in_python=" (if you changed it on purpose, load with verify=False)",
        )
    return b"".join(chunks)


def _read_config(view: FolderView, checksums: Mapping[str, object]) -> tuple[ModelConfig, dict[str, Any]]:
    path = view.path(CONFIG)
    if not os.path.lexists(path) and not os.path.lexists(view.path(WEIGHTS)):
        raise CheckpointError(f"holds no saved model: neither {CONFIG} nor {WEIGHTS} is there", path=view.folder)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > _MAX_JSON_BYTES:
        raise CheckpointError(f"is larger than {_MAX_JSON_BYTES} bytes, so it is no model's configuration", path=path)
    document = parse_json(_read_checked(view, CONFIG, checksums), path)
    return json_to_config(document, path), document


def _read_settings(view: FolderView, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings in the folder's JSON files, by file. The next save writes them again."""
    generation = _read_beside(view, GENERATION)
    documents = {CONFIG: config, GENERATION: json.loads(generation) if generation else {}}
    return {
        name: {key: value for key, value in document.items() if is_shallow(value)}
        for name, document in documents.items()
    }


def _read_beside(view: FolderView, name: str) -> bytes | None:
    """The bytes of a file that is kept for saving. None if it is missing; None with a warning if it is unusable."""
    path = view.path(name)
    if not os.path.lexists(path):
        return None
    try:
        content = read_regular(path, _MAX_JSON_BYTES)
        if name.endswith(".json") and not isinstance(parse_json(content, path), dict):
            raise CheckpointError("is not a JSON object", path=path)
        return content
    except CheckpointError as error:
        _log.warning("neither used nor kept: %s", error)
        return None


def _read_tokenizer(view: FolderView, config: ModelConfig, checksums: Mapping[str, object]) -> Tokenizer:
    path = view.path(TOKENIZER)
    if os.path.lexists(path):
        _read_checked(view, TOKENIZER, checksums, keep=False)
    elif TOKENIZER not in checksums and is_gpt2_folder(view):
        path = view.folder
    else:
        raise CheckpointError(
            "is missing", path=path, in_python="; soma_native.load_model(folder) loads the model without a tokenizer"
        )
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
    contents = {name: _read_beside(view, name) for name in _BESIDE}
    tok._beside = {name: content for name, content in contents.items() if content is not None}
    return tok


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="ascii")  # escapes also lone surrogates
