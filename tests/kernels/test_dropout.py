"""Dropout and masked tokens as operations: rates, independence, the same masks on every level and in every part."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from helpers.noise import core_noise, factors
from helpers.numerics import dot_tolerance, normal
from helpers.threads import assert_same_bits
from oracles import reference as ref
from soma_native import _core
from soma_native._core import _ops as ops

ROWS, COLS = 400, 250
SITES = ("embedding", "attention", "mlp")


def noise_of(rate: float = 0.25, *numbers: int) -> _core.Noise:
    return core_noise(rate, 0.0, numbers or (1, 2, 3))


def assert_binomial(count: int, trials: int, rate: float) -> None:
    """Within five standard deviations: a right rate fails once in a million times."""
    assert abs(count - trials * rate) <= 5 * np.sqrt(trials * rate * (1 - rate)), (count / trials, rate)


def mix(x: int) -> int:
    """The finalizer of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor % 2**64
    return x ^ x >> 31


def dropped(numbers: tuple[int, ...], site: str, layer: int, rate: float, rows: int, cols: int) -> ref.Array:
    """Where dropout makes zeros, by the equations."""
    key = 0
    for number in (*numbers, layer):
        key = mix(key ^ mix(number))
    key = mix(key + SITES.index(site))
    bits = np.array([mix((key + row) % 2**64) for row in range(rows)], np.uint64)[:, None]
    hashed = (bits % 2**32).astype(np.uint32) + np.arange(cols, dtype=np.uint32)
    hashed = (hashed ^ hashed >> 16) * np.uint32(0x7FEB352D) ^ (bits >> np.uint64(32)).astype(np.uint32)
    hashed = (hashed ^ hashed >> 15) * np.uint32(0x846CA68B)
    return (hashed ^ hashed >> 16).view(np.int32) < np.floor(rate * 2**32) - 2**31


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_and_the_scale(rate: float) -> None:
    found = factors(noise_of(rate), ROWS, COLS)
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / (1 - rate))}
    assert_binomial(int((found == 0).sum()), found.size, rate)
    for axis in (0, 1):  # no row and no column is far from it
        counts = (found == 0).sum(axis=axis)
        assert np.abs(counts - rate * found.shape[axis]).max() < 6 * np.sqrt(found.shape[axis] * rate * (1 - rate))


def test_neighbours_are_independent() -> None:
    kept = factors(noise_of(0.5), ROWS, COLS) > 0
    for down, right in [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (0, 16), (16, 0), (1, 16)]:
        same = kept[down:, right:] == kept[: ROWS - down, : COLS - right]
        assert_binomial(int(same.sum()), same.size, 0.5)


def test_the_mean_is_kept() -> None:
    x = np.ones((ROWS, COLS), np.float32)
    rate = 0.2
    means = [ops.dropout(x, noise_of(rate, seed), site="mlp").mean() for seed in range(20)]
    assert abs(np.mean(means) - 1) < 5 * np.sqrt(rate / (1 - rate) / (20 * x.size))


def test_numbers_layers_and_sites_have_masks_of_their_own() -> None:
    cases = [noise_of(0.5, *numbers) for numbers in itertools.product((0, 1), repeat=3)]
    made = [factors(noise, ROWS, COLS) for noise in cases]
    made += [
        factors(cases[0], ROWS, COLS, site, layer)
        for site in SITES
        for layer in range(3)
        if (site, layer) != ("mlp", 0)
    ]
    made.append(factors(noise_of(0.5, 0, 0, 2**64 - 1), ROWS, COLS))
    for a, b in itertools.combinations(made, 2):
        assert_binomial(int((a == b).sum()), a.size, 0.5)
    assert np.array_equal(factors(noise_of(0.5, 0, 0, 0), ROWS, COLS), made[0])


def test_a_larger_rate_drops_what_a_smaller_one_does() -> None:
    small, large = (factors(noise_of(rate), ROWS, COLS) == 0 for rate in (0.1, 0.3))
    assert large[small].all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cols", [1, 7, 16, 63, 64, 65, 130])
def test_every_level_makes_the_mask_of_the_equation(cols: int) -> None:
    """A run that is resumed by a later version has the same masks; parts of a batch have the rows of the whole."""
    noise = core_noise(0.3, 0.2, (3, 2**64 - 1, 1))
    for site, layer in itertools.product(SITES, (0, 2)):
        found = factors(noise, 33, cols, site, layer)
        assert np.array_equal(found == 0, dropped((3, 2**64 - 1, 1), site, layer, 0.3, 33, cols))
        assert np.array_equal(found[5:], factors(noise, 28, cols, site, layer, first_row=5))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cols", [1, 31, 64, 130])
def test_pairs_are_the_rounded_result(cols: int) -> None:
    x = normal(np.random.default_rng(1), 9, cols)
    want = ops.dropout(x, noise_of(), site="attention")
    assert np.array_equal(want, x * factors(noise_of(), 9, cols, "attention"))
    assert np.array_equal(ops.dropout(x, noise_of(), site="attention", pairs=True), ref.round_bfloat16(want))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (13, 7, 33), (70, 40, 129), (5, 2100, 48), (3, 8, 4200)])
def test_a_product_drops_before_it_adds_the_residual(m: int, k: int, n: int, precision: str) -> None:
    rng = np.random.default_rng(2)
    a, b, bias, residual = normal(rng, m, k), normal(rng, k, n), normal(rng, n), normal(rng, m, n)
    mask = factors(noise_of(), m, n)
    with_bias = ops.matmul(a, b, bias=bias, precision=precision)
    for added in (None, residual):
        found = ops.matmul_dropout(a, b, noise_of(), bias=bias, residual=added, precision=precision)
        assert np.array_equal(found, mask * with_bias if added is None else added + mask * with_bias)
    plain = ops.matmul_dropout(a, b, noise_of(0.0), residual=residual, precision=precision)
    assert np.array_equal(plain, ops.matmul(a, b, residual=residual, precision=precision))
    if precision == "float32":
        assert np.abs(with_bias - (a.astype(np.float64) @ b + bias)).max() < 2 * dot_tolerance(k, a, b)


@pytest.mark.usefixtures("settings_restored")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    x, a, b, residual = (normal(rng, *shape) for shape in [(600, 200), (600, 200), (200, 129), (600, 129)])
    assert_same_bits(
        {
            "floats": lambda: ops.dropout(x, noise_of(), site="mlp"),
            "pairs": lambda: ops.dropout(x, noise_of(), site="mlp", pairs=True),
            "product": lambda: ops.matmul_dropout(a, b, noise_of(), residual=residual),
        }
    )


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.75])
def test_tokens_are_masked_at_their_rate(rate: float) -> None:
    count = 100_000
    made = [ops.masked_tokens(core_noise(0.5, rate, numbers), count) for numbers in [(1, 2), (1, 3), (2, 2)]]
    for masked in made:
        assert_binomial(int(masked.sum()), count, rate)
        assert np.array_equal(masked[:100], ops.masked_tokens(core_noise(0.0, rate, (1, 2)), 100)) == (
            masked is made[0] or rate == 0
        )
    if rate:
        same = rate**2 + (1 - rate) ** 2
        for a, b in itertools.combinations(made, 2):
            assert_binomial(int((a == b).sum()), count, same)


@pytest.mark.parametrize(
    ("name", "value"), [("dropout", 1.0), ("dropout", -0.1), ("token_mask", 1.0), ("dropout", float("nan"))]
)
def test_rates_that_cannot_be_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 0 and below 1"):
        core_noise(**{"dropout": 0.0, "token_mask": 0.0, "noise": (1,), name: value})
