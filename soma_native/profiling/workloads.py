"""The workloads of benchmarks: a preset, the size of its batch, and a synthetic text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from soma_native.model.config import OPTIONS, ModelConfig
from soma_native.model.flops import flops_per_token


@dataclass(frozen=True)
class Workload:
    """A model, and the number and length of the sequences of a batch."""

    name: str
    config: ModelConfig
    seq_len: int
    batch: int

    @classmethod
    def preset(cls, name: str, seq_len: int, batch: int) -> Workload:
        """`batch` sequences of `seq_len` tokens for a model of ModelConfig.preset(name)."""
        return cls(name, ModelConfig.preset(name), seq_len, batch)

    def as_block(self, block: str) -> Workload:
        """The same sizes with another block, and with the default head and options of this block."""
        if block == self.config.block:
            return self
        own: dict[str, Any] = dict.fromkeys(("tied_head", "activation", *OPTIONS))
        return replace(self, config=replace(self.config, block=block, **own))

    def to_dict(self) -> dict[str, Any]:
        """Name, batch, and the fields of the model, as records have them."""
        return {"name": self.name, "seq_len": self.seq_len, "batch": self.batch, **self.config.to_dict()}

    @property
    def tokens(self) -> int:
        """Tokens of one training step."""
        return self.batch * self.seq_len

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of forward and backward: 6 per weight of a matrix product, and causal attention."""
        return flops_per_token(self.config, self.seq_len)


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
    follows = rng.permutation(w.config.vocab_size)
    text = rng.integers(0, w.config.vocab_size, (count, w.batch, w.seq_len + 1))
    keep = rng.random(text.shape) < 0.8
    for t in range(1, w.seq_len + 1):
        text[..., t] = np.where(keep[..., t], follows[text[..., t - 1]], text[..., t])
    text = text.astype(np.int32)
    return [(np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])) for rows in text]
