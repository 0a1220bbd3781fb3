"""NumPy oracle of both blocks in float64: forward, loss, hand-written backward, AdamW and global-norm clipping.

Every forward function takes complex numbers: comparisons look at the real part, and there is no abs. So Im f(x + ih)
/ h is the derivative of a real function f without cancellation. This proves the backward functions.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles.activations import ACTIVATIONS

Array = NDArray[Any]  # float64, or complex128 during a complex step
Params = dict[str, Array]

IGNORE = -100
NORM_EPS = {"soma": 1e-6, "gpt2": 1e-5}

# Fields of the other mathematics that the gpt2 block can have.
OTHER_GPT2: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "divided by the layer": {"scale_attn_by_inverse_layer_idx": True},
    "not scaled": {"scale_attn_weights": False},
    "all at once": {"activation": "gelu", "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
}

LAYER_NAMES = {
    "soma": {
        "w_qkv": "h.{}.attn.w_qkv",
        "w_proj": "h.{}.attn.w_proj",
        "w_fc": "h.{}.mlp.w_fc",
        "b_fc": "h.{}.mlp.b_fc",
        "w_out": "h.{}.mlp.w_proj",
        "b_out": "h.{}.mlp.b_proj",
    },
    "gpt2": {
        "norm1_w": "transformer.h.{}.ln_1.weight",
        "norm1_b": "transformer.h.{}.ln_1.bias",
        "w_qkv": "transformer.h.{}.attn.c_attn.weight",
        "b_qkv": "transformer.h.{}.attn.c_attn.bias",
        "w_proj": "transformer.h.{}.attn.c_proj.weight",
        "b_proj": "transformer.h.{}.attn.c_proj.bias",
        "norm2_w": "transformer.h.{}.ln_2.weight",
        "norm2_b": "transformer.h.{}.ln_2.bias",
        "w_fc": "transformer.h.{}.mlp.c_fc.weight",
        "b_fc": "transformer.h.{}.mlp.c_fc.bias",
        "w_out": "transformer.h.{}.mlp.c_proj.weight",
        "b_out": "transformer.h.{}.mlp.c_proj.bias",
    },
}
MODEL_NAMES = {
    "soma": {"wte": "wte", "wpe": "wpe", "head": "lm_head"},
    "gpt2": {
        "wte": "transformer.wte.weight",
        "wpe": "transformer.wpe.weight",
        "norm_w": "transformer.ln_f.weight",
        "norm_b": "transformer.ln_f.bias",
        "head": "lm_head.weight",
    },
}


@dataclass(frozen=True)
class Config:
    """Shape of one model, with the field names of soma_native.ModelConfig."""

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

    def attention_scale(self, layer: int) -> float:
        """What the scores of attention are multiplied by."""
        scale = (self.d_model / self.n_heads) ** -0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of every parameter; weights are stored (in, out), embeddings and head (V, d)."""
    v, d, f = config.vocab_size, config.d_model, config.d_ff
    by_role = {
        "w_qkv": (d, 3 * d), "b_qkv": (3 * d,), "w_proj": (d, d), "b_proj": (d,),
        "w_fc": (d, f), "b_fc": (f,), "w_out": (f, d), "b_out": (d,),
        "norm1_w": (d,), "norm1_b": (d,), "norm2_w": (d,), "norm2_b": (d,), "norm_w": (d,), "norm_b": (d,),
        "wte": (v, d), "wpe": (config.max_seq_len, d), "head": (v, d),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {}
    for role, name in MODEL_NAMES[config.block].items():
        if role != "head" or not config.tied_head:
            shapes[name] = by_role[role]
    for layer in range(config.n_layers):
        for role, name in LAYER_NAMES[config.block].items():
            shapes[name.format(layer)] = by_role[role]
    return shapes


def random_parameters(config: Config, seed: int, std: float = 0.15) -> Params:
    """Float64 parameters that float32 holds exactly. They differ from initial values, so that every term counts."""
    rng = np.random.default_rng(seed)
    params: Params = {}
    for name, shape in parameter_shapes(config).items():
        centre = 1.0 if ".ln_" in name and name.endswith(".weight") else 0.0
        values = centre + std * rng.standard_normal(shape)
        params[name] = values.astype(np.float32).astype(np.float64)
    return params


# ops ------------------------------------------------------------------------------------------------------------


_round_operands = contextvars.ContextVar("round_operands", default=False)


@contextlib.contextmanager
def bfloat16_products() -> Iterator[None]:
    """A context in which both operands of every matrix product are rounded to bfloat16. All else stays float64."""
    token = _round_operands.set(True)
    yield
    _round_operands.reset(token)


def round_bfloat16(x: Array) -> Array:
    """Values rounded to the nearest bfloat16, ties to even, as float32."""
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32)).astype(np.float32)


