"""The operations of all blocks in float64 NumPy: forward, and hand-written backward.

Every forward function takes complex numbers: comparisons look at the real part, and there is no abs. So Im f(x + ih)
/ h is the derivative of a real function f without cancellation. This proves the backward functions.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles.activations import ACTIVATIONS

Array = NDArray[Any]  # float64, or complex128 during a complex step
Params = dict[str, Array]

IGNORE = -100


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


def split_heads(qkv: Array, n_heads: int, kv_heads: int | None = None) -> tuple[Array, Array, Array]:
    """q (B, H, T, D), k and v (B, K, T, D) of qkv (B, T, q | k | v)."""
    shared = kv_heads or n_heads
    heads = qkv.reshape(*qkv.shape[:2], n_heads + 2 * shared, -1).transpose(0, 2, 1, 3)
    return heads[:, :n_heads], heads[:, n_heads : n_heads + shared], heads[:, n_heads + shared :]


def merge_heads(x: Array) -> Array:
    """Heads (B, H, T, D) side by side, (B, T, H D)."""
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


def attention(qkv: Array, n_heads: int, kv_heads: int | None = None, scale: float | None = None) -> Array:
    """Causal softmax(scale q k^T) v; qkv (B, T, q | k | v); n_heads / kv_heads heads of q share one of k and v.

    The scale is 1 / sqrt(head size) where none is given.
    """
    q, k, v = split_heads(qkv, n_heads, kv_heads)
    k, v = (x.repeat(n_heads // x.shape[1], axis=1) for x in (k, v))
    e, total = _attention_weights(q, k, _scale(scale, q.shape[-1]))
    return merge_heads(product(e, v) / total)


def attention_backward(
    dy: Array, qkv: Array, n_heads: int, kv_heads: int | None = None, scale: float | None = None
) -> Array:
    """Gradient dqkv of y = attention(qkv, n_heads, kv_heads, scale)."""
    q, k, v = split_heads(qkv, n_heads, kv_heads)
    scale = _scale(scale, q.shape[-1])
    shared = n_heads // k.shape[1]
    k, v = (x.repeat(shared, axis=1) for x in (k, v))
    e, total = _attention_weights(q, k, scale)
    p = e / total
    batch, length, width = dy.shape
    do = dy.reshape(batch, length, n_heads, width // n_heads).transpose(0, 2, 1, 3)
    dp = product(do, v.swapaxes(-1, -2))
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
    parts = [product(ds, k), product(ds.swapaxes(-1, -2), q), product(p.swapaxes(-1, -2), do)]
    for i in (1, 2):
        parts[i] = parts[i].reshape(batch, -1, shared, length, q.shape[-1]).sum(axis=2)
    return np.concatenate([merge_heads(part) for part in parts], axis=-1)


def angles(length: int, size: int, theta: float) -> Array:
    """The angles of rotary positions, (T, D / 2): position times theta^(-2i / D)."""
    return np.arange(length)[:, None] * theta ** (-2.0 * np.arange(size // 2) / size)


def rotate(x: Array, theta: float, sign: float = 1.0) -> Array:
    """Each head (..., T, D) turned: element i of both halves is a point of a plane; sign -1 turns back."""
    turn = angles(*x.shape[-2:], theta)
    cos, sin = np.cos(turn), sign * np.sin(turn)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Array, eps: float, weight: Array | None = None) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def rms_norm_backward(dy: Array, x: Array, eps: float, weight: Array | None = None) -> tuple[Array, Array]:
    """(dx, dweight) of y = rms_norm(x, eps, weight)."""
    rstd = 1.0 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    xhat, dxhat = x * rstd, dy if weight is None else dy * weight
    dx = rstd * (dxhat - xhat * (dxhat * xhat).mean(axis=-1, keepdims=True))
    return dx, (dy * xhat).sum(axis=tuple(range(x.ndim - 1)))


def silu(x: Array) -> Array:
    """x / (1 + e^-x)."""
    return x / (1.0 + np.exp(-x))


def swiglu(hidden: Array) -> Array:
    """silu(gate) up of hidden = gate | up."""
    gate, up = np.split(hidden, 2, axis=-1)
    return silu(gate) * up


def swiglu_backward(dy: Array, hidden: Array) -> Array:
    """Gradient of hidden of y = swiglu(hidden)."""
    gate, up = np.split(hidden, 2, axis=-1)
    s = 1.0 / (1.0 + np.exp(-gate))
    return np.concatenate([dy * up * (s + gate * s * (1.0 - s)), dy * gate * s], axis=-1)


def embedding(ids: Array, wte: Array, wpe: Array | None = None) -> Array:
    """h[b, t] = wte[ids[b, t]] + wpe[t]; without wpe, wte[ids[b, t]] alone."""
    return wte[ids] if wpe is None else wte[ids] + wpe[: ids.shape[1]]


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


def distillation(logits: Array, q: Array, targets: Array, share: float, normalizer: int = 0) -> Any:
    """(1 - share) cross-entropy + share KL(q || softmax(logits)) over targets != -100, divided as cross_entropy is."""
    kept = targets != IGNORE
    rows, taught = logits[kept], q[kept]
    top = rows.real.max(axis=-1, keepdims=True)
    log_p = rows - top - np.log(np.exp(rows - top).sum(axis=-1, keepdims=True))
    log_q = np.log(np.where(taught > 0, taught, 1.0))
    divergence = (taught * (log_q - log_p)).sum() / (normalizer or kept.sum())
    return (1 - share) * cross_entropy(logits, targets, normalizer) + share * divergence


def distillation_backward(logits: Array, q: Array, targets: Array, share: float, normalizer: int = 0) -> Array:
    """Gradient dlogits of the loss distillation(logits, q, targets, share, normalizer)."""
    kept = targets != IGNORE
    wanted = targets[kept]
    rows = softmax(logits[kept]) - share * q[kept]
    rows[np.arange(len(wanted)), wanted] -= 1.0 - share
    dlogits = np.zeros_like(logits)
    dlogits[kept] = rows / (normalizer or len(wanted))
    return dlogits
