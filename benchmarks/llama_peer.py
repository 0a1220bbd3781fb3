"""llama.cpp, through llama-cpp-python, decoding a GPT-2 of the workload's size from a GGUF file written here."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from common import Workload, initial_parameters

PARTS = {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}
PARTS |= {"ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def write_gguf(path: Path, w: Workload, params: dict[str, Any], form: str) -> None:
    """Write the weights of a gpt2 workload for llama.cpp: matrices (out, in), in `form`, without a vocabulary."""
    kind = gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(w.config.max_seq_len)
    writer.add_embedding_length(w.config.d_model)
    writer.add_block_count(w.config.n_layers)
    writer.add_feed_forward_length(w.config.d_ff)
    writer.add_head_count(w.config.n_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(w.config.vocab_size)
    names = {"transformer.wte.weight": "token_embd.weight", "transformer.wpe.weight": "position_embd.weight"}
    names |= {f"transformer.ln_f.{kind}": f"output_norm.{kind}" for kind in ("weight", "bias")}
    for i in range(w.config.n_layers):
        for ours, theirs in PARTS.items():
            names |= {f"transformer.h.{i}.{ours}.{kind}": f"blk.{i}.{theirs}.{kind}" for kind in ("weight", "bias")}
    for name, value in params.items():
        matrix = value.ndim == 2
        stored = np.ascontiguousarray(value.T) if matrix and ".h." in name else value
        if form != "F32" and matrix and "wpe" not in name:
            writer.add_tensor(names[name], gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(names[name], stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaDecoder:
    """One sequence of llama.cpp, batch by batch as llama-bench feeds it. Modes: F32, F16, BF16, Q8_0."""

    def __init__(self, w: Workload, mode: str, threads: int) -> None:
        params = initial_parameters(w)
        self.parameters = sum(value.size for value in params.values())
        self.vocab_size = w.config.vocab_size
        llama_cpp.llama_backend_init()
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(path, w, params, mode)
            options = llama_cpp.llama_model_default_params()
            options.use_mmap = False
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise RuntimeError("llama.cpp did not load the model written for it")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = w.config.max_seq_len
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def _feed(self, ids: list[int], start: int) -> None:
        for i, token in enumerate(ids):
            self.batch.token[i] = token
            self.batch.pos[i] = start + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = i == len(ids) - 1
        self.batch.n_tokens = len(ids)
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(self.context)

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prefill(self, ids: list[int]) -> None:
        """Read a prompt into an empty cache and compute the logits after its last token."""
        self._clear()
        self._feed(ids, 0)

    def decode(self, ids: list[int]) -> None:
        """Feed the given tokens one at a time and compute the logits after each."""
        self._clear()
        for i, token in enumerate(ids):
            self._feed([token], i)

    def logits(self, ids: list[int]) -> list[float]:
        """The logits after the last of ids."""
        self.prefill(ids)
        row = llama_cpp.llama_get_logits_ith(self.context, -1)
        return [float(row[i]) for i in range(self.vocab_size)]
