"""The kernels of generation on every ISA: products with weights in each format, and attention to a cache."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import chain_tolerance, dot_tolerance, normal
from oracles import reference as ref
from oracles.reference import Array
from soma_native._core import _ops as ops

FORMATS = ["live", "float32", "bfloat16", "int8"]
# Around the rows of tiles and remainders, and around half a panel (32), a panel (64) and odd ends of both.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 25]
SHAPES = [(1, 1), (7, 31), (8, 64), (9, 65), (17, 33), (385, 130), (33, 97), (5, 192), (1100, 300)]


pytestmark = pytest.mark.usefixtures("one_thread")


def kept(w: Array, form: str) -> tuple[Array, Array]:
    """The weights w (k, n) after rounding to a format, and the scales (n) of the sums."""
    ones = np.ones(w.shape[1], np.float32)
    if form == "bfloat16":
        return ref.round_bfloat16(w), ones
    if form == "int8":
        return ref.quantize_int8(w)
    return w, ones


def operands(rows: int, k: int, n: int) -> tuple[Array, Array, Array, Array]:
    """Random x (rows, k), w (k, n), bias (n) and residual (rows, n)."""
    rng = np.random.default_rng(k)
    return normal(rng, rows, k), normal(rng, k, n), normal(rng, n), normal(rng, rows, n)


def check_product(got: Array, x: Array, w: Array, form: str, bias: Array | None, residual: Array | None) -> None:
    """The result is within the error bound of a dot product with the rounded weights, and of the added terms."""
    weights, scales = kept(w, form)
    want = x.astype(np.float64) @ weights.astype(np.float64) * scales
    added = [part for part in (bias, residual) if part is not None]
    want = want + sum(part.astype(np.float64) for part in added)
    assert got.dtype == np.float32 and got.shape == want.shape
    largest = max([float(np.abs(weights * scales).max()), *(float(np.abs(part).max()) for part in added)])
    bound = dot_tolerance(x.shape[1] + 2 + len(added), np.append(x, 1.0), np.array(largest))
    assert float(np.abs(got - want).max(initial=0)) <= bound, (x.shape, w.shape, form)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_products(form: str, k: int, n: int) -> None:
    """Against float64. The bits of a row do not depend on the other rows."""
    x, w, bias, residual = operands(25, k, n)
    for some in ({}, {"bias": bias}, {"bias": bias, "residual": residual}):
        whole = ops.decode_linear(x, w, weights=form, **some)
        check_product(whole, x, w, form, some.get("bias"), some.get("residual"))
        for rows in ROWS:
            part: dict[str, Any] = {**some, **({"residual": residual[:rows]} if "residual" in some else {})}
            assert ops.decode_linear(x[:rows], w, weights=form, **part).tobytes() == whole[:rows].tobytes(), rows


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_products_of_a_prompt(form: str, k: int, n: int) -> None:
    """float32 gives the bits of single rows. In other formats the rows are rounded to bfloat16 first."""
    x, w, bias, residual = operands(45, k, n)
    for rows in (1, 13, 45):
        some: dict[str, Any] = {"bias": bias, "residual": residual[:rows]}
        for activation in ("none", "relu", "gelu_tanh", "gelu"):
            some["activation"] = activation
            got = ops.decode_linear(x[:rows], w, weights=form, prompt=True, **some)
            soma.set_num_threads(3)
            assert ops.decode_linear(x[:rows], w, weights=form, prompt=True, **some).tobytes() == got.tobytes()
            soma.set_num_threads(1)
            if form in ("live", "float32"):
                assert ops.decode_linear(x[:rows], w, weights=form, **some).tobytes() == got.tobytes(), rows
            elif activation == "none":
                check_product(got, ref.round_bfloat16(x[:rows]), w, form, bias, residual[:rows])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", ["live", "float32"])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_float32_products_are_matmul_bit_for_bit(form: str, k: int, n: int) -> None:
    """Generation has the weights and the order of sums of training."""
    x, w, bias, residual = operands(13, k, n)
    some = {"bias": bias, "residual": residual}
    want = ops.matmul(x, w, relu=True, **some)
    assert ops.decode_linear(x, w, weights=form, activation="relu", **some).tobytes() == want.tobytes()
    assert ops.decode_linear(x[:1], w, weights=form, bias=bias).tobytes() == ops.matmul(x[:1], w, bias=bias).tobytes()
    for activation in ("gelu_tanh", "gelu"):
        want = ops.gelu(ops.matmul(x, w, bias=bias), activation)[1]
        assert ops.decode_linear(x, w, weights=form, activation=activation, bias=bias).tobytes() == want.tobytes()


@pytest.mark.usefixtures("isa")
def test_heads_of_odd_sizes() -> None:
    """Weights of shape (out, in), as embeddings have."""
    rng = np.random.default_rng(2)
    for k, n in itertools.product([1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 385], [1, 2, 15, 16, 17, 33, 65]):
        w, x = normal(rng, n, k), normal(rng, 3, k)
        for form in FORMATS:
            got = ops.decode_linear(x, w, weights=form, by_output=True)
            check_product(got, x, w.T, form, None, None)
            alone = ops.decode_linear(x[1:2], w, weights=form, by_output=True)
            assert alone.tobytes() == got[1].tobytes(), (k, n, form)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMATS)
def test_products_are_the_same_bits_on_any_number_of_threads(form: str) -> None:
    rng = np.random.default_rng(4)
    cases = [(normal(rng, m, k), normal(rng, k, n)) for m, k, n in [(1, 300, 450), (5, 70, 129), (30, 33, 1000)]]
    seen: dict[int, bytes] = {}
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        for case, (x, w) in enumerate(cases):
            ops.widest_job()
            bits = ops.decode_linear(x, w, weights=form, activation="gelu").tobytes()
            assert ops.widest_job() == threads
            assert seen.setdefault(case, bits) == bits, (threads, case)


# formats --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_bfloat16_rounds_to_nearest_even_once() -> None:
    """Read back exactly through the identity: ties, the largest and smallest numbers, and random ones."""
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, (70, 67), np.uint32)
    bits[0, :8] = [0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF808000, 0x00018000, 0x7F7F7FFF, 0x80000001]
    w = bits.view(np.float32)
    w[~np.isfinite(ref.round_bfloat16(w))] = 1.5
    got = ops.decode_linear(np.eye(70, dtype=np.float32), w, weights="bfloat16")
    assert np.array_equal(got, ref.round_bfloat16(w))
    assert np.array_equal(ref.round_bfloat16(np.array([1.00390625, 1.01171875], np.float32)), [1.0, 1.015625])


@pytest.mark.usefixtures("isa")
def test_int8_keeps_eight_bits_and_one_scale_an_output() -> None:
    rng = np.random.default_rng(6)
    w = normal(rng, 70, 67) * np.exp(3 * normal(rng, 67))
    w[:, 3] = 0
    w[:, 4] = np.float32(1e-45)
    got = ops.decode_linear(np.eye(70, dtype=np.float32), w, weights="int8")
    weights, scales = ref.quantize_int8(w)
    assert np.array_equal(got, weights * scales)
    assert weights.min() >= -127 and weights.max() == 127
    most = np.abs(w).max(axis=0)
    assert (np.abs(got - w) <= most / 254 * (1 + 1e-5) + np.finfo(np.float32).tiny).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_reaches_its_row_or_output_and_no_other(form: str, bad: float) -> None:
    rng = np.random.default_rng(7)
    for rows, k, n in [(1, 5, 9), (3, 17, 33), (13, 9, 97)]:
        x, w = normal(rng, rows, k), normal(rng, k, n)
        want = np.ones((rows, n), bool)
        clean, x[rows // 2, k - 1] = x[rows // 2, k - 1], bad
        want[rows // 2] = False
        for prompt in (False, True):
            assert np.array_equal(np.isfinite(ops.decode_linear(x, w, weights=form, prompt=prompt)), want)
        x[rows // 2, k - 1], w[0, n - 1] = clean, bad
        want[...] = True
        want[:, n - 1] = False
        for prompt in (False, True):
            assert np.array_equal(np.isfinite(ops.decode_linear(x, w, weights=form, prompt=prompt)), want)
        bias = normal(rng, n)
        w[0, n - 1], bias[n // 2] = 0, np.nan
        got = ops.decode_linear(x, w, weights=form, bias=bias, activation="relu")
        assert np.isnan(got[:, n // 2]).all() and np.isnan(got).sum() == rows, "relu(NaN) is NaN"


def test_wrong_arguments_are_errors_that_name_them() -> None:
    x, square = np.ones((3, 4), np.float32), np.ones((4, 4), np.float32)
    cache, full = np.ones((3, 16, 4), np.float32), np.full(3, 16, np.int32)
    for message, call in [
        ("inner size", lambda: ops.decode_linear(x, x)),
        ("residual", lambda: ops.decode_linear(x, square, residual=square)),
        ("bias", lambda: ops.decode_linear(x, square, bias=np.ones(3, np.float32))),
        ("'silu'", lambda: ops.decode_linear(x, square, activation="silu")),
        ("'int4'", lambda: ops.decode_linear(x, square, weights="int4")),
        ("lengths", lambda: ops.decode_attention(np.ones((3, 12), np.float32), cache, cache, full, 1)),
        ("multiple of 16", lambda: ops.decode_attention(np.ones((3, 12), np.float32), cache[:, 1:], cache, full, 1)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# attention ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_decoding_attends_as_attention_does(threads: int) -> None:
    """Rows of different lengths. The unfilled part of a cache is NaN and must not be read."""
    rng = np.random.default_rng(8)
    for heads, size in [(1, 1), (3, 5), (2, 8), (1, 17), (2, 33), (2, 64), (1, 112)]:
        lengths = np.array([0, 1, 15, 16, 17, 63, 64, 78], np.int32)
        rows, capacity, channels = len(lengths), 80, heads * size
        qkv = normal(rng, rows, capacity, 3 * channels)
        keys, values = qkv[..., channels : 2 * channels].copy(), qkv[..., 2 * channels :].copy()
        for row, length in enumerate(lengths):
            keys[row, length:] = values[row, length:] = np.nan
        last = qkv[np.arange(rows), lengths]
        scale = size**-0.5 * (0.7 if heads == 2 else 1.0)
        out, new_keys, new_values = ops.decode_attention(last, keys, values, lengths, heads, scale=scale)
        wide = qkv.astype(np.float64)
        want = np.stack(
            [ref.attention(wide[r : r + 1, : n + 1], heads, scale=scale)[0, -1] for r, n in enumerate(lengths)]
        )
        tolerance = chain_tolerance(size, capacity, capacity, 1, 1) * (1 + np.sqrt(size))
        assert np.linalg.norm(out - want) <= tolerance * np.linalg.norm(last[:, 2 * channels :]), threads
        keys[np.arange(rows), lengths] = last[:, channels : 2 * channels]
        values[np.arange(rows), lengths] = last[:, 2 * channels :]
        assert np.array_equal(new_keys, keys, equal_nan=True) and np.array_equal(new_values, values, equal_nan=True)
        last[5, -1] = np.nan  # a value
        spoiled = ops.decode_attention(last, keys, values, lengths, heads)[0]
        assert np.isnan(spoiled[5, -1]) and np.isnan(spoiled).sum() == 1


@pytest.mark.usefixtures("isa")
def test_rounded_keys_and_values_are_read_as_float32(threads: int) -> None:
    """Bit for bit what float32 makes of the rounded numbers. A pair of positions may have one alone."""
    rng = np.random.default_rng(9)
    lengths = np.array([0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 78, 127], np.int32)
    rows, capacity = len(lengths), 128
    for heads, shared, size in [(1, 1, 1), (3, 3, 5), (4, 2, 8), (1, 1, 17), (2, 1, 33), (2, 2, 64), (1, 1, 112)]:
        queries, channels = heads * size, shared * size
        last = normal(rng, rows, queries + 2 * channels)
        keys, values = (ref.round_bfloat16(normal(rng, rows, capacity, channels)) for _ in range(2))
        for row, length in enumerate(lengths):
            keys[row, length:] = values[row, length:] = np.nan
        kept = last.copy()
        kept[:, queries:] = ref.round_bfloat16(last[:, queries:])
        want = ops.decode_attention(kept, keys, values, lengths, heads, shared)
        got = ops.decode_attention(last, keys, values, lengths, heads, shared, kv_cache="bfloat16")
        for mine, theirs in zip(got, want, strict=True):
            assert np.array_equal(mine, theirs, equal_nan=True), (heads, size, threads)
        assert got[0].tobytes() == want[0].tobytes()
