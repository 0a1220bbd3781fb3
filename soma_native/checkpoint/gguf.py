"""Writes a model and its tokenizer as one GGUF, the file of llama.cpp, and an ollama Modelfile beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native import _checks
from soma_native.checkpoint.architectures import ARCHITECTURES, Architecture, of_config
from soma_native.checkpoint.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from soma_native.checkpoint.hf_config import SAMPLING, auto_penalty, end_token, start_token, token_ids
from soma_native.checkpoint.weights import stored_parts
from soma_native.errors import ArgumentError, CheckpointError
from soma_native.files.atomic_folder import replace_files
from soma_native.files.untrusted import read_regular
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")

# The types of matrices, by the name of all weights together in a GGUF, and the largest number that each holds.
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
_LARGEST = {"f32": np.inf, "f16": 65504.0, "q8_0": 65504.0 * 127}
DTYPES = tuple(_FILE_TYPES)
MODELFILE = "Modelfile"
_MAX_MODELFILE = 1 << 20


def export_gguf(
    path: str | os.PathLike[str], model: Model, tok: Tokenizer, dtype: str = "f16", *, modelfile: bool = False
) -> Path:
    """Write a model and its tokenizer as a GGUF, which llama.cpp, ollama and their relatives run.

    llama.cpp then gives our ids, and our logits up to rounding. It adds no token to a text, as here. Needs the package
    `gguf` (``pip install 'soma-native[gguf]'``).

    Args:
        path: the file. An existing one is replaced at once or not at all.
        model: a model of the block ``gpt2`` with its own activation, or ``llama`` (with `qk_norm` as Qwen3).
        tok: its tokenizer, of kind "char", "byte", or "bpe" with the pattern "gpt2", "llama3", "qwen2" or "qwen3.5".
        dtype: the type of matrices. "f32" is exact. "f16" rounds each weight once (relative error up to 2**-11).
            "q8_0" keeps 8 bits a weight and one scale for 32 of a row, whose length must be a multiple of 32. Norms,
            biases and positions are float32.
        modelfile: whether to write a `Modelfile` beside it, from which ``ollama create NAME -f Modelfile`` makes a
            model with our defaults of generation.

    Returns:
        The path of the GGUF.

    Raises:
        ImportError: the package `gguf` is not installed.
        ValueError: llama.cpp cannot compute this model, encode as this tokenizer, or hold these weights in `dtype`.
            The message names what it lacks.
        CheckpointError: the place is no ordinary file, it cannot be written (disk full, read-only), a weight is not
            finite, or another `Modelfile` is there. What was there before is unchanged.
    """
    path = _checks.path("path", path)
    _checks.choice("dtype", dtype, DTYPES)
    _checks.flag("modelfile", modelfile)
    _checks.instance("model", model, Model)
    _checks.instance("tok", tok, Tokenizer)
    if path.is_dir():
        raise CheckpointError("is a folder: name a file in it, such as model.gguf", path=path)
    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError("is not an ordinary file (a broken link, pipe or device)", path=path)
    if modelfile and path.name == MODELFILE:
        raise ArgumentError("path", f"must not be named {MODELFILE}, which is written beside it")
    config = model.config
    if tok.vocab_size > config.vocab_size:
        raise ArgumentError("tok", f"has {tok.vocab_size} tokens, more than the {config.vocab_size} of the model")
    model_type, entry = _architecture(config)
    try:
        gguf: Any = import_module("gguf")
    except ImportError:
        raise ImportError("a GGUF needs the package gguf: pip install 'soma-native[gguf]'") from None
    vocabulary = gguf_vocabulary(tok, config.vocab_size)
    writer = gguf.GGUFWriter(None, model_type)
    try:
        _add_settings(gguf, writer, path.stem, config, entry, dtype)
        _add_vocabulary(writer, vocabulary, model, tok)
        types = dict(_tensor_types(gguf, writer, model, entry, dtype))
        with replace_files(path.parent) as staging:
            _write(gguf, writer, staging.path / path.name, model, entry, types)
            if modelfile:
                content = _modelfile(path.name, model, tok)
                _keep_another(path.with_name(MODELFILE), content)
                (staging.path / MODELFILE).write_bytes(content)
    finally:
        with contextlib.suppress(OSError):  # after a full disk, closing fails once more
            writer.close()
    _log.info("exported %d parameters to %s", model.num_parameters, path)
    return path


def _architecture(config: ModelConfig) -> tuple[str, Architecture]:
    """The model_type, which is llama.cpp's name too, and the entry of a model that llama.cpp can compute."""
    model_type, entry = of_config(config)
    if entry.gguf is None:
        known = ", ".join(sorted({other.block for other in ARCHITECTURES.values() if other.gguf}))
        raise ArgumentError(
            "model", f"has the block {config.block!r}, which llama.cpp does not compute; it computes {known}"
        )
    for name, value in entry.gguf.only.items():
        if getattr(config, name) != value:
            raise ArgumentError(
                "model",
                f"has {name}={getattr(config, name)!r}; llama.cpp computes {name}={value!r} alone in {model_type}",
            )
    return model_type, entry


