"""Matrix products on every ISA in both precisions: odd sizes, edges of blocks, epilogues, NaN, threads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.numerics import dot_tolerance, normal
from helpers.threads import assert_same_bits
from oracles.reference import Array, round_bfloat16
from soma_native._core import _ops as ops

LAYOUTS = ["nn", "nt", "tn"]
PRECISIONS = ["float32", "bfloat16"]
# Around the rows of tiles (4, 6, 12), the rows of remainders (8, 4, 2, 1), the widths of vectors (4, 8, 16) and of
# panels (8, 16, 32): one less, exactly these, and one more. Also primes.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 17, 23, 24, 25]
COLUMNS = [1, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 23, 31, 32, 33, 47, 65]
DEPTHS = [1, 2, 3, 7, 8, 9, 13, 16, 17, 29]


pytestmark = pytest.mark.usefixtures("one_thread")


def operands(rng: np.random.Generator, layout: str, m: int, n: int, k: int) -> tuple[Array, Array, Array, Array]:
    """(a, b) as stored in the layout, then views of them as (m, k) and (k, n)."""
    a = normal(rng, *((k, m) if layout == "tn" else (m, k)))
    b = normal(rng, *((n, k) if layout == "nt" else (k, n)))
    return a, b, (a.T if layout == "tn" else a), (b.T if layout == "nt" else b)


def epilogues(rng: np.random.Generator, m: int, n: int) -> list[dict[str, Any]]:
    """Every combination of what an epilogue adds and applies to a product."""
    choices: list[dict[str, Any]] = [{"onto": normal(rng, m, n)}]
    for bias, residual, relu in itertools.product([False, True], repeat=3):
        choice: dict[str, Any] = {"relu": relu}
        if bias:
            choice["bias"] = normal(rng, n)
        if residual:
            choice["residual"] = normal(rng, m, n)
        choices.append(choice)
    return choices


def check_product(got: Array, a: Array, b: Array, epilogue: dict[str, Any], precision: str = "float32") -> None:
    """Every element is within the error bound of a dot product. Added operands count as terms of the sum."""
    if precision == "bfloat16":  # the operands are rounded once; the sums are in single precision
        a, b = round_bfloat16(a), round_bfloat16(b)
    added = [epilogue[name] for name in ("bias", "residual", "onto") if name in epilogue]
    want = a.astype(np.float64) @ b.astype(np.float64) + sum(x.astype(np.float64) for x in added)
    if epilogue.get("relu"):
        want = np.maximum(want, 0)
    left = np.append(a, 1.0)
    right = np.concatenate([b.ravel(), *(x.ravel() for x in added)])
    assert got.dtype == np.float32 and got.shape == want.shape
    error = float(np.abs(got - want).max(initial=0))
    assert error <= dot_tolerance(a.shape[1] + len(added), left, right), (a.shape, b.shape, sorted(epilogue))


# sizes and epilogues --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_odd_sizes(precision: str, layout: str) -> None:
    rng = np.random.default_rng(0)
    for case, (m, n) in enumerate(itertools.product(ROWS, COLUMNS)):
        a, b, left, right = operands(rng, layout, m, n, DEPTHS[case % len(DEPTHS)])
        choices = epilogues(rng, m, n)
        epilogue = choices[case % len(choices)]
        got = ops.matmul(a, b, layout=layout, precision=precision, **epilogue)
        check_product(got, left, right, epilogue, precision)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [383, 384, 385, 769, 4095, 4096, 4097])
def test_products_as_deep_as_a_block(precision: str, layout: str, k: int) -> None:
    """Above 384 a tile is summed in parts; above 4096 the operands are packed in parts. Bias and relu come last."""
    rng = np.random.default_rng(k)
    for m, n in [(1, 1), (7, 5), (13, 33)]:
        a, b, left, right = operands(rng, layout, m, n, k)
        for epilogue in epilogues(rng, m, n):
            got = ops.matmul(a, b, layout=layout, precision=precision, **epilogue)
            check_product(got, left, right, epilogue, precision)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_larger_than_what_is_packed_at_once(precision: str, layout: str) -> None:
    """About 1024 rows or columns of an operand that is 4096 deep are packed at once."""
    rng = np.random.default_rng(7)
    for m, n in [(1030, 3), (3, 1030)]:
        a, b, left, right = operands(rng, layout, m, n, 4099)
        bias = normal(rng, n)
        got = ops.matmul(a, b, layout=layout, bias=bias, precision=precision)
        check_product(got, left, right, {"bias": bias}, precision)


def test_a_product_larger_in_both_directions() -> None:
    """On the fastest level only, because there are 4 billion terms."""
    rng = np.random.default_rng(8)
    a, b, bias = np.zeros((1030, 4097), np.float32), normal(rng, 4097, 1030), normal(rng, 1030)
    filled = [0, 383, 384, 4095, 4096]  # the other columns are zero, so that the answer is cheap
    a[:, filled] = normal(rng, 1030, len(filled))
    check_product(ops.matmul(a, b, bias=bias), a[:, filled], b[filled], {"bias": bias})


@pytest.mark.usefixtures("isa")
def test_products_of_no_rows_or_columns() -> None:
    assert ops.matmul(np.zeros((0, 5), np.float32), np.ones((5, 3), np.float32)).shape == (0, 3)
    assert ops.matmul(np.ones((4, 5), np.float32), np.zeros((0, 5), np.float32), layout="nt").shape == (4, 0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_small_integers_multiply_exactly(precision: str) -> None:
    """No rounding, so no tolerance: the results of integer arithmetic, for any order of the sums."""
    rng = np.random.default_rng(1)
    for m, n, k in [(5, 9, 4096), (37, 41, 400), (97, 131, 89)]:
        a, b = rng.integers(-8, 9, (m, k)), rng.integers(-8, 9, (k, n))
        want = a @ b
        for layout in LAYOUTS:
            left = np.ascontiguousarray(a.T if layout == "tn" else a).astype(np.float32)
            right = np.ascontiguousarray(b.T if layout == "nt" else b).astype(np.float32)
            got = ops.matmul(left, right, layout=layout, precision=precision)
            assert np.array_equal(got, want), (m, n, k, layout)
        assert np.array_equal(ops.column_sum(b.astype(np.float32), np.ones(n, np.float32)), 1 + b.sum(axis=0))


@pytest.mark.usefixtures("isa")
def test_operands_are_rounded_to_the_nearest_bfloat16() -> None:
    """Ties to even, for both operands and both places of a bf16 pair. The largest number becomes infinite."""
    rng = np.random.default_rng(9)
    exact = round_bfloat16(normal(rng, 1, 4096))
    ulp = np.spacing(np.abs(exact)) * 2**16
    x = np.concatenate([exact + ulp * step for step in (-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75)], axis=1)
    x = x.astype(np.float32)[:, : 4096 * 7 - 3]
    one = np.ones((1, 1), np.float32)
    assert np.array_equal(ops.matmul(one, x, precision="bfloat16"), round_bfloat16(x))
    column = np.ascontiguousarray(x.T)
    assert np.array_equal(ops.matmul(column, one, precision="bfloat16"), round_bfloat16(column))
    for n in (1, 2, 3, 16, 17, 31, 33):  # the identity reads every place of a pair and of a vector
        picked = ops.matmul(np.eye(n, dtype=np.float32), column[:n], precision="bfloat16")
        assert np.array_equal(picked, round_bfloat16(column[:n]))
    largest = np.full((1, 1), np.finfo(np.float32).max)
    assert np.isposinf(ops.matmul(largest, one, precision="bfloat16")[0, 0])


# sums of columns -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_column_sums_of_odd_sizes() -> None:
    rng = np.random.default_rng(3)
    for m, n in itertools.product([1, 2, 7, 64, 385], [1, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 65]):
        x, onto = normal(rng, m, n), normal(rng, n)
        want = onto.astype(np.float64) + x.astype(np.float64).sum(axis=0)
        terms = np.append(x, onto)
        assert np.abs(ops.column_sum(x, onto) - want).max() <= dot_tolerance(m + 1, terms, np.ones(1)), (m, n)


# threads --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_products_are_the_same_bits_on_any_number_of_threads() -> None:
    """Wide, tall and square products, which are cut among threads in different ways."""
    rng = np.random.default_rng(4)
    sizes = [(97, 131, 89), (1201, 7, 53), (5, 1501, 53), (61, 67, 801)]
    inputs = {(size, layout): operands(rng, layout, *size)[:2] for size in sizes for layout in LAYOUTS}
    tall = normal(rng, 1301, 333)
    work: dict[Any, Callable[[], Array]] = {
        (case, precision): functools.partial(ops.matmul, *ab, layout=case[1], precision=precision)
        for case, ab in inputs.items()
        for precision in PRECISIONS
    }
    work["column_sum"] = functools.partial(ops.column_sum, tall, tall[0])
    assert_same_bits(work)


# NaN, infinities and wrong shapes -------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_number_reaches_its_row_or_column_and_no_other(precision: str, layout: str, bad: float) -> None:
    rng = np.random.default_rng(5)
    for m, n, k in [(1, 1, 1), (7, 9, 5), (13, 33, 17), (25, 47, 400)]:
        a, b, left, right = operands(rng, layout, m, n, k)
        i, j, p = m // 2, n - 1, k - 1
        want = np.isfinite(left @ right)
        keep = left[i, p]
        left[i, p] = bad  # left and right are views of a and b
        want[i] = False
        assert np.array_equal(np.isfinite(ops.matmul(a, b, layout=layout, precision=precision)), want)
        left[i, p], right[p, j] = keep, bad
        want[...] = True
        want[:, j] = False
        assert np.array_equal(np.isfinite(ops.matmul(a, b, layout=layout, precision=precision)), want)


@pytest.mark.usefixtures("isa")
def test_nan_survives_bias_and_relu() -> None:
    """relu(NaN) is NaN: a broken weight must not turn into a silent zero."""
    rng = np.random.default_rng(6)
    for rows, n in itertools.product([1, 3, 8, 13], [1, 5, 16, 33]):
        x, w, bias = normal(rng, rows, 7), normal(rng, 7, n), normal(rng, n)
        bias[n // 2] = np.nan
        want = np.zeros((rows, n), bool)
        want[:, n // 2] = True
        assert np.array_equal(np.isnan(ops.matmul(x, w, bias=bias, relu=True)), want)
        bias[n // 2], x[rows - 1, 3] = 0, np.nan
        want[...] = False
        want[rows - 1] = True
        assert np.array_equal(np.isnan(ops.matmul(x, w, bias=bias, relu=True)), want)


def test_wrong_shapes_are_errors_that_name_the_operand() -> None:
    x, square = np.ones((3, 4), np.float32), np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="inner size"):
        ops.matmul(x, x)
    with pytest.raises(ValueError, match="inner size"):
        ops.matmul(np.ones((0, 3), np.float32), np.ones((0, 4), np.float32), layout="tn")
    with pytest.raises(ValueError, match="a has no columns"):
        ops.matmul(np.ones((3, 0), np.float32), np.ones((0, 4), np.float32))
    with pytest.raises(ValueError, match="layout"):
        ops.matmul(x, square, layout="tt")
    with pytest.raises(ValueError, match="bias"):
        ops.matmul(x, square, bias=np.ones(3, np.float32))
    with pytest.raises(ValueError, match="onto"):
        ops.matmul(x, square, onto=x, relu=True)
    with pytest.raises(ValueError, match="onto"):
        ops.column_sum(x, np.ones(3, np.float32))
    with pytest.raises(TypeError):
        ops.matmul(x.astype(np.float64), square)
