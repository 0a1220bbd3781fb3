"""The soma block: h = norm(x + attention(x)), y = norm(h + relu(h W1 + b1) W2 + b2); no gains, learned positions."""

from __future__ import annotations

from typing import Any

from oracles.config import Config
from oracles.noise import NONE, Masks
from oracles.ops import (
    Array,
    Params,
    attention,
    attention_backward,
    linear,
    linear_backward,
    norm,
    norm_backward,
)

EPS = 1e-6
LAYER_NAMES = {
    "w_qkv": "h.{}.attn.w_qkv",
    "w_proj": "h.{}.attn.w_proj",
    "w_fc": "h.{}.mlp.w_fc",
    "b_fc": "h.{}.mlp.b_fc",
    "w_out": "h.{}.mlp.w_proj",
    "b_out": "h.{}.mlp.b_proj",
}
MODEL_NAMES = {"wte": "wte", "wpe": "wpe", "head": "lm_head"}


def roles(config: Config) -> dict[str, tuple[int, ...]]:
    """Role -> shape of a layer's parameters."""
    d, f = config.d_model, config.d_ff
    return {"w_qkv": (d, 3 * d), "w_proj": (d, d), "w_fc": (d, f), "b_fc": (f,), "w_out": (f, d), "b_out": (d,)}


def forward(
    x: Array, w: dict[str, Any], config: Config, layer: int, masks: Masks = NONE
) -> tuple[Array, dict[str, Array]]:
    """One layer: (its output, the saved values for backward)."""
    qkv = linear(x, w["w_qkv"])
    att = attention(qkv, config.n_heads, scale=config.attention_scale(layer))
    r1 = x + masks.attention[layer] * linear(att, w["w_proj"])
    m_in = norm(r1, EPS)
    hidden = linear(m_in, w["w_fc"], w["b_fc"], "relu")
    r2 = m_in + masks.mlp[layer] * linear(hidden, w["w_out"], w["b_out"])
    return norm(r2, EPS), {"x": x, "qkv": qkv, "att": att, "r1": r1, "m_in": m_in, "hidden": hidden, "r2": r2}


def backward(
    dy: Array, w: dict[str, Any], saved: dict[str, Array], config: Config, layer: int, masks: Masks = NONE
) -> tuple[Array, Params]:
    """(dx, gradients by role) of forward."""
    g: Params = {}
    dr2 = norm_backward(dy, saved["r2"], EPS)[0]
    dhidden, g["w_out"], g["b_out"] = linear_backward(masks.mlp[layer] * dr2, saved["hidden"], w["w_out"])
    dm_in, g["w_fc"], g["b_fc"] = linear_backward(dhidden, saved["m_in"], w["w_fc"], w["b_fc"], "relu")
    dr1 = norm_backward(dm_in + dr2, saved["r1"], EPS)[0]
    datt, g["w_proj"], _ = linear_backward(masks.attention[layer] * dr1, saved["att"], w["w_proj"])
    dqkv = attention_backward(datt, saved["qkv"], config.n_heads, scale=config.attention_scale(layer))
    da_in, g["w_qkv"], _ = linear_backward(dqkv, saved["x"], w["w_qkv"])
    return da_in + dr1, g


def final(h: Array, params: Params, config: Config) -> Array:
    """The input of the head."""
    return h


def final_backward(dy: Array, h: Array, params: Params, config: Config) -> tuple[Array, Params]:
    """(dh, gradients by role) of final."""
    return dy, {}