def _add_settings(gguf: Any, writer: Any, name: str, config: ModelConfig, entry: Architecture, dtype: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    if config.norm_eps is None:
        writer.add_layer_norm_eps(entry.settings["layer_norm_epsilon"][0])
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if entry.rotary:
        writer.add_head_count_kv(config.n_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)


def _add_vocabulary(writer: Any, vocabulary: GgufVocabulary, model: Model, tok: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    # Without ids of start and end, llama.cpp takes 11 for both, which is an ordinary token.
    ends = token_ids(model, "eos_token_id") or _id(tok, end_token(tok))
    if not ends and (quiet := vocabulary.quiet_token()) is not None:
        ends = [quiet]
    if not ends:
        raise ArgumentError(
            "tok", "has no special token; llama.cpp needs one that ends a text: train with special_tokens"
        )
    writer.add_bos_token_id((token_ids(model, "bos_token_id") or _id(tok, start_token(tok)) or ends)[0])
    for add, i in zip((writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False):
        add(i)
    if len(ends) > 3:
        _log.warning("llama.cpp ends a text at three tokens at most: it goes on after %s", ends[3:])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if vocabulary.never:
        writer.add_array("tokenizer.ggml.suppress_tokens", vocabulary.never)
    if template := _chat_template(tok):
        writer.add_chat_template(template)


def _id(tok: Tokenizer, token: str | None) -> list[int]:
    found = None if token is None else tok.token_to_id(token)
    return [] if found is None else [found]


def _chat_template(tok: Tokenizer) -> str | None:
    """The chat template of the folder that the tokenizer was loaded from."""
    if (template := tok._beside.get("chat_template.jinja")) is not None:
        return template.decode("utf-8", "replace")
    settings = json.loads(tok._beside.get("tokenizer_config.json", b"{}"))
    found = settings.get("chat_template")
    return found if isinstance(found, str) else None


def _tensors(model: Model, entry: Architecture) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors by their names in our files, as llama.cpp computes with them; views where that is possible."""
    assert entry.gguf is not None
    half = (model.config.head_dim or 0) // 2
    for own, array in model.parameters().items():
        for name, part in stored_parts(entry, model.config, own, array):
            if name.endswith(entry.gguf.transposed):
                part = part.T
            elif name.endswith(entry.gguf.interleaved):
                part = part.reshape(-1, 2, half, part.shape[1]).swapaxes(1, 2).reshape(part.shape)
            yield name, part


def _tensor_types(gguf: Any, writer: Any, model: Model, entry: Architecture, dtype: str) -> Iterator[tuple[str, Any]]:
    """The type of each tensor; the writer learns all that stands before the data.

    Raises:
        ArgumentError: a matrix does not fit into `dtype`.
        CheckpointError: a weight is not finite.
    """
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == writer.arch)
    names = gguf.get_tensor_name_map(architecture, model.config.n_layers)
    positions = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.POS_EMBD]
    for name, array in _tensors(model, entry):
        if not np.isfinite(array).all():
            raise CheckpointError("holds NaN or infinity, so the model is not exported", tensor=name)
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        as_float32 = array.ndim < 2 or there.startswith(positions)
        kind = gguf.GGMLQuantizationType["F32" if as_float32 else dtype.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if array.shape[-1] % block:
            problem = f"must be f32 or f16: {dtype} needs rows of a multiple of {block}, {name} has {array.shape[-1]}"
            raise ArgumentError("dtype", problem)
        if not as_float32 and np.abs(array).max() > _LARGEST[dtype]:
            raise ArgumentError("dtype", f"must be f32: {name} has a number too large for {dtype}")
        writer.add_tensor_info(there, array.shape, array.dtype, array.size // block * size, raw_dtype=kind)
        yield name, kind


def _write(gguf: Any, writer: Any, path: Path, model: Model, entry: Architecture, types: Mapping[str, Any]) -> None:
    """Write the file, one tensor after the other. A full disk is an error with its reason."""
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "ab") as file:
        for name, array in _tensors(model, entry):
            file.write(b"\0" * (-file.tell() % writer.data_alignment))
            file.write(np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(array), types[name])).data)
        file.write(b"\0" * (-file.tell() % writer.data_alignment))


def _modelfile(name: str, model: Model, tok: Tokenizer) -> bytes:
    """An ollama Modelfile: the GGUF, the prompt as it is unless there is a chat template, defaults of generation."""
    template = [] if _chat_template(tok) else ['TEMPLATE """{{ .Prompt }}"""']
    settings = {
        "num_ctx": model.config.max_seq_len,
        "num_predict": SAMPLING["max_new_tokens"],
        "temperature": SAMPLING["temperature"],
        "top_k": SAMPLING["top_k"],
        "top_p": SAMPLING["top_p"],
        "repeat_penalty": auto_penalty(tok),
    }
    lines = [f"FROM ./{name}", *template, *(f"PARAMETER {key} {value}" for key, value in settings.items())]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _keep_another(path: Path, content: bytes) -> None:
    """Raise if a Modelfile is there that is not the one to be written."""
    if os.path.lexists(path) and read_regular(path, _MAX_MODELFILE) != content:
        raise CheckpointError("is another one, which the export would replace: move it away", path=path)
