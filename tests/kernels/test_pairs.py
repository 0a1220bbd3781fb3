"""Operands stored as bf16 pairs: the bits of float operands, in every op, size and number of threads.

The bindings store an operand as the core does, but with NaN in the memory after its last row and after the zeros that
end each row. They refuse a result without these zeros, and a result that writes after its last row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import normal
from oracles.reference import IGNORE, Array, round_bfloat16
from soma_native._core import _ops as ops

LAYOUTS = ["nn", "nt", "tn"]
ROWS = [1, 2, 11, 12, 13, 31, 32, 33]  # tiles are 4, 6, 12 or 32 rows
COLUMNS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 65]  # and 8, 16 or 32 columns
DEPTHS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 65]

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(autouse=True)
def no_job_before() -> None:
    ops.widest_job()


def on_threads(*counts: int) -> Iterator[int]:
    for threads in counts:
        soma.set_num_threads(threads)
        yield threads


def draw(rng: np.random.Generator, *shape: int) -> Array:
    """Normal numbers, a quarter of them midway between two bfloat16."""
    x = normal(rng, *shape)
    bits = x.view(np.uint32)
    ties = rng.random(shape) < 0.25
    bits[ties] = bits[ties] & 0xFFFF0000 | 0x8000
    return x


def rounded(x: Array, condition: bool = True) -> Array:
    return round_bfloat16(x).astype(np.float32) if condition else x


def same(got: Array, want: Array, *where: Any) -> None:
    assert got.shape == want.shape, where
    assert got.tobytes() == want.tobytes(), where


def operands(rng: np.random.Generator, layout: str, m: int, n: int, k: int) -> tuple[Array, Array]:
    return draw(rng, *((k, m) if layout == "tn" else (m, k))), draw(rng, *((n, k) if layout == "nt" else (k, n)))


def finishes(rng: np.random.Generator, m: int, n: int) -> list[dict[str, Any]]:
    """Epilogues of a product. The last cannot be combined with a result in pairs."""
    bias, residual = normal(rng, n), normal(rng, m, n)
    return [{}, {"bias": bias}, {"bias": bias, "relu": True}, {"bias": bias, "residual": residual}, {"onto": residual}]


def check_product(a: Array, b: Array, layout: str, finish: dict[str, Any], *where: Any) -> None:
    """Every choice of operands in pairs, with and without packing the right one first, against floats."""
    options = {"layout": layout, "precision": "bfloat16", **finish}
    want = ops.matmul(a, b, **options)
    for pairs in ("", "a", "b", "ab", "c", "abc"):
        if "c" in pairs and "onto" in finish:
            continue
        for prepacked in (False, True):
            got = ops.matmul(a, b, pairs=pairs, prepacked=prepacked, **options)
            same(got, rounded(want, "c" in pairs), pairs, prepacked, layout, sorted(finish), *where)


# products ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_odd_sizes(layout: str) -> None:
    rng = np.random.default_rng(0)
    soma.set_num_threads(1)
    for case, (m, n) in enumerate(itertools.product(ROWS, COLUMNS)):
        k = DEPTHS[case % len(DEPTHS)]
        finish = finishes(rng, m, n)[case % 5]
        check_product(*operands(rng, layout, m, n, k), layout, finish, m, n, k)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [767, 768, 769, 2047, 2048, 2049, 2051])
def test_products_deeper_than_a_tile_and_than_what_is_packed_at_once(layout: str, k: int) -> None:
    """A tile is 384 pairs deep (192 on AMX), a packed part 1024. Bias and relu come last, then the rounding."""
    rng = np.random.default_rng(k)
    for (m, n), finish in zip([(1, 1), (13, 33), (33, 17)], (2, 3, 4), strict=True):
        a, b = operands(rng, layout, m, n, k)
        check_product(a, b, layout, finishes(rng, m, n)[finish], m, n)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_cut_among_threads(layout: str) -> None:
    """Cut by rows and by columns, beyond a block of 192 rows, and beyond 1024 columns that are finished together."""
    rng = np.random.default_rng(1)
    for m, n, k in [(13, 1031, 37), (397, 35, 33), (67, 131, 89)]:
        a, b = operands(rng, layout, m, n, k)
        finish = finishes(rng, m, n)[3]
        soma.set_num_threads(1)
        want = ops.matmul(a, b, layout=layout, precision="bfloat16", **finish)
        for threads in on_threads(1, 2, 3):
            check_product(a, b, layout, finish, threads, m, n)
            same(ops.matmul(a, b, layout=layout, precision="bfloat16", pairs="ab", **finish), want, threads, m, n)
    assert ops.widest_job() == 3, "nothing was large enough to be cut"


@pytest.mark.parametrize("function", ["gelu_tanh", "gelu_tanh'", "gelu", "gelu'", "relu'"])
def test_products_through_activations(function: str) -> None:
    rng = np.random.default_rng(2)
    sizes = [(1, 1, 1), (2, 3, 5), (13, 17, 33), (33, 65, 31), (13, 1031, 3), (67, 131, 89), (5, 97, 2051)]
    for m, n, k in sizes:
        a, b = operands(rng, "nn", m, n, k)
        saved = {"saved": rounded(draw(rng, m, n))} if function.endswith("'") else {}
        options = {"function": function, "precision": "bfloat16", **saved}
        soma.set_num_threads(1)
        want, want_y = ops.matmul_through(a, b, **options)
        assert (want_y is not None and np.isfinite(want_y).all()) == (function != "relu'")
        for threads in on_threads(1, 2, 3):
            for pairs in ("", "c", "y", "cy"):
                c, y = ops.matmul_through(a, b, pairs=pairs, **options)
                same(c, rounded(want, "c" in pairs), pairs, threads, m, n, k)
                if function != "relu'":
                    same(y, rounded(want_y, "y" in pairs), pairs, threads, m, n, k)
    assert ops.widest_job() == 3, "nothing was large enough to be cut"


def test_a_bad_number_in_pairs_reaches_its_row_or_column_and_no_other() -> None:
    rng = np.random.default_rng(3)
    soma.set_num_threads(1)
    for layout, bad, pairs in itertools.product(LAYOUTS, (np.nan, np.inf), ("a", "b", "ab", "abc")):
        for m, n, k in [(1, 1, 1), (7, 9, 5), (13, 33, 17), (35, 47, 801)]:
            a, b = operands(rng, layout, m, n, k)
            left, right = (a.T if layout == "tn" else a), (b.T if layout == "nt" else b)  # views
            keep = left[m // 2, k - 1]
            left[m // 2, k - 1] = bad
            want = np.ones((m, n), bool)
            want[m // 2] = False
            got = ops.matmul(a, b, layout=layout, precision="bfloat16", pairs=pairs)
            assert np.array_equal(np.isfinite(got), want), (layout, bad, pairs, m)
            left[m // 2, k - 1], right[k - 1, n - 1] = keep, bad
            want[...] = True
            want[:, n - 1] = False
            got = ops.matmul(a, b, layout=layout, precision="bfloat16", pairs=pairs)
            assert np.array_equal(np.isfinite(got), want), (layout, bad, pairs, m)


# gradients of weights and sums of columns ----------------------------------------------------------------------------


def summed(x: Array, onto: Array) -> Array:
    """`onto` plus the rows of x, one after the other in single precision, after rounding x to bfloat16."""
    return np.add.accumulate(np.concatenate([onto[None], rounded(x)]), axis=0, dtype=np.float32)[-1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_of_several_weights_are_those_of_each(precision: str) -> None:
    """Three weights of different shapes, one without sums. In small ones some threads have no part."""
    rng = np.random.default_rng(4)
    shapes = [[(1, 1), (3, 2), (2, 5)], [(13, 33), (31, 17), (65, 1)], [(97, 65), (33, 130), (12, 16)]]
    for k, sizes in itertools.product([1, 2, 3, 33, 769, 2051], shapes):
        inputs = [(draw(rng, k, rows), draw(rng, k, cols)) for rows, cols in sizes]
        onto = [(normal(rng, *size), normal(rng, size[1]) if i != 1 else None) for i, size in enumerate(sizes)]
        soma.set_num_threads(1)
        want = [
            ops.matmul(x, dy, layout="tn", precision=precision, onto=dw)
            for (x, dy), (dw, _) in zip(inputs, onto, strict=True)
        ]
        for threads in on_threads(1, 2, 3):
            for pairs in ("", "a", "b", "ab") if precision == "bfloat16" else ("",):
                got = ops.weight_gradients(inputs, onto, precision=precision, pairs=pairs)
                for i, (dw, sums) in enumerate(got):
                    same(dw, want[i], pairs, threads, k, sizes[i])
                    if precision == "float32" and sums is not None:
                        same(sums, ops.column_sum(inputs[i][1], onto[i][1]), threads, k, sizes[i])
                    elif sums is not None:
                        same(sums, summed(inputs[i][1], onto[i][1]), pairs, threads, k, sizes[i])
                    assert (sums is None) == (i == 1)
    assert ops.widest_job() == 3, "nothing was large enough to be cut"


def test_sums_of_columns_are_of_what_products_see() -> None:
    rng = np.random.default_rng(5)
    for k, n in itertools.product([1, 2, 7, 64, 2049], [1, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 65, 331]):
        x, onto = draw(rng, k, n), normal(rng, n)
        for threads, pairs in itertools.product(on_threads(1, 3), (False, True)):
            same(ops.column_sum(x, onto, "bfloat16", pairs), summed(x, onto), k, n, threads, pairs)
    assert ops.widest_job() == 3, "nothing was large enough to be cut"


# attention -----------------------------------------------------------------------------------------------------------

# Sequences, positions, heads, head size. A block of backward is 32 to 96 queries, on AMX 256.
CUT = (3, 67, 3, 14)  # among three threads
ATTENTION = [
    CUT, (2, 1, 1, 2), (1, 2, 3, 6), (3, 13, 2, 8), (2, 12, 3, 16), (2, 31, 1, 18), (1, 33, 2, 32), (2, 32, 2, 34),
    (1, 97, 3, 10), (1, 259, 2, 24),
]  # fmt: skip


@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_attention(shape: tuple[int, int, int, int]) -> None:
    batch, length, heads, size = shape
    rng = np.random.default_rng(length)
    qkv = draw(rng, batch, length, 3 * heads * size)
    dout = draw(rng, batch, length, heads * size)
    soma.set_num_threads(1)
    out, lse = ops.attention(qkv, heads, "bfloat16")
    want = ops.attention_backward(dout, qkv, lse, "bfloat16")
    for threads in on_threads(1, 2, 3):
        got, got_lse = ops.attention(qkv, heads, "bfloat16", "a")
        same(got, out, threads)
        same(got_lse, lse, threads)
        for pairs in ("a", "c", "ac"):
            got = ops.attention_backward(dout, qkv, lse, "bfloat16", pairs)
            same(got, rounded(want, "c" in pairs), threads, pairs)
        assert shape != CUT or ops.widest_job() == threads


def test_a_bad_number_in_pairs_spoils_what_it_spoils_in_floats() -> None:
    """No other head, although a tile's columns end in numbers of the next head."""
    rng = np.random.default_rng(8)
    soma.set_num_threads(1)
    for (length, heads, size), part, bad in itertools.product([(20, 3, 8), (40, 2, 34)], range(3), (np.nan, np.inf)):
        width = heads * size
        qkv, dout = (draw(rng, 2, length, n) for n in (3 * width, width))
        qkv[0, -1, part * width + size + 3] = bad
        lse = normal(rng, 2, heads, length)
        for pairs in ("a", "ac"):
            want, got = (ops.attention(qkv, heads, "bfloat16", p)[0] for p in ("", "a"))
            assert bad == np.inf or not np.isfinite(want).all()  # the weight of a score of -inf is 0
            assert np.array_equal(np.isfinite(got), np.isfinite(want)), (part, bad, size)
            want, got = (ops.attention_backward(dout, qkv, lse, "bfloat16", p) for p in ("", pairs))
            assert bad == np.inf or not np.isfinite(want).all()  # the weight of a score of -inf is 0
            assert np.array_equal(np.isfinite(got), np.isfinite(want)), (part, bad, size, pairs)


