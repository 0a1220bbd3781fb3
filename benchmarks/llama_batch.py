"""llama.cpp, through the C functions of xllamacpp: many sequences in each batch, from a GGUF that export_gguf wrote."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from common import ROOT

sys.path.append(str(ROOT / "tests"))

from helpers import llama_cpp as peer

# The integers that llama_context_params of xllamacpp 2026.10 begins with, as they are by default: n_ctx, n_batch,
# n_ubatch, n_seq_max, three others, n_threads and n_threads_batch.
DEFAULTS = [512, 2048, 512, 1, 0, 0, 1, 4, 4]
BATCH = 2048  # tokens
_clear = peer._function("llama_memory_clear", None, ctypes.c_void_p, ctypes.c_bool)
_memory = peer._function("llama_get_memory", ctypes.c_void_p, ctypes.c_void_p)
_row = peer._function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_int32)
_parameters = peer._function("llama_model_n_params", ctypes.c_uint64, ctypes.c_void_p)


class LlamaBatch:
    """Random sequences side by side, one token of each in a batch, as llama-batched-bench decodes them."""

    def __init__(
        self, path: str, context: int, vocab_size: int, sequences: int, prompt: int, tokens: int, threads: int
    ) -> None:
        self._model = peer.LlamaCpp(Path(path))
        self.parameters = int(_parameters(self._model._model))
        settings = peer._context_settings()
        fields = ctypes.cast(ctypes.byref(settings), ctypes.POINTER(ctypes.c_int32))
        if fields[: len(DEFAULTS)] != DEFAULTS:
            raise RuntimeError(f"the settings of a context are others in this xllamacpp: {fields[: len(DEFAULTS)]}")
        for i, value in {0: context * sequences, 1: BATCH, 3: sequences, 7: threads, 8: threads}.items():
            fields[i] = value
        self._context = peer._context(self._model._model, settings)
        if not self._context:
            raise RuntimeError("".join(peer._said))
        self._batch = peer._make_batch(BATCH, 0, 1)
        self._vocab_size = vocab_size
        self._ids = np.random.default_rng(5).integers(0, vocab_size, (sequences, prompt + tokens)).tolist()
        self._prompt = prompt

    def _feed(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Run a batch of (token, position, sequence, whether its logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if peer._decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        _row(self._context, -1)[0]  # waits for the logits

    def write(self) -> None:
        """Read all prompts together, then decode their sequences. The logits after the last token are not needed."""
        _clear(_memory(self._context), True)
        last = self._prompt - 1
        prompts = [(ids[i], i, s, i == last) for s, ids in enumerate(self._ids) for i in range(self._prompt)]
        for first in range(0, len(prompts), BATCH):
            self._feed(prompts[first : first + BATCH])
        for i in range(self._prompt, len(self._ids[0]) - 1):
            self._feed([(ids[i], i, s, True) for s, ids in enumerate(self._ids)])

    def logits_after(self, ids: list[int]) -> list[float]:
        """The logits after the last token of one sequence."""
        _clear(_memory(self._context), True)
        self._feed([(token, i, 0, i == len(ids) - 1) for i, token in enumerate(ids)])
        found = _row(self._context, -1)
        return [float(found[i]) for i in range(self._vocab_size)]
