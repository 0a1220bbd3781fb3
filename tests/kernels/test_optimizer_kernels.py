"""What optimizers ask of the core, one by one: symmetric products, Muon's two passes, cautious decay, averages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, chain_tolerance, normal, relative_error
from oracles.reference import Array, round_bfloat16
from soma_native._core import _ops as ops

SIZES = [1, 2, 3, 15, 16, 17, 31, 33, 64, 97, 130]


def rounded(x: Array, precision: str) -> Array:
    """What products in this precision see, in float64."""
    return round_bfloat16(x).astype(np.float64) if precision == "bfloat16" else x.astype(np.float64)


def symmetric(rng: np.random.Generator, n: int) -> Array:
    x = normal(rng, n, n)
    return np.asarray((x + x.T) / np.float32(2), np.float32)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_symmetric_product_is_the_product_and_symmetric(precision: str, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    for n in SIZES:
        for m in (1, 7, 200):
            x = normal(rng, *((m, n) if transposed else (n, m)))
            right = rounded(x.T if transposed else x, precision)
            for pairs in (False, True) if precision == "bfloat16" else (False,):
                got = ops.symmetric_product(x, transposed=transposed, precision=precision, pairs=pairs)
                assert relative_error(got, right @ right.T) <= chain_tolerance(m), (n, m)
                assert np.array_equal(got, got.T), (n, m)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_polynomial_of_a_symmetric_matrix(precision: str) -> None:
    rng = np.random.default_rng(1)
    for n in SIZES:
        x = symmetric(rng, n)
        seen = rounded(x, precision)
        got = ops.symmetric_product(x, coefficients=(3.0, -2.0, 0.5), precision=precision)
        want = 3 * np.eye(n) - 2 * x.astype(np.float64) + 0.5 * seen @ seen
        assert relative_error(got, want) <= chain_tolerance(n, 1, 1), n
        assert np.array_equal(got, got.T), n


@pytest.mark.usefixtures("isa")
def test_symmetric_products_have_the_same_bits_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(2)
    x, square = normal(rng, 301, 307), symmetric(rng, 301)
    for precision in ("float32", "bfloat16"):
        seen = set()
        for threads in (1, 2, 3):
            soma.set_num_threads(threads)
            ops.widest_job()
            made = (
                ops.symmetric_product(x, precision=precision),
                ops.symmetric_product(x, transposed=True, precision=precision),
                ops.symmetric_product(square, coefficients=(3.0, -2.0, 0.5), precision=precision),
            )
            assert ops.widest_job() == threads
            seen.add(b"".join(array.tobytes() for array in made))
        assert len(seen) == 1


@pytest.mark.usefixtures("isa", "threads")
def test_momentum_of_muon() -> None:
    rng = np.random.default_rng(3)
    for rows, cols in [(1, 1), (1, 17), (5, 1), (7, 33), (40, 1030)]:
        g, m = normal(rng, rows, cols), normal(rng, rows, cols)
        wide_g, wide_m = g.astype(np.float64), m.astype(np.float64)
        new_g, new_m, total = ops.muon_momentum(g, m, momentum=0.875, scale=0.25)
        want_m = 0.875 * wide_m + 0.125 * 0.25 * wide_g
        want_g = 0.125 * 0.25 * wide_g + 0.875 * want_m
        assert relative_error(new_m, want_m) <= chain_tolerance(1, 1)
        assert relative_error(new_g, want_g) <= chain_tolerance(1, 1, 1)
        assert total == pytest.approx(np.square(want_g).sum(), rel=chain_tolerance(256, 1, 1))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cautious", [False, True])
def test_the_step_of_muon(cautious: bool) -> None:
    rng = np.random.default_rng(4)
    for rows, cols in [(1, 1), (1, 17), (5, 1), (7, 33), (40, 1030)]:
        p, o = normal(rng, rows, cols), normal(rng, rows, cols)
        o[:, ::3] = 0  # which is no sign against the parameter
        wide = p.astype(np.float64)
        decays = wide * o >= 0 if cautious else np.ones_like(wide)
        got, cleared = ops.muon(p, o, lr=2.0**-4, scale=0.5, weight_decay=0.25, cautious=cautious)
        want = wide - 2.0**-4 * (0.5 * o + 0.25 * wide * decays)
        assert relative_error(got, want) <= chain_tolerance(1, 1)
        assert not cleared.any()
        if cautious:  # what does not decay keeps every bit of it
            still, _ = ops.muon(p, o, lr=2.0**-4, scale=0.5, weight_decay=0.0)
            assert np.array_equal(got[decays == 0], still[decays == 0])


@pytest.mark.usefixtures("isa")
def test_adamw_is_cautious_by_the_sign_of_its_own_update() -> None:
    rng = np.random.default_rng(5)
    options: dict[str, Any] = {"lr": 2.0**-4, "beta1": 0.875, "beta2": 0.9375, "eps": 2.0**-20}
    options |= {"grad_scale": 1.0, "step": 3}
    for count in (1, 15, 16, 17, 1021):
        state = [normal(rng, count) for _ in range(3)] + [np.square(normal(rng, count))]
        state[0][::5] = 0
        without, _, first, _ = ops.adamw(*state, weight_decay=0.0, **options)
        always = ops.adamw(*state, weight_decay=0.5, **options)[0]
        got = ops.adamw(*state, weight_decay=0.5, cautious=True, **options)[0]
        against = first * state[0] < 0
        assert np.array_equal(got[against], without[against])
        assert relative_error(got[~against], always[~against]) <= chain_tolerance(1, 1)


@pytest.mark.usefixtures("isa", "threads")
def test_an_average() -> None:
    rng = np.random.default_rng(6)
    for count in (1, 15, 17, 100_003):
        y, x = normal(rng, count), normal(rng, count)
        want = y.astype(np.float64) + 0.25 * (x.astype(np.float64) - y)
        assert relative_error(ops.average(y, x, 0.25), want) <= chain_tolerance(1, 1)
        assert np.array_equal(ops.average(y, x, 1.0), x)
        assert np.array_equal(ops.average(x, x, 0.3), x)
        x[:] = np.inf
        assert np.array_equal(ops.average(y, x, 1.0), x)


@pytest.mark.usefixtures("isa")
def test_scaling_into_pairs_rounds_once() -> None:
    rng = np.random.default_rng(7)
    for rows, cols in [(1, 1), (3, 31), (5, 33), (2, 200)]:
        x = normal(rng, rows, cols)
        scaled = ops.scale(x, 0.3)
        assert np.array_equal(scaled, x * np.float32(0.3))
        assert np.array_equal(ops.scale(x, 0.3, pairs=True), round_bfloat16(scaled))


@pytest.mark.usefixtures("isa", "threads")
def test_moments_do_not_stay_denormal_and_the_caller_s_numbers_do() -> None:
    """0.9 times the least number above zero is rounded to itself."""
    tiny, zeros = np.full((512, 512), 1e-45, np.float32), np.zeros((512, 512), np.float32)
    options = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 1.0, "step": 9}
    first, second = ops.adamw(zeros, zeros, tiny, tiny, **options)[2:]
    momentum = ops.muon_momentum(zeros, tiny, momentum=0.95, scale=1.0)[1]
    assert not any(array.any() for array in (first, second, momentum))
    assert ops.scale(tiny, 2.0).any() == 0
    assert np.float32(1e-45) * np.float32(1) != 0
    assert (tiny * np.float32(2) > tiny).all()


def test_a_large_symmetric_product_is_near_one_in_float64() -> None:
    x = normal(np.random.default_rng(8), 384, 1500)
    got = ops.symmetric_product(x, precision="bfloat16")
    seen = round_bfloat16(x).astype(np.float64)
    assert relative_error(got, seen @ seen.T) <= max(chain_tolerance(1500), bfloat16_tolerance(0))