# row-wise ops that store pairs ---------------------------------------------------------------------------------------


def test_norms_into_pairs() -> None:
    rng = np.random.default_rng(6)
    for rows, cols in [(1, 1), (3, 2), (5, 7), (13, 33), (2, 64), (333, 331)]:
        x, affine = draw(rng, rows, cols), {"gamma": normal(rng, cols), "beta": normal(rng, cols)}
        for threads, options in itertools.product(on_threads(1, 2, 3), ({}, affine)):
            want = ops.norm(x, eps=1e-5, **options)
            got = ops.norm(x, eps=1e-5, pairs=True, **options)
            same(got[0], rounded(want[0]), threads, rows, cols)
            same(got[1], want[1], threads, rows, cols)
            same(got[2], want[2], threads, rows, cols)
    assert ops.widest_job() == 3, "nothing was large enough to be cut"


def test_gradients_of_the_loss_into_pairs() -> None:
    rng = np.random.default_rng(7)
    for rows, vocabulary in [(1, 1), (3, 2), (5, 29), (13, 33), (4, 64), (150, 301)]:
        logits = 3 * draw(rng, rows, vocabulary)
        targets = rng.integers(0, vocabulary, rows).astype(np.int32)
        targets[::3] = IGNORE if rows > 1 else 0
        for threads in on_threads(1, 2, 3):
            losses, gradient = ops.cross_entropy(logits, targets, 0.37)
            got_losses, got = ops.cross_entropy(logits, targets, 0.37, pairs=True)
            same(got_losses, losses, threads, rows, vocabulary)
            same(got, rounded(gradient), threads, rows, vocabulary)
            assert not got[targets == IGNORE].any()
    assert ops.widest_job() == 3, "nothing was large enough to be cut"


# refused combinations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.matmul(x, x, pairs="a"), "bfloat16"),
        (lambda x: ops.matmul(x, x, precision="bfloat16", pairs="d"), "pairs must be"),
        (lambda x: ops.matmul(x, x, precision="bfloat16", onto=x, pairs="c"), "onto"),
        (lambda x: ops.norm(x, eps=1.0, in_place=True, pairs=True), "no place"),
        (lambda x: ops.cross_entropy(x, np.zeros(3, np.int32), pairs=True), "grad_scale"),
        (lambda x: ops.attention(x.reshape(1, 1, 9), 1, "bfloat16", "a"), "even"),
    ],
)
def test_what_bindings_refuse(call: Callable[[Array], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 3), np.float32))
