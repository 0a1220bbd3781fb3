"""Shapes of models for every block: the same sizes, and the options that the block has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oracles.reference import Config
from soma_native import _core


def options_of(block: str, heads: int, head_size: int, qk_norm: bool) -> dict[str, Any]:
    """Options for a block with shared heads of keys and heads of an even size; {} for other blocks."""
    if "n_kv_heads" not in _core.block_options(block):
        return {}
    shared = heads // 2 if heads % 2 == 0 else 1
    return {"n_kv_heads": shared, "head_dim": head_size + head_size % 2, "qk_norm": qk_norm, "rope_theta": 100.0}


def of_block(shape: Config, block: str, tied: bool | None = None) -> Config:
    """A shape in another block, with the default head or that of `tied`. With a tied head, heads are normed too."""
    tied = _core.block_ties_head(block) if tied is None else tied
    return replace(
        shape, block=block, tied_head=tied, **options_of(block, shape.n_heads, shape.d_model // shape.n_heads, tied)
    )
