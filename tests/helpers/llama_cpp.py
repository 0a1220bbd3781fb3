"""llama.cpp as an oracle: ids, logits and greedy text of a GGUF.

The package xllamacpp has a server for text. Ids and logits come from the C functions that its library exports. Their
structures are passed on as they come, so only that of a batch is described here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from numpy.typing import NDArray

_Pointer, _Int, _Ints = ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)


class _Settings(ctypes.Structure):
    """Settings of a model or a context, whatever they are; larger than any of them."""

    _fields_ = (("content", ctypes.c_ubyte * 4096),)


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", _Int),
        ("token", _Ints),
        ("embd", _Pointer),
        ("pos", _Ints),
        ("n_seq_id", _Ints),
        ("seq_id", ctypes.POINTER(_Ints)),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


_load = _function("llama_model_load_from_file", _Pointer, ctypes.c_char_p, _Settings)
_model_settings = _function("llama_model_default_params", _Settings)
_free_model = _function("llama_model_free", None, _Pointer)
_vocabulary = _function("llama_model_get_vocab", _Pointer, _Pointer)
_end = _function("llama_vocab_eos", _Int, _Pointer)
_start = _function("llama_vocab_bos", _Int, _Pointer)
_tokenize = _function(
    "llama_tokenize", _Int, _Pointer, ctypes.c_char_p, _Int, _Ints, _Int, ctypes.c_bool, ctypes.c_bool
)
_context = _function("llama_init_from_model", _Pointer, _Pointer, _Settings)
_context_settings = _function("llama_context_default_params", _Settings)
_free_context = _function("llama_free", None, _Pointer)
_make_batch = _function("llama_batch_init", _Batch, _Int, _Int, _Int)
_free_batch = _function("llama_batch_free", None, _Batch)
_decode = _function("llama_decode", _Int, _Pointer, _Batch)
_logits = _function("llama_get_logits", ctypes.POINTER(ctypes.c_float), _Pointer)
_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _Pointer)
_said: list[str] = []
_log = _Log(lambda level, text, data: _said.append(text.decode("utf-8", "replace")))


class LlamaCpp:
    """A model in llama.cpp. A context manager.

    Attributes:
        start, end: the ids of these tokens.
    """

    def __init__(self, path: Path) -> None:
        _said.clear()
        _function("llama_log_set", None, _Log, _Pointer)(_log, None)
        self._model = _load(os.fsencode(path), _model_settings())
        assert self._model, "".join(_said)
        self._vocabulary = _vocabulary(self._model)
        self.start, self.end = _start(self._vocabulary), _end(self._vocabulary)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *error: object) -> None:
        _free_model(self._model)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text as a prompt has them; with the special tokens in it, if `special`."""
        raw = text.encode()
        ids = (_Int * (len(raw) + 2))()
        count = _tokenize(self._vocabulary, raw, len(raw), ids, len(ids), True, special)
        assert count >= 0
        return list(ids[:count])

    def forward(self, ids: Sequence[int], vocab_size: int) -> NDArray[np.float32]:
        """The logits (T, V) of all positions."""
        context, batch = _context(self._model, _context_settings()), _make_batch(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert _decode(context, batch) == 0
        found = np.ctypeslib.as_array(_logits(context), (len(ids), vocab_size)).copy()
        _free_batch(batch)
        _free_context(context)
        return found


def greedy_text(path: Path, prompt: str, max_tokens: int, context: int) -> str:
    """What llama.cpp's server adds to a prompt when it takes the most likely token each time."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = context, 1, 1
    settings.port, settings.warmup, settings.fit_params, settings.verbosity = 0, False, False, -1
    asked = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "seed": 0}
    answer = xllamacpp.Server(settings).handle_completions(asked)
    return str(answer["choices"][0]["text"])
