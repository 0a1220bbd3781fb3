"""The gpt2 block: h = x + attention(norm(x)), y = h + gelu(norm(h) W1 + b1) W2 + b2; learned positions."""

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

EPS = 1e-5
# Fields of the other mathematics that this block can have.
OTHER: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "divided by the layer": {"scale_attn_by_inverse_layer_idx": True},
    "not scaled": {"scale_attn_weights": False},
    "all at once": {"activation": "gelu", "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
}
_LAYER = "transformer.h.{}."
LAYER_NAMES = {
    "norm1_w": _LAYER + "ln_1.weight",
    "norm1_b": _LAYER + "ln_1.bias",
    "w_qkv": _LAYER + "attn.c_attn.weight",
    "b_qkv": _LAYER + "attn.c_attn.bias",
    "w_proj": _LAYER + "attn.c_proj.weight",
    "b_proj": _LAYER + "attn.c_proj.bias",
    "norm2_w": _LAYER + "ln_2.weight",
    "norm2_b": _LAYER + "ln_2.bias",
    "w_fc": _LAYER + "mlp.c_fc.weight",
    "b_fc": _LAYER + "mlp.c_fc.bias",
    "w_out": _LAYER + "mlp.c_proj.weight",
    "b_out": _LAYER + "mlp.c_proj.bias",
}
MODEL_NAMES = {
    "wte": "transformer.wte.weight",
    "wpe": "transformer.wpe.weight",
    "norm_w": "transformer.ln_f.weight",
    "norm_b": "transformer.ln_f.bias",
    "head": "lm_head.weight",
}


def roles(config: Config) -> dict[str, tuple[int, ...]]:
    """Role -> shape of a layer's parameters."""
    d, f = config.d_model, config.d_ff
    matrices = {"w_qkv": (d, 3 * d), "w_proj": (d, d), "w_fc": (d, f), "w_out": (f, d)}
    vectors = {"b_qkv": 3 * d, "b_proj": d, "b_fc": f, "b_out": d, "norm1_w": d, "norm1_b": d, "norm2_w": d}
    return {**matrices, **{role: (size,) for role, size in {**vectors, "norm2_b": d}.items()}}


def activation(config: Config) -> str:
    """The activation of the feed-forward network."""
    return config.activation or "gelu_tanh"


def forward(
    x: Array, w: dict[str, Any], config: Config, layer: int, masks: Masks = NONE
) -> tuple[Array, dict[str, Array]]:
    """One layer: (its output, the saved values for backward)."""
    a_in = norm(x, EPS, w["norm1_w"], w["norm1_b"])
    qkv = linear(a_in, w["w_qkv"], w["b_qkv"])
    att = attention(qkv, config.n_heads, scale=config.attention_scale(layer))
    r1 = x + masks.attention[layer] * linear(att, w["w_proj"], w["b_proj"])
    m_in = norm(r1, EPS, w["norm2_w"], w["norm2_b"])
    hidden = linear(m_in, w["w_fc"], w["b_fc"], activation(config))
    saved = {"x": x, "a_in": a_in, "qkv": qkv, "att": att, "r1": r1, "m_in": m_in, "hidden": hidden}
    return r1 + masks.mlp[layer] * linear(hidden, w["w_out"], w["b_out"]), saved


def backward(
    dy: Array, w: dict[str, Any], saved: dict[str, Array], config: Config, layer: int, masks: Masks = NONE
) -> tuple[Array, Params]:
    """(dx, gradients by role) of forward."""
    g: Params = {}
    dhidden, g["w_out"], g["b_out"] = linear_backward(masks.mlp[layer] * dy, saved["hidden"], w["w_out"])
    dm_in, g["w_fc"], g["b_fc"] = linear_backward(dhidden, saved["m_in"], w["w_fc"], w["b_fc"], activation(config))
    dr1, g["norm2_w"], g["norm2_b"] = norm_backward(dm_in, saved["r1"], EPS, w["norm2_w"])
    dr1 = dr1 + dy
    datt, g["w_proj"], g["b_proj"] = linear_backward(masks.attention[layer] * dr1, saved["att"], w["w_proj"])
    dqkv = attention_backward(datt, saved["qkv"], config.n_heads, scale=config.attention_scale(layer))
    da_in, g["w_qkv"], g["b_qkv"] = linear_backward(dqkv, saved["a_in"], w["w_qkv"])
    dx, g["norm1_w"], g["norm1_b"] = norm_backward(da_in, saved["x"], EPS, w["norm1_w"])
    return dx + dr1, g


def final(h: Array, params: Params, config: Config) -> Array:
    """The input of the head."""
    return norm(h, EPS, params[MODEL_NAMES["norm_w"]], params[MODEL_NAMES["norm_b"]])


def final_backward(dy: Array, h: Array, params: Params, config: Config) -> tuple[Array, Params]:
    """(dh, gradients by role) of final."""
    dh, dweight, dbias = norm_backward(dy, h, EPS, params[MODEL_NAMES["norm_w"]])
    return dh, {"norm_w": dweight, "norm_b": dbias}
