"""The workloads of benchmarks: a preset, the size of its batch, and a synthetic text."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from soma_native.core import _core
from soma_native.model.config import OPTIONS, ModelConfig


@dataclass(frozen=True)
class Workload:
    """The sizes of a model and of its batch. The fields of the model are those of `ModelConfig`."""

    name: str
    vocab_size: int
    seq_len: int
    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    batch: int
    max_seq_len: int
    block: str = "gpt2"
    tied_head: bool = True
    activation: str | None = None
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    n_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool | None = None
    rope_theta: float | None = None
    norm_eps: float | None = None

    @classmethod
    def preset(cls, name: str, seq_len: int, batch: int) -> Workload:
        """`batch` sequences of `seq_len` tokens for a model of ModelConfig.preset(name)."""
        return cls(name, seq_len=seq_len, batch=batch, **ModelConfig.preset(name).to_dict())

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in fields(ModelConfig)})

    def as_block(self, block: str) -> Workload:
        """The same sizes with another block, and with the default head and options of this block."""
        if block == self.block:
            return self
        own: dict[str, Any] = dict.fromkeys(("activation", *OPTIONS))
        return replace(self, **own | replace(self.config, block=block, tied_head=None, **own).to_dict())

    @property
    def tokens(self) -> int:
        """Tokens of one training step."""
        return self.batch * self.seq_len

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of forward and backward: 6 per weight of a matrix product, and causal attention."""
        heads = self.n_heads * (self.head_dim or self.d_model // self.n_heads)
        return 6.0 * _core.multiplied_parameters(self.config.core) + 6.0 * self.n_layers * self.seq_len * heads


WORKLOADS = {
    w.name: w
    for w in (
        #               preset       T     B
        Workload.preset("showcase", 64, 8),
        Workload.preset("nano-cpu", 64, 12),
        Workload.preset("improved", 256, 16).as_block("gpt2"),  # the block of the peers it is compared with
        Workload.preset("full", 1024, 1),
        Workload.preset("baby", 256, 16),
        Workload.preset("gpt2-124m", 256, 4),
    )
}


def training_batches(w: Workload, count: int = 32) -> list[tuple[Any, Any]]:
    """Ids and targets, int32 (batch, seq_len) each, of `count` steps.

    The text is a noisy Markov chain, which can be learned: the loss shows whether the steps compute anything useful.
    """
    rng = np.random.default_rng(7)
    follows = rng.permutation(w.vocab_size)
    text = rng.integers(0, w.vocab_size, (count, w.batch, w.seq_len + 1))
    keep = rng.random(text.shape) < 0.8
    for t in range(1, w.seq_len + 1):
        text[..., t] = np.where(keep[..., t], follows[text[..., t - 1]], text[..., t])
    text = text.astype(np.int32)
    return [(np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])) for rows in text]
