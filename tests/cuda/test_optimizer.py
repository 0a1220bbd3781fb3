"""The passes of optimizers as CUDA kernels: the bits of a processor with FMA, and sums against float64."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from helpers.cuda import (
    I64,
    AdamWOptions,
    AdamWRange,
    DeviceMatrix,
    F,
    MuonOptions,
    Numbers,
    empty,
    in_every_order,
    lib,
)
from helpers.numerics import normal
from oracles.ops import Array
from soma_native import _core
from soma_native._core import _ops as cpu

SHAPES = [(1, 1), (3, 7), (2, 64), (5, 33), (3, 300)]


def assert_as_on_the_processor(got: Any, want: Any) -> None:
    """The same bits; a level without FMA rounds a product once more before it adds."""
    for a, b in zip(got, want, strict=True):
        if _core.active_isa() in ("scalar", "sse"):
            assert np.allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert np.array_equal(a, b)


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("step", [1, 10])
def test_adamw(cautious: bool, step: int) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 1023, 1025, 2500):
        p, g, m = (normal(rng, n) for _ in range(3))
        v = normal(rng, n) ** 2
        options = AdamWOptions(1e-2, 0.9, 0.95, 1e-8, 0.5, step, 0.1, cautious)

        def compute(arrays: tuple[Array, ...] = (p, g, m, v), options: Any = options) -> tuple[Array, ...]:
            on_device = [Numbers(x) for x in arrays]
            everything = AdamWRange(0, len(arrays[0]), True)
            lib.soma_adamw(*(x.pointer for x in on_device), ctypes.byref(everything), I64(1), ctypes.byref(options))
            return tuple(x.read() for x in on_device)

        want = cpu.adamw(
            *(p, g, m, v),
            lr=1e-2,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            grad_scale=0.5,
            step=step,
            cautious=cautious,
        )
        assert_as_on_the_processor(in_every_order(compute), want)


def test_adamw_of_more_ranges_than_one_launch_takes() -> None:
    """Ranges lie apart; the second moments are one behind the other; every other range does not decay."""
    rng = np.random.default_rng(1)
    ranges = [(i * 40, 1 + i % 30, i % 2 == 0) for i in range(150)] + [(6000, 3000, True)]
    total = sum(size for _, size, _ in ranges)
    p, g, m, v = normal(rng, 9000), normal(rng, 9000), normal(rng, 9000), normal(rng, total) ** 2

    def step(decay: float, decays: bool, *arrays: Array) -> tuple[Array, ...]:
        on_device = [Numbers(x) for x in arrays]
        listed = (AdamWRange * len(ranges))(*(AdamWRange(a, n, d and decays) for a, n, d in ranges))
        options = AdamWOptions(1e-2, 0.9, 0.95, 1e-8, 1.0, 1, decay, False)
        lib.soma_adamw(*(x.pointer for x in on_device), listed, I64(len(ranges)), ctypes.byref(options))
        return tuple(x.read() for x in on_device)

    got = step(0.5, True, p, g, m, v)
    before = 0
    for offset, size, decays in ranges:
        at, moments = slice(offset, offset + size), slice(before, before + size)
        options = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "grad_scale": 1.0, "step": 1}
        want = cpu.adamw(p[at], g[at], m[at], v[moments], weight_decay=0.5 * decays, **options)
        assert_as_on_the_processor((got[0][at], got[1][at], got[2][at], got[3][moments]), want)
        before += size
    outside = np.ones(9000, bool)
    for offset, size, _ in ranges:
        outside[offset : offset + size] = False
    assert np.array_equal(got[0][outside], p[outside]) and np.array_equal(got[1][outside], g[outside])


def test_sum_squares() -> None:
    rng = np.random.default_rng(2)
    for n in (0, 1, 257, 16384, 40001):
        x = normal(rng, n)
        on_device = Numbers(x)
        got = in_every_order(lambda memory=on_device, n=n: np.array(lib.soma_sum_squares(memory.pointer, I64(n))))
        assert np.isclose(got, (x.astype(float) ** 2).sum(), rtol=1e-12, atol=0)


def test_the_momentum_of_muon() -> None:
    rng = np.random.default_rng(3)
    for rows, c in SHAPES:
        g, m = normal(rng, rows, c), normal(rng, rows, c)

        def compute(g: Array = g, m: Array = m) -> tuple[Array, Array, Array]:
            grads, moments = DeviceMatrix(g), DeviceMatrix(m)
            total = lib.soma_muon_momentum(grads.out, moments.out, F(0.95), F(0.5))
            return grads.read(), moments.read(), np.array(total)

        made, moments, total = in_every_order(compute)
        assert_as_on_the_processor((made, moments), cpu.muon_momentum(g, m, momentum=0.95, scale=0.5)[:2])
        assert np.isclose(total, (made.astype(float) ** 2).sum(), rtol=1e-12)


@pytest.mark.parametrize("pairs", [True, False])
def test_scale(pairs: bool) -> None:
    rng = np.random.default_rng(4)
    for rows, c in SHAPES:
        x = normal(rng, rows, c)

        def compute(x: Array = x) -> Array:
            y = empty(x.shape, pairs)
            lib.soma_scale(y.out, DeviceMatrix(x).operand, F(0.3))
            return y.read()

        assert np.array_equal(in_every_order(compute), cpu.scale(x, 0.3, pairs=pairs))


@pytest.mark.parametrize("cautious", [False, True])
def test_muon(cautious: bool) -> None:
    rng = np.random.default_rng(5)
    for rows, c in SHAPES:
        p, o = normal(rng, rows, c), normal(rng, rows, c)
        options = MuonOptions(0.02, 0.7, 0.1, cautious)

        def compute(p: Array = p, o: Array = o, options: Any = options) -> tuple[Array, Array]:
            parameters, factor = DeviceMatrix(p), DeviceMatrix(o)
            lib.soma_muon(parameters.out, factor.out, ctypes.byref(options))
            return parameters.read(), factor.read()

        want = cpu.muon(p, o, lr=0.02, scale=0.7, weight_decay=0.1, cautious=cautious)
        assert_as_on_the_processor(in_every_order(compute), want)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_average(rate: float) -> None:
    rng = np.random.default_rng(6)
    for n in (1, 255, 257, 1000):
        y, x = normal(rng, n), normal(rng, n)

        def compute(y: Array = y, x: Array = x) -> tuple[Array]:
            averaged, other = Numbers(y), Numbers(x)
            lib.soma_average(averaged.pointer, other.pointer, F(rate), I64(len(y)))
            return (averaged.read(),)

        assert_as_on_the_processor(in_every_order(compute), (cpu.average(y, x, rate),))


def test_moments_do_not_stay_denormal() -> None:
    """0.9 times the least number above zero is rounded to itself."""
    tiny, zeros = np.full(300, 1e-45, np.float32), np.zeros(300, np.float32)
    p, g, m, v = (Numbers(x) for x in (zeros, zeros, tiny, -tiny))
    options = AdamWOptions(1e-2, 0.9, 0.95, 1e-8, 1.0, 9, 0.1, False)
    everything = AdamWRange(0, 300, True)
    lib.soma_adamw(*(x.pointer for x in (p, g, m, v)), ctypes.byref(everything), I64(1), ctypes.byref(options))
    moments = DeviceMatrix(tiny.reshape(3, 100))
    lib.soma_muon_momentum(DeviceMatrix(zeros.reshape(3, 100)).out, moments.out, F(0.95), F(1.0))
    assert not any(x.any() for x in (m.read(), v.read(), moments.read()))
