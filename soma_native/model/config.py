"""The configuration of a model: its sizes and its block style."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soma_native._checks import choice, flag, integer, number
from soma_native.core import _core
from soma_native.errors import ArgumentError
from soma_native.model.presets import LARGEST_VOCAB, PRESETS

BLOCKS = tuple(_core.block_names())
PRECISIONS = ("auto", "float32", "bfloat16")
OPTIONS = ("n_kv_heads", "head_dim", "qk_norm", "rope_theta", "norm_eps")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and block style of a decoder-only transformer.

    Attributes:
        vocab_size: tokens of the vocabulary, V >= 2.
        d_model: channels of the residual stream, C; a multiple of ``n_heads``, unless ``head_dim`` is given.
        n_layers: blocks, L.
        n_heads: attention heads, H; each has ``d_model // n_heads`` channels.
        d_ff: hidden channels of the feed-forward network, F.
        max_seq_len: the longest possible sequence; the number of learned positions, if positions are learned.
        block: ``"soma"`` (post-norm without affine, ReLU, attention without biases, untied head), ``"gpt2"`` (pre-norm
            with affine, GELU, biases, tied head: Radford et al. 2019) or ``"llama"`` (pre-norm RMSNorm, rotary
            positions, SwiGLU, grouped-query attention, no biases, untied head: Touvron et al. 2023).
        tied_head: whether the output head is the token embedding; ``None`` takes the block's own way.
        activation: of the feed-forward network: ``"relu"``, ``"gelu_tanh"`` (GPT-2's) or ``"gelu"`` (x Phi(x) itself);
            ``None`` takes the block's own. ``gpt2`` can have each, ``soma`` has ReLU, ``llama`` has ``"silu"``.
        scale_attn_weights: whether the scores of attention are divided by the root of a head's size; ``gpt2`` can do
            without.
        scale_attn_by_inverse_layer_idx: whether those of the n-th layer are divided by n as well; ``gpt2`` alone.

    Only the block ``llama`` has the attributes below. In another block they are ``None``, and a value is an error. In
    ``llama``, ``None`` takes the default in brackets.

    Attributes:
        n_kv_heads: heads of keys and values; ``n_heads / n_kv_heads`` heads of queries share each [``n_heads``].
        head_dim: channels of a head, even [``d_model // n_heads``].
        qk_norm: whether each head of queries and keys goes through an RMSNorm with gains, as in Qwen3 [``False``].
        rope_theta: base of the angles of rotary positions [10000].
        norm_eps: the number that norms add to the mean of squares [1e-6].

    Raises:
        TypeError: a field has another type than it says.
        ValueError: a field is out of range, does not fit the others, or is not one of the block. The message names it.

    >>> ModelConfig(vocab_size=576, d_model=128, n_layers=3, n_heads=4, d_ff=512, max_seq_len=256).num_parameters
    771968
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int
    block: str = "soma"
    tied_head: bool | None = None
    activation: str | None = None
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    n_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool | None = None
    rope_theta: float | None = None
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _core.model_limits().items():
            object.__setattr__(self, name, integer(name, getattr(self, name), low, high))
        choice("block", self.block, BLOCKS)
        if self.tied_head is None:
            object.__setattr__(self, "tied_head", _core.block_ties_head(self.block))
        flag("tied_head", self.tied_head)
        activations = _core.block_activations(self.block)
        if self.activation is None:
            object.__setattr__(self, "activation", activations[0])
        choice("activation", self.activation, activations, f" in the {self.block} block")
        for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
            if flag(name, getattr(self, name)) is not usual and not _core.block_scales_attention(self.block):
                raise ArgumentError(name, f"must be {usual} in the {self.block} block, got {not usual}")
        self._check_options()

    def _check_options(self) -> None:
        limits, defaults = _core.option_limits(), _core.block_options(self.block)
        for name in OPTIONS:
            value = getattr(self, name)
            if name not in defaults:
                if value is not None:
                    raise ArgumentError(name, f"does not exist in block {self.block!r}: leave it out")
                continue
            if value is None:
                value = defaults[name]
            elif name not in limits:
                value = flag(name, value)
            else:
                low, high = limits[name]
                value = (
                    integer(name, value, low, high)
                    if isinstance(low, int)
                    else number(name, value, least=low, most=high)
                )
            object.__setattr__(self, name, value)
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ArgumentError("d_model", f"must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")
        if "head_dim" in defaults and self.head_dim is None:
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        if self.head_dim is not None and self.head_dim % 2:
            raise ArgumentError("head_dim", f"must be even (d_model / n_heads, unless given), got {self.head_dim}")
        if "n_kv_heads" in defaults and self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ArgumentError("n_kv_heads", f"must divide n_heads, got {self.n_kv_heads} and {self.n_heads}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """A config by name, with fields replaced.

        Args:
            name: a preset of :mod:`soma_native.model.presets`, such as ``showcase`` or ``gpt2-124m``.
            overrides: fields with other values than the preset's, most often ``vocab_size``.

        Raises:
            ValueError: an unknown name, or a vocabulary larger than the preset is meant for.
            TypeError: an unknown field.

        >>> ModelConfig.preset("gpt2-124m").num_parameters
        124439808
        """
        choice("preset", name, PRESETS)
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(overrides) - fields)
        if unknown:
            raise TypeError(f"unknown field {unknown[0]!r}; a ModelConfig has {', '.join(sorted(fields))}")
        config = cls(**{**PRESETS[name], **overrides})
        largest = LARGEST_VOCAB.get(name)
        if largest is not None and config.vocab_size > largest:
            raise ArgumentError("vocab_size", f"must be at most {largest} for preset {name}, got {config.vocab_size}")
        return config

    @property
    def num_parameters(self) -> int:
        """The number of parameters, without building the model."""
        return _core.num_parameters(self.core)

    @property
    def core(self) -> _core.Config:
        """The same configuration as an object of the core."""
        return _core.Config(**self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, without those that the block does not have; ``from_dict`` reads them back."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The config whose ``to_dict`` gave ``values``. Raises TypeError or ValueError as the constructor does."""
        return cls(**values)