def product(a: Array, b: Array) -> Array:
    """a @ b, with rounded operands within bfloat16_products."""
    if _round_operands.get():
        a, b = round_bfloat16(a).astype(np.float64), round_bfloat16(b).astype(np.float64)
    return np.asarray(a @ b)


def linear(
    x: Array, w: Array, b: Array | None = None, activation: str = "none", residual: Array | None = None
) -> Array:
    """Matrix product y = activation(x @ w + b) + residual; x (..., k), w (k, n), b (n,), residual (..., n)."""
    y = product(x, w)
    if b is not None:
        y = y + b
    y = ACTIVATIONS[activation][0](y)
    return y if residual is None else y + residual


def linear_backward(
    dy: Array, x: Array, w: Array, b: Array | None = None, activation: str = "none"
) -> tuple[Array, Array, Array]:
    """(dx, dw, db) of y = linear(x, w, b, activation); the residual's gradient is dy itself."""
    pre = product(x, w) if b is None else product(x, w) + b
    dpre = ACTIVATIONS[activation][1](dy, pre)
    rows = dpre.reshape(-1, dpre.shape[-1])
    return product(dpre, w.T), product(x.reshape(-1, x.shape[-1]).T, rows), rows.sum(axis=0)


def norm(x: Array, eps: float, weight: Array | None = None, bias: Array | None = None) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis; var divides by n."""
    centred = x - x.mean(axis=-1, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def norm_backward(dy: Array, x: Array, eps: float, weight: Array | None = None) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias) of y = norm(x, eps, weight, bias)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    xhat = centred * rstd
    dxhat = dy if weight is None else dy * weight
    mean_d = dxhat.mean(axis=-1, keepdims=True)
    mean_dx = (dxhat * xhat).mean(axis=-1, keepdims=True)
    leading = tuple(range(x.ndim - 1))
    return rstd * (dxhat - mean_d - xhat * mean_dx), (dy * xhat).sum(axis=leading), dy.sum(axis=leading)


def softmax(x: Array) -> Array:
    """exp(x) / sum exp(x) over the last axis."""
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _split_heads(qkv: Array, n_heads: int) -> tuple[Array, Array, Array]:
    batch, length, width = qkv.shape
    parts = qkv.reshape(batch, length, 3, n_heads, width // (3 * n_heads)).transpose(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]  # each (B, H, T, head size)


def _merge_heads(x: Array) -> Array:
    batch, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def _attention_weights(q: Array, k: Array, scale: float) -> tuple[Array, Array]:
    """exp(score - maximum) for every query, 0 for later positions, and the sums over the positions."""
    length = q.shape[-2]
    scores = product(q, k.swapaxes(-1, -2)) * scale
    scores = np.where(np.tril(np.ones((length, length), dtype=bool)), scores, -1e30)
    e = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    return e, e.sum(axis=-1, keepdims=True)


def _scale(scale: float | None, head_size: int) -> float:
    return float(head_size**-0.5) if scale is None else scale


def attention(qkv: Array, n_heads: int, scale: float | None = None) -> Array:
    """Causal softmax(scale q k^T) v; qkv (B, T, 3d) = [q | k | v], each d wide and cut into heads.

    The scale is 1 / sqrt(head size) where none is given.
    """
    q, k, v = _split_heads(qkv, n_heads)
    e, total = _attention_weights(q, k, _scale(scale, q.shape[-1]))
    return _merge_heads(product(e, v) / total)


def attention_backward(dy: Array, qkv: Array, n_heads: int, scale: float | None = None) -> Array:
    """Gradient dqkv (B, T, 3d) of y = attention(qkv, n_heads, scale)."""
    q, k, v = _split_heads(qkv, n_heads)
    scale = _scale(scale, q.shape[-1])
    e, total = _attention_weights(q, k, scale)
    p = e / total
    batch, length, width = dy.shape
    do = dy.reshape(batch, length, n_heads, width // n_heads).transpose(0, 2, 1, 3)
    dp = product(do, v.swapaxes(-1, -2))
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
    parts = (product(ds, k), product(ds.swapaxes(-1, -2), q), product(p.swapaxes(-1, -2), do))
    return np.concatenate([_merge_heads(part) for part in parts], axis=-1)


def embedding(ids: Array, wte: Array, wpe: Array) -> Array:
    """h[b, t] = wte[ids[b, t]] + wpe[t]."""
    return wte[ids] + wpe[: ids.shape[1]]


def embedding_backward(dh: Array, ids: Array, vocab_size: int, max_seq_len: int) -> tuple[Array, Array]:
    """(dwte, dwpe) of h = embedding(ids, wte, wpe)."""
    dwte = np.zeros((vocab_size, dh.shape[-1]))
    np.add.at(dwte, ids, dh)
    dwpe = np.zeros((max_seq_len, dh.shape[-1]))
    dwpe[: ids.shape[1]] = dh.sum(axis=0)
    return dwte, dwpe


def cross_entropy(logits: Array, targets: Array, normalizer: int = 0) -> Any:
    """Sum of -log softmax(logits)[target] over targets != -100, divided by normalizer or by their number."""
    kept = targets != IGNORE
    rows, wanted = logits[kept], targets[kept]
    top = rows.real.max(axis=-1, keepdims=True)
    lse = np.log(np.exp(rows - top).sum(axis=-1)) + top[:, 0]
    return (lse - rows[np.arange(len(wanted)), wanted]).sum() / (normalizer or len(wanted))


def cross_entropy_backward(logits: Array, targets: Array, normalizer: int = 0) -> Array:
    """Gradient dlogits of the loss cross_entropy(logits, targets, normalizer); rows of ignored targets are 0."""
    kept = targets != IGNORE
    wanted = targets[kept]
    rows = softmax(logits[kept])
    rows[np.arange(len(wanted)), wanted] -= 1.0
    dlogits = np.zeros_like(logits)
    dlogits[kept] = rows / (normalizer or len(wanted))
    return dlogits


# model ----------------------------------------------------------------------------------------------------------


def _layer(params: Params, config: Config, layer: int) -> dict[str, Array | None]:
    names = LAYER_NAMES[config.block]
    return {role: params[names[role].format(layer)] if role in names else None for role in LAYER_NAMES["gpt2"]}


def _activation(config: Config) -> str:
    return config.activation or ("relu" if config.block == "soma" else "gelu_tanh")


def block_forward(x: Array, w: dict[str, Any], config: Config, layer: int) -> tuple[Array, dict[str, Array]]:
    """One layer: (its output, the saved values for block_backward)."""
    eps, post = NORM_EPS[config.block], config.block == "soma"
    a_in = x if post else norm(x, eps, w["norm1_w"], w["norm1_b"])
    qkv = linear(a_in, w["w_qkv"], w["b_qkv"])
    att = attention(qkv, config.n_heads, config.attention_scale(layer))
    r1 = linear(att, w["w_proj"], w["b_proj"], residual=x)
    m_in = norm(r1, eps) if post else norm(r1, eps, w["norm2_w"], w["norm2_b"])
    hidden = linear(m_in, w["w_fc"], w["b_fc"], _activation(config))
    r2 = linear(hidden, w["w_out"], w["b_out"], residual=m_in if post else r1)
    saved = {"x": x, "a_in": a_in, "qkv": qkv, "att": att, "r1": r1, "m_in": m_in, "hidden": hidden, "r2": r2}
    return (norm(r2, eps) if post else r2), saved


def block_backward(
    dy: Array, w: dict[str, Any], saved: dict[str, Array], config: Config, layer: int
) -> tuple[Array, Params]:
    """(dx, gradients by role) of block_forward."""
    eps, post = NORM_EPS[config.block], config.block == "soma"
    g: Params = {}
    dr2 = norm_backward(dy, saved["r2"], eps)[0] if post else dy
    dhidden, g["w_out"], g["b_out"] = linear_backward(dr2, saved["hidden"], w["w_out"])
    dm_in, g["w_fc"], g["b_fc"] = linear_backward(dhidden, saved["m_in"], w["w_fc"], w["b_fc"], _activation(config))
    if post:
        dr1 = norm_backward(dm_in + dr2, saved["r1"], eps)[0]
    else:
        dr1, g["norm2_w"], g["norm2_b"] = norm_backward(dm_in, saved["r1"], eps, w["norm2_w"])
        dr1 = dr1 + dr2
    datt, g["w_proj"], g["b_proj"] = linear_backward(dr1, saved["att"], w["w_proj"])
    dqkv = attention_backward(datt, saved["qkv"], config.n_heads, config.attention_scale(layer))
    da_in, g["w_qkv"], g["b_qkv"] = linear_backward(dqkv, saved["a_in"], w["w_qkv"])
    if post:
        return da_in + dr1, g
    dx, g["norm1_w"], g["norm1_b"] = norm_backward(da_in, saved["x"], eps, w["norm1_w"])
    return dx + dr1, g


def _run(params: Params, config: Config, ids: Array) -> tuple[Array, Array, list[dict[str, Array]]]:
    names = MODEL_NAMES[config.block]
    h = embedding(ids, params[names["wte"]], params[names["wpe"]])
    saved = []
    for layer in range(config.n_layers):
        h, kept = block_forward(h, _layer(params, config, layer), config, layer)
        saved.append(kept)
    final = h if config.block == "soma" else norm(h, NORM_EPS["gpt2"], params[names["norm_w"]], params[names["norm_b"]])
    return h, final, saved


def _head(params: Params, config: Config) -> Array:
    return params[MODEL_NAMES[config.block]["wte" if config.tied_head else "head"]]


def forward(params: Params, config: Config, ids: Array) -> Array:
    """Logits (B, T, V) of ids (B, T)."""
    return product(_run(params, config, ids)[1], _head(params, config).T)


def loss(params: Params, config: Config, ids: Array, targets: Array, normalizer: int = 0) -> Any:
    """Mean negative log-likelihood in nats; complex where a parameter is."""
    return cross_entropy(forward(params, config, ids), targets, normalizer)


def loss_and_grad(
    params: Params, config: Config, ids: Array, targets: Array, normalizer: int = 0
) -> tuple[float, Params]:
    """(loss, gradient of every parameter)."""
    names = MODEL_NAMES[config.block]
    h, final, saved = _run(params, config, ids)
    head = _head(params, config)
    logits = product(final, head.T)
    dlogits = cross_entropy_backward(logits, targets, normalizer)
    dh = product(dlogits, head)
    dhead = product(dlogits.reshape(-1, config.vocab_size).T, final.reshape(-1, config.d_model))
    grads: Params = {}
    if config.block == "gpt2":
        dh, grads[names["norm_w"]], grads[names["norm_b"]] = norm_backward(
            dh, h, NORM_EPS["gpt2"], params[names["norm_w"]]
        )
    for layer in reversed(range(config.n_layers)):
        dh, by_role = block_backward(dh, _layer(params, config, layer), saved[layer], config, layer)
        for role, name in LAYER_NAMES[config.block].items():
            grads[name.format(layer)] = by_role[role]
    dwte, dwpe = embedding_backward(dh, ids, config.vocab_size, config.max_seq_len)
    grads[names["wte"]] = dwte + dhead if config.tied_head else dwte
    grads[names["wpe"]] = dwpe
    if not config.tied_head:
        grads[names["head"]] = dhead
    return float(cross_entropy(logits, targets, normalizer)), grads


# optimizer ------------------------------------------------------------------------------------------------------


def clip_scale(grads: Params, max_norm: float) -> tuple[float, float]:
    """(global norm, factor on gradients): min(1, max_norm / (norm + 1e-6)) as in PyTorch; 1 where max_norm <= 0."""
    total = float(np.sqrt(sum(float((g * g).sum()) for g in grads.values())))
    return total, 1.0 if max_norm <= 0 else min(1.0, max_norm / (total + 1e-6))


@dataclass
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) after clipping; decoupled decay on tensors of two dimensions or more only."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    cautious: bool = False

    def __post_init__(self) -> None:
        """Start with no moments and no steps."""
        self.steps = 0
        self.m: Params = {}
        self.v: Params = {}

    def step(self, params: Params, grads: Params, lr: float | None = None) -> float:
        """Update params in place and return the norm before clipping."""
        rate = self.lr if lr is None else lr
        total, scale = clip_scale(grads, self.max_grad_norm)
        self.steps += 1
        b1, b2 = self.betas
        for name, p in params.items():
            g = grads[name] * scale
            self.m[name] = b1 * self.m.get(name, 0.0) + (1 - b1) * g
            self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * g * g
            m_hat = self.m[name] / (1 - b1**self.steps)
            v_hat = self.v[name] / (1 - b2**self.steps)
            update = m_hat / (np.sqrt(v_hat) + self.eps)
            if p.ndim >= 2:
                p -= rate * self.weight_decay * p * (update * p >= 0 if self.cautious else 1)
            p -= rate * update
        return total


# weights of generation ------------------------------------------------------------------------------------------


def quantize_int8(w: Array) -> tuple[Array, Array]:
    """w(in, out) as whole numbers from -127 to 127 and one scale for each output: w is about weights * scales."""
    scales = np.abs(w).max(axis=0) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, 0).astype(np.float32)
    inverse[~np.isfinite(inverse)] = 0
    return np.clip(np.rint(w * inverse), -127, 127).astype(np.float32), scales.astype(np.float32)
