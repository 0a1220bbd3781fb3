"""The shape of an oracle's model, with the field names of soma_native.ModelConfig."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Config:
    """Shape of one model. A field that a block does not have is None."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int
    block: str = "soma"
    tied_head: bool = False
    activation: str | None = None
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    n_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool | None = None
    rope_theta: float | None = None
    norm_eps: float | None = None

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def q_dim(self) -> int:
        """Numbers of a query, all heads."""
        return self.n_heads * self.head_size

    @property
    def kv_dim(self) -> int:
        """Numbers of a key, all heads."""
        return self.kv_heads * self.head_size

    def attention_scale(self, layer: int) -> float:
        """The factor of the attention scores."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def to_dict(self) -> dict[str, Any]:
        """The fields that a ModelConfig takes."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
