"""Floating-point operations of a model, by which amounts of training are compared."""

from __future__ import annotations

from soma_native.core import _core
from soma_native.model.config import ModelConfig


def flops_per_token(config: ModelConfig, seq_len: int, training: bool = True) -> float:
    """Floating-point operations a token, in sequences of `seq_len` tokens.

    Args:
        config: the sizes of the model.
        seq_len: tokens of a sequence; causal attention reads half of them on average.
        training: forward and backward: 6 per weight of a matrix product, head included, and attention. Else forward
            alone, as of a teacher: a third of that.
    """
    heads = config.n_heads * (config.head_dim or config.d_model // config.n_heads)
    forward = 2.0 * _core.multiplied_parameters(config.core) + 2.0 * config.n_layers * seq_len * heads
    return 3.0 * forward if training else forward
