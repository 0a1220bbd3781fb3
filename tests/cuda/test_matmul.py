"""Matrix products as CUDA kernels: layouts, odd sizes, epilogues, in both precisions, in several orders of threads."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from helpers.cuda import (
    AttentionShape,
    DeviceMatrix,
    Dropout,
    Epilogue,
    Matrix,
    Numbers,
    Quadratic,
    RotatedHeads,
    Rotation,
    SwigluGradient,
    empty,
    in_every_order,
    lib,
)
from helpers.numerics import bfloat16_tolerance, chain_tolerance, normal, relative_error
from oracles import ops as ref
from oracles.activations import ACTIVATIONS
from oracles.ops import Array, round_bfloat16
from soma_native import _core
from soma_native._core import _ops as cpu

PRECISIONS = ["float32", "bfloat16"]
SIZES = [(1, 1, 1), (3, 5, 7), (33, 9, 65), (130, 40, 33), (17, 131, 100)]


def address(owner: Any) -> Any:
    """Of a struct, or of memory."""
    return owner.memory.address if isinstance(owner, Numbers) else ctypes.addressof(owner._obj)


def product(
    c: DeviceMatrix, a: DeviceMatrix, b: DeviceMatrix, precision: str = "float32", **epilogue: Any
) -> DeviceMatrix:
    """C = a b with this epilogue; matrices in it are given by their `out` or `operand`, rows by Numbers."""
    plain = {k: v if isinstance(v, bool | Dropout) else address(v) for k, v in epilogue.items()}
    lib.soma_matmul(
        c.out, a.operand, b.operand, ctypes.byref(Epilogue(**plain)), ctypes.c_bool(precision == "bfloat16")
    )
    return c


def seen(x: Array, precision: str) -> Array:
    """What products in this precision see, in float64."""
    return (round_bfloat16(x) if precision == "bfloat16" else x).astype(float)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_products_of_odd_sizes(precision: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    for case, (m, n, k) in enumerate(SIZES):
        a, b = normal(rng, m, k), normal(rng, k, n)
        stored = [np.ascontiguousarray(x.T) if t == "t" else x for x, t in zip((a, b), layout, strict=True)]
        pairs = precision == "bfloat16" and case % 2 == 0

        def compute(stored: Any = stored, shape: Any = (m, n), pairs: bool = pairs) -> Array:
            operands = [DeviceMatrix(x, pairs, transposed=t == "t") for x, t in zip(stored, layout, strict=True)]
            return product(empty(shape), *operands, precision).read()

        got = in_every_order(compute)
        assert relative_error(got, seen(a, precision) @ seen(b, precision)) <= chain_tolerance(k)
        if precision == "float32" and layout != "tt" and _core.active_isa() not in ("scalar", "sse"):
            assert np.array_equal(got, cpu.matmul(*stored, layout=layout))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("relu", [True, False])
def test_bias_residual_dropout_and_relu(precision: str, relu: bool) -> None:
    rng = np.random.default_rng(1)
    m, n, k = 19, 37, 50
    a, b, bias, residual = normal(rng, m, k), normal(rng, k, n), normal(rng, n), normal(rng, m, n)
    how = Dropout(0.0 if relu else 0.3, 7, 2)

    def compute() -> Array:
        terms = {"bias": Numbers(bias), "residual": Numbers(residual), "dropout": how, "relu": relu}
        return product(empty((m, n)), DeviceMatrix(a), DeviceMatrix(b), precision, **terms).read()

    ones, mask = DeviceMatrix(np.ones((m, n), np.float32)), empty((m, n))
    lib.soma_dropout(mask.out, ones.operand, ctypes.byref(how))
    want = (seen(a, precision) @ seen(b, precision) + bias) * mask.read() + residual
    assert relu or 0 < (mask.read() == 0).mean() < 0.6
    assert relative_error(in_every_order(compute), np.maximum(want, 0) if relu else want) <= chain_tolerance(k, 1, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onto_with_column_sums(precision: str) -> None:
    """A gradient of weights: dw += x^T dy, sums += the rows of dy as the product sees them."""
    rng = np.random.default_rng(2)
    for rows, m, n in [(1, 3, 5), (45, 20, 33), (150, 7, 31)]:
        x, dy, onto, sums = normal(rng, rows, m), normal(rng, rows, n), normal(rng, m, n), normal(rng, n)

        def compute(arrays: Any = (x, dy, onto, sums)) -> tuple[Array, Array]:
            added = Numbers(arrays[3])
            dw, left = DeviceMatrix(arrays[2]), DeviceMatrix(arrays[0], transposed=True)
            product(dw, left, DeviceMatrix(arrays[1]), precision, accumulate=True, column_sums=added)
            return dw.read(), added.read()

        dw, added = in_every_order(compute)
        used = seen(dy, precision)
        assert relative_error(dw, onto + seen(x, precision).T @ used) <= chain_tolerance(rows, 1)
        assert np.abs(added - (sums + used.sum(axis=0))).max() <= chain_tolerance(rows, 1) * np.abs(used).sum()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("pairs", [True, False])
def test_gelu_and_its_gradient(activation: str, pairs: bool) -> None:
    """Both are those of the processor, to the bit where the product is; a product with 1 changes nothing."""
    rng = np.random.default_rng(3)
    m, n = 9, 70
    x = 4 * normal(rng, m, n)
    x[0, :6] = [0, -0.0, 60, -60, 12.9, -12.9]
    dy, one = normal(rng, m, n), DeviceMatrix(np.eye(n, dtype=np.float32))
    erf = activation == "gelu"

    def forward() -> tuple[Array, Array]:
        y = empty((m, n), pairs)
        c = product(empty((m, n)), DeviceMatrix(x), one, gelu=y.out, gelu_erf=erf)
        return c.read(), y.read()

    def backward() -> tuple[Array, Array]:
        y, before = empty((m, n), pairs), Numbers(x)
        through = {"gelu_input": before, "gelu_output": y.out, "gelu_erf": erf}
        return product(empty((m, n)), DeviceMatrix(dy), one, **through).read(), y.read()

    c, y = in_every_order(forward)
    dx, again = in_every_order(backward)
    assert np.array_equal(c, x) and np.array_equal(y, again)
    f, gradient = ACTIVATIONS[activation]
    assert relative_error(y, f(x.astype(float))) <= chain_tolerance(1, 1) + pairs * 2.0**-8
    assert relative_error(dx, gradient(dy.astype(float), x.astype(float))) <= chain_tolerance(1, 1, 1)
    if _core.active_isa() not in ("scalar", "sse"):
        want = cpu.gelu(x, activation=activation)[1]
        assert np.array_equal(y, round_bfloat16(want) if pairs else want)
        assert np.array_equal(dx, cpu.gelu_backward(dy, x, activation=activation)[0])


@pytest.mark.parametrize("pairs", [True, False])
def test_the_gradients_of_relu_and_swiglu(pairs: bool) -> None:
    rng = np.random.default_rng(4)
    m, n, k = 21, 38, 30
    a, b, y, hidden = normal(rng, m, k), normal(rng, k, n), normal(rng, m, n), normal(rng, m, 2 * n)
    wide = a.astype(float) @ b

    def relu() -> Array:
        output = DeviceMatrix(y, pairs)
        c = product(empty((m, n), pairs), DeviceMatrix(a), DeviceMatrix(b), relu_output=output.operand)
        return c.read()

    def swiglu() -> tuple[Array, Array]:
        before, gradient, made = DeviceMatrix(hidden), empty((m, 2 * n), pairs), empty((m, n), pairs)
        whole = SwigluGradient(before.operand._obj, gradient.out._obj, made.out._obj)
        nowhere = empty((m, n))
        nowhere.out = ctypes.byref(Matrix(None, m, n, n, False))
        product(nowhere, DeviceMatrix(a), DeviceMatrix(b), swiglu_gradient=ctypes.byref(whole))
        return gradient.read(), made.read()

    rounding = pairs * 2.0**-8
    assert relative_error(in_every_order(relu), wide * (y > 0)) <= chain_tolerance(k) + rounding
    gradient, made = in_every_order(swiglu)
    assert (
        relative_error(gradient, ref.swiglu_backward(wide, hidden.astype(float))) <= chain_tolerance(k, 1, 1) + rounding
    )
    assert relative_error(made, ref.swiglu(hidden.astype(float))) <= chain_tolerance(1, 1) + rounding


@pytest.mark.parametrize("precision", PRECISIONS)
def test_symmetric_products_and_their_polynomial(precision: str) -> None:
    rng = np.random.default_rng(5)
    for n, k in [(1, 3), (33, 20), (140, 9)]:
        x, square = normal(rng, n, k), normal(rng, n, n)
        square = (square + square.T) / np.float32(2)

        def gram(x: Array = x) -> Array:
            stored = DeviceMatrix(x)
            right = DeviceMatrix(x, transposed=True)
            return product(empty((len(x), len(x))), stored, right, precision, symmetric=True).read()

        def polynomial(s: Array = square) -> Array:
            stored = DeviceMatrix(s)
            how = Quadratic(3.0, -2.0, 0.5, ctypes.addressof(stored.out._obj))
            c = empty(s.shape)
            return product(c, stored, stored, precision, symmetric=True, quadratic=ctypes.byref(how)).read()

        got = in_every_order(gram)
        assert np.array_equal(got, got.T)
        assert relative_error(got, seen(x, precision) @ seen(x, precision).T) <= chain_tolerance(k)
        got, used = in_every_order(polynomial), seen(square, precision)
        assert np.array_equal(got, got.T)
        assert relative_error(got, 3 * np.eye(n) - 2 * square.astype(float) + used @ used / 2) <= chain_tolerance(
            n, 1, 1
        )


@pytest.mark.parametrize("pairs", [True, False])
def test_swiglu_of_a_product(pairs: bool) -> None:
    rng = np.random.default_rng(7)
    x, w = normal(rng, 19, 30), normal(rng, 30, 2 * 38)

    def compute() -> tuple[Array, Array]:
        y = empty((19, 38), pairs)
        return product(empty((19, 76)), DeviceMatrix(x), DeviceMatrix(w), swiglu=y.out).read(), y.read()

    hidden, y = in_every_order(compute)
    assert relative_error(y, ref.swiglu(hidden.astype(float))) <= chain_tolerance(1, 1) + pairs * 2.0**-8
    if _core.active_isa() not in ("scalar", "sse"):
        want = cpu.swiglu_product(x, w)[1]
        assert np.array_equal(y, round_bfloat16(want) if pairs else want)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 6), (1, 1, 2), (2, 1, 70)])
def test_rotated_heads_of_a_product(pairs: bool, gains: bool, heads: int, kv_heads: int, size: int) -> None:
    """Also in the place of the product itself, and against the processor."""
    rng = np.random.default_rng(8)
    batch, length, width = 2, 5, (heads + 2 * kv_heads) * size
    x, w = normal(rng, batch * length, 20), normal(rng, 20, width)
    angles = ref.angles(length, size, 100.0)
    turns = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    gain = [normal(rng, size), normal(rng, size)] if gains else [None, None]

    def compute(in_place: bool = False) -> Array:
        table, weights = Numbers(turns), [g if g is None else Numbers(g) for g in gain]
        c = empty((batch * length, width))
        out = c if in_place else empty((batch * length, width), pairs)
        rotation = Rotation(address(table), *(g and address(g) for g in weights), 1e-5)
        shape = AttentionShape(batch, length, heads, size, kv_heads, 1.0)
        how = ctypes.byref(RotatedHeads(rotation, shape, out.out._obj))
        product(c, DeviceMatrix(x), DeviceMatrix(w), rotated=how)
        return out.read()

    got = in_every_order(compute)
    options = {"q_gain": gain[0], "k_gain": gain[1], "eps": 1e-5} if gains else {}
    stacked = x.reshape(batch, length, -1)
    want = cpu.rotated_product(stacked, w, turns, heads, kv_heads=kv_heads, **options)[1].reshape(got.shape)
    assert relative_error(got, want) <= chain_tolerance(20, size, 1) + pairs * 2.0**-8
    if not pairs:
        assert np.array_equal(in_every_order(lambda: compute(in_place=True)), got)
        if not gains and _core.active_isa() not in ("scalar", "sse"):
            assert np.array_equal(got, want)


def test_a_product_in_pairs_is_the_rounded_product() -> None:
    rng = np.random.default_rng(6)
    a, b = normal(rng, 20, 64), normal(rng, 64, 45)
    floats = product(empty((20, 45)), DeviceMatrix(a, True), DeviceMatrix(b, True), "bfloat16").read()
    pairs = product(empty((20, 45), True), DeviceMatrix(a, True), DeviceMatrix(b, True), "bfloat16").read()
    assert np.array_equal(pairs, round_bfloat16(floats))
    want = cpu.matmul(a, b, precision="bfloat16")
    assert relative_error(floats, want) <= bfloat16_tolerance(1)
