"""Attention and its gradient as CUDA kernels: heads of all kinds, lengths beside tiles, in every order."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import numpy as np
import pytest

from helpers.cuda import (
    AttentionShape,
    DeviceMatrix,
    Numbers,
    Rotation,
    RotationGradient,
    empty,
    in_every_order,
    lib,
)
from helpers.numerics import chain_tolerance, normal, relative_error
from oracles import ops as ref
from oracles.ops import Array, round_bfloat16

EPS = 1e-5
# batch, length, heads, heads of keys, size of a head
SHAPES = {
    "one position": (2, 1, 1, 1, 3),
    "odd heads": (1, 70, 2, 1, 5),
    "pieces of 16 bytes": (2, 33, 4, 2, 16),
    "a tile of queries and one more": (1, 129, 2, 1, 8),
    "wide heads": (1, 34, 2, 2, 96),
    "heads in two parts": (1, 40, 2, 1, 136),
}
KINDS = ["float32", "bfloat16", "pairs"]


class Case:
    """One call forward and backward; `kind` is the precision, or bfloat16 with qkv and its gradient in pairs."""

    def __init__(self, shape: tuple[int, ...], kind: str, scale: float | None = None, seed: int = 0) -> None:
        """Draw q | k | v and the gradient of the output."""
        rng = np.random.default_rng(seed)
        self.batch, self.length, self.heads, self.kv, self.size = shape
        self.rows, self.kind = self.batch * self.length, kind
        self.scale = self.size**-0.5 if scale is None else scale
        self.width = (self.heads + 2 * self.kv) * self.size
        self.qkv, self.dout = normal(rng, self.rows, self.width), normal(rng, self.rows, self.heads * self.size)
        place = (self.batch, self.length, self.heads, self.size, self.kv, self.scale)
        self.shape = ctypes.byref(AttentionShape(*place))
        self.wide = ctypes.c_bool(kind != "float32")

    def forward(self, qkv: Array | None = None) -> tuple[Array, Array]:
        """(out, lse)."""
        out = empty((self.rows, self.heads * self.size))
        lse = Numbers(np.zeros((self.batch, self.heads, self.length), np.float32), upload=False)
        operand = DeviceMatrix(self.qkv if qkv is None else qkv, self.kind == "pairs").operand
        lib.soma_attention(out.out, lse.pointer, operand, self.shape, self.wide)
        return out.read(), lse.read()

    def backward(self, out: Array, lse: Array, rotated: Any = None) -> Array:
        """Gradient of qkv."""
        dqkv, pairs = empty((self.rows, self.width), self.kind == "pairs"), self.kind == "pairs"
        operands = [DeviceMatrix(self.dout), DeviceMatrix(out), DeviceMatrix(self.qkv, pairs)]
        inputs, saved = [x.operand for x in operands], Numbers(lse)
        lib.soma_attention_backward(dqkv.out, *inputs, saved.pointer, self.shape, rotated, self.wide)
        return dqkv.read()

    def seen(self, x: Array) -> Array:
        """What products in this precision see, by sequences, in float64."""
        return (x if self.kind == "float32" else round_bfloat16(x)).astype(float).reshape(self.batch, self.length, -1)

    def want(self) -> tuple[Array, Array]:
        """(out, dqkv) in float64, by rows."""
        qkv = self.seen(self.qkv)
        out = ref.attention(qkv, self.heads, self.kv, self.scale)
        dqkv = ref.attention_backward(self.seen(self.dout), qkv, self.heads, self.kv, self.scale)
        return out.reshape(self.rows, -1), dqkv.reshape(self.rows, -1)

    def tolerance(self, sums: int) -> float:
        """Of `sums` products in a row; in bfloat16 each rounds one operand more."""
        rounding = 0.0 if self.kind == "float32" else 2.0**-8 * sums**0.5
        return chain_tolerance(*[self.size, self.length, 1] * sums) + rounding


def usable(shape: tuple[int, ...], kind: str) -> bool:
    """Heads of an odd size are never pairs."""
    return kind != "pairs" or shape[-1] % 2 == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_attention_and_its_gradient(name: str, kind: str) -> None:
    shape = SHAPES[name]
    case = Case(shape if usable(shape, kind) else (*shape[:-1], shape[-1] + 1), kind)
    out, lse = in_every_order(case.forward)
    dqkv = in_every_order(lambda: case.backward(out, lse))
    want, gradient = case.want()
    assert relative_error(out, want) <= case.tolerance(1)
    q, k, _ = ref.split_heads(case.seen(case.qkv), case.heads, case.kv)
    scores = case.scale * q @ k.repeat(case.heads // case.kv, axis=1).swapaxes(-1, -2)
    scores[..., ~np.tril(np.ones((case.length, case.length), bool))] = -np.inf
    exact = np.log(np.exp(scores - scores.max(axis=-1, keepdims=True)).sum(axis=-1)) + scores.max(axis=-1)
    assert np.abs(lse - exact).max() <= chain_tolerance(case.size, case.length) * np.abs(scores[scores > -np.inf]).max()
    at = [0, case.heads * case.size, (case.heads + case.kv) * case.size, case.width]
    for begin, end in itertools.pairwise(at):  # dq, dk and dv each; of one position dq and dk are 0
        part = gradient[:, begin:end]
        size = np.linalg.norm(part) if case.length > 1 else np.linalg.norm(gradient)
        assert np.linalg.norm(dqkv[:, begin:end] - part) <= case.tolerance(3) * size


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_any_size(kind: str) -> None:
    """Large scores and a scale of 1 overflow nothing, and a position attends to itself where its score is far above."""
    case = Case((1, 67, 2, 2, 8), kind, scale=1.0)
    case.qkv *= np.float32(20)
    out, lse = in_every_order(case.forward)
    assert np.isfinite(out).all() and np.isfinite(lse).all() and np.abs(lse).max() > 300
    assert relative_error(out, case.want()[0]) <= case.tolerance(1) * 8  # a score of 1000 is off by 1000 eps
    dqkv = case.backward(out, lse)
    assert np.isfinite(dqkv).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_a_later_one(kind: str) -> None:
    case = Case((2, 66, 2, 1, 16), kind)
    out, lse = case.forward()
    changed = case.qkv.copy().reshape(2, 66, -1)
    changed[:, 40:] += 1
    again, lse_again = case.forward(changed.reshape(case.qkv.shape))
    first, second = (x.reshape(2, 66, -1) for x in (out, again))
    assert np.array_equal(first[:, :40], second[:, :40])
    assert np.array_equal(lse[:, :, :40], lse_again[:, :, :40])
    assert not np.array_equal(first[:, 40], second[:, 40])


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_not_finite_is_seen(kind: str) -> None:
    case = Case((1, 5, 1, 1, 8), kind)
    case.qkv[2, 3] = np.nan
    out, lse = case.forward()
    assert np.isfinite(out[:2]).all() and np.isnan(out[2]).all() and np.isnan(lse[0, 0, 2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("size", [6, 136])
def test_the_gradient_before_the_rotation(kind: str, gains: bool, size: int) -> None:
    """Heads are turned back, with gains through their norm too; a gain gets a gradient for each head."""
    case = Case((2, 19, 4, 2, size), kind, seed=1)
    rng = np.random.default_rng(2)
    before = normal(rng, case.rows, case.width)
    q_gain, k_gain = normal(rng, size) + 1, normal(rng, size) + 1
    angles = ref.angles(case.length, size, 10000.0)
    turns = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    out, lse = case.forward()
    plain = case.backward(out, lse)

    def rotated() -> tuple[Array, ...]:
        place, source = Numbers(turns), DeviceMatrix(before)
        weights = [Numbers(g) for g in (q_gain, k_gain)]
        made = [Numbers(np.zeros((case.batch * n, size), np.float32), upload=False) for n in (case.heads, case.kv)]
        given = [w.memory.address if gains else None for w in weights]
        to = [m.memory.address if gains else None for m in made]
        how = RotationGradient(Rotation(place.memory.address, *given, EPS), source.operand._obj, *to)
        dqkv = case.backward(out, lse, ctypes.byref(how))
        return (dqkv, *(m.read() for m in made)) if gains else (dqkv,)

    dqkv, *sums = in_every_order(rotated)
    exact = case.want()[1] if kind == "pairs" else plain.astype(float)  # pairs: plain was rounded once more
    parts = list(ref.split_heads(exact.reshape(case.batch, case.length, -1), case.heads, case.kv))
    inputs = ref.split_heads(before.astype(float).reshape(case.batch, case.length, -1), case.heads, case.kv)
    tolerance = case.tolerance(3) * 2 if kind == "pairs" else chain_tolerance(size, size, 1, 1) * 4
    for i, gain in enumerate((q_gain, k_gain)):
        parts[i] = ref.rotate(parts[i], 10000.0, -1.0)
        if gains:
            rstd = 1 / np.sqrt((inputs[i] ** 2).mean(axis=-1, keepdims=True) + EPS)
            want = (parts[i] * inputs[i] * rstd).sum(axis=2).reshape(-1, size)
            assert relative_error(sums[i], want) <= tolerance + chain_tolerance(case.length)
            parts[i] = ref.rms_norm_backward(parts[i], inputs[i], EPS, gain)[0]
    want = np.concatenate([ref.merge_heads(part) for part in parts], axis=-1).reshape(case.rows, -1)
    assert relative_error(dqkv, want) <= tolerance
