"""The llama block: h = x + attention(norm(x)), y = h + (silu(g) u) W2, g | u = norm(h) W1; RMSNorm, rotary q and k."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.config import Config
from oracles.noise import NONE, Masks
from oracles.ops import (
    Array,
    Params,
    attention,
    attention_backward,
    linear,
    linear_backward,
    merge_heads,
    rms_norm,
    rms_norm_backward,
    rotate,
    split_heads,
    swiglu,
    swiglu_backward,
)

_LAYER = "model.layers.{}."
LAYER_NAMES = {
    "norm1_w": _LAYER + "input_layernorm.weight",
    "w_qkv": _LAYER + "self_attn.qkv_proj.weight",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
    "w_proj": _LAYER + "self_attn.o_proj.weight",
    "norm2_w": _LAYER + "post_attention_layernorm.weight",
    "w_fc": _LAYER + "mlp.gate_up_proj.weight",
    "w_out": _LAYER + "mlp.down_proj.weight",
}
MODEL_NAMES = {"wte": "model.embed_tokens.weight", "norm_w": "model.norm.weight", "head": "lm_head.weight"}


def eps(config: Config) -> float:
    """The number that norms add to the mean of squares."""
    return config.norm_eps or 1e-6


def theta(config: Config) -> float:
    """The base of the angles."""
    return config.rope_theta or 10000.0


def roles(config: Config) -> dict[str, tuple[int, ...]]:
    """Role -> shape of a layer's parameters."""
    d, f = config.d_model, config.d_ff
    shapes: dict[str, tuple[int, ...]] = {
        "norm1_w": (d,), "w_qkv": (d, config.q_dim + 2 * config.kv_dim), "w_proj": (config.q_dim, d),
        "norm2_w": (d,), "w_fc": (d, 2 * f), "w_out": (f, d),
    }  # fmt: skip
    return {**shapes, "q_norm": (config.head_size,), "k_norm": (config.head_size,)} if config.qk_norm else shapes


def rotated(qkv: Array, q_norm: Array | None, k_norm: Array | None, config: Config) -> Array:
    """qkv with the heads of q and k turned, and normed first if there are gains."""
    q, k, v = split_heads(qkv, config.n_heads, config.kv_heads)
    if q_norm is not None:
        q, k = rms_norm(q, eps(config), q_norm), rms_norm(k, eps(config), k_norm)
    return np.concatenate([merge_heads(x) for x in (rotate(q, theta(config)), rotate(k, theta(config)), v)], axis=-1)


def rotated_backward(
    dy: Array, qkv: Array, q_norm: Array | None, k_norm: Array | None, config: Config
) -> tuple[Array, Params]:
    """(dqkv, gradients of the gains) of rotated."""
    parts, g = list(split_heads(dy, config.n_heads, config.kv_heads)), {}
    before = split_heads(qkv, config.n_heads, config.kv_heads)
    for i, (name, gain) in enumerate({"q_norm": q_norm, "k_norm": k_norm}.items()):
        parts[i] = rotate(parts[i], theta(config), -1.0)
        if gain is not None:
            parts[i], g[name] = rms_norm_backward(parts[i], before[i], eps(config), gain)
    return np.concatenate([merge_heads(x) for x in parts], axis=-1), g


def forward(
    x: Array, w: dict[str, Any], config: Config, layer: int, masks: Masks = NONE
) -> tuple[Array, dict[str, Array]]:
    """One layer: (its output, the saved values for backward)."""
    a_in = rms_norm(x, eps(config), w["norm1_w"])
    before = linear(a_in, w["w_qkv"])
    qkv = rotated(before, w.get("q_norm"), w.get("k_norm"), config)
    att = attention(qkv, config.n_heads, config.kv_heads, config.attention_scale(layer))
    r1 = x + masks.attention[layer] * linear(att, w["w_proj"])
    m_in = rms_norm(r1, eps(config), w["norm2_w"])
    hidden = linear(m_in, w["w_fc"])
    saved = {"x": x, "a_in": a_in, "before": before, "qkv": qkv, "att": att, "r1": r1, "m_in": m_in, "hidden": hidden}
    return r1 + masks.mlp[layer] * linear(swiglu(hidden), w["w_out"]), saved


def backward(
    dy: Array, w: dict[str, Any], saved: dict[str, Array], config: Config, layer: int, masks: Masks = NONE
) -> tuple[Array, Params]:
    """(dx, gradients by role) of forward."""
    dactivated, w_out, _ = linear_backward(masks.mlp[layer] * dy, swiglu(saved["hidden"]), w["w_out"])
    dhidden = swiglu_backward(dactivated, saved["hidden"])
    dm_in, w_fc, _ = linear_backward(dhidden, saved["m_in"], w["w_fc"])
    dr1, norm2_w = rms_norm_backward(dm_in, saved["r1"], eps(config), w["norm2_w"])
    dr1 = dr1 + dy
    datt, w_proj, _ = linear_backward(masks.attention[layer] * dr1, saved["att"], w["w_proj"])
    dqkv = attention_backward(datt, saved["qkv"], config.n_heads, config.kv_heads, config.attention_scale(layer))
    dqkv, gains = rotated_backward(dqkv, saved["before"], w.get("q_norm"), w.get("k_norm"), config)
    da_in, w_qkv, _ = linear_backward(dqkv, saved["a_in"], w["w_qkv"])
    dx, norm1_w = rms_norm_backward(da_in, saved["x"], eps(config), w["norm1_w"])
    found = {"w_out": w_out, "w_fc": w_fc, "norm2_w": norm2_w, "w_proj": w_proj, "w_qkv": w_qkv, "norm1_w": norm1_w}
    return dx + dr1, {**found, **gains}


def final(h: Array, params: Params, config: Config) -> Array:
    """The input of the head."""
    return rms_norm(h, eps(config), params[MODEL_NAMES["norm_w"]])


def final_backward(dy: Array, h: Array, params: Params, config: Config) -> tuple[Array, Params]:
    """(dh, gradients by role) of final."""
    dh, dweight = rms_norm_backward(dy, h, eps(config), params[MODEL_NAMES["norm_w"]])
    return dh, {"norm_w": dweight}
