"""RMSNorm, rotary positions, SwiGLU and shared heads of keys, on every ISA: against the reference, and to the bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, chain_tolerance, normal
from helpers.threads import assert_same_bits
from oracles import reference as ref
from oracles.llama import rotated, rotated_backward
from oracles.ops import angles
from oracles.reference import Array
from soma_native._core import _ops as ops

WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 385, 1021]
THETA, EPS = 10000.0, 1e-2  # an eps that leaves rows of two numbers well-conditioned
# (batch, length, heads, heads of keys, head size): vectors, tiles and the blocks of backward, crossed and not.
HEADS = [
    (1, 1, 1, 1, 2), (2, 3, 2, 1, 2), (1, 5, 4, 2, 4), (2, 7, 3, 1, 6), (1, 13, 6, 3, 8), (2, 12, 2, 2, 10),
    (1, 33, 4, 1, 14), (1, 31, 2, 1, 16), (1, 17, 3, 3, 18), (1, 49, 2, 1, 32), (2, 97, 4, 2, 34), (1, 129, 2, 1, 66),
    (1, 261, 2, 1, 12),
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("isa", "one_thread")


def wide(x: Array) -> Array:
    return x.astype(np.float64)


def check(got: Array, want: Array, tolerance: float, size: Array | None = None) -> None:
    """||got - want|| <= tolerance ||size||, where size is what the result comes from if it may cancel, else want."""
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want if size is None else size), got.shape


def rounded(x: Array, condition: bool) -> Array:
    return ref.round_bfloat16(x) if condition else x


def turns(length: int, size: int) -> Array:
    turn = angles(length, size, THETA)
    return np.concatenate([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)


def config(heads: int, kv_heads: int, size: int) -> ref.Config:
    return ref.Config(
        2, heads * size, 1, heads, 1, 1, "llama", n_kv_heads=kv_heads, head_dim=size, rope_theta=THETA, norm_eps=EPS
    )


# RMSNorm ---------------------------------------------------------------------------------------------------------


def test_rms_norm() -> None:
    rng = np.random.default_rng(0)
    for width, rows in itertools.product(WIDTHS, [0, 1, 3]):
        x, gamma = 3 * normal(rng, rows, width) + 1, normal(rng, width)
        for gain in (None, gamma):
            y, _, rstd = ops.norm(x, eps=1e-6, gamma=gain, rms=True)
            check(y, ref.rms_norm(wide(x), 1e-6, None if gain is None else wide(gain)), chain_tolerance(width, 1))
            check(rstd, 1 / np.sqrt(np.square(wide(x)).mean(axis=1) + 1e-6), chain_tolerance(width, 1))
            assert ops.norm(x, eps=1e-6, gamma=gain, rms=True, in_place=True)[0].tobytes() == y.tobytes()
            pairs = ops.norm(x, eps=1e-6, gamma=gain, rms=True, pairs=True)[0]
            assert np.array_equal(pairs, ref.round_bfloat16(y))


def test_rms_norm_backward() -> None:
    rng = np.random.default_rng(1)
    for width, rows in itertools.product(WIDTHS, [1, 3, 4, 7]):
        x, dy, onto, gamma = (normal(rng, rows, width) for _ in range(4))
        gamma = gamma[0]
        y, _, rstd = ops.norm(x, eps=EPS, gamma=gamma, rms=True)
        want, dgamma = ref.rms_norm_backward(wide(dy), wide(x), EPS, wide(gamma))
        size, tolerance = wide(dy) * rstd[:, None] * gamma, chain_tolerance(width, width, 1)
        got = ops.norm_backward(dy, x, rstd, gamma=gamma, rms=True)
        check(got, want, tolerance, size)
        check(ops.norm_backward(dy, x, rstd, gamma=gamma, rms=True, onto=onto), want + onto, tolerance, size + onto)
        for pairs in (False, True):
            dx, again = ops.norm_backward(dy, x, rstd, gamma=gamma, rms=True, again=True, pairs=pairs)
            assert dx.tobytes() == got.tobytes() and np.array_equal(again, rounded(y, pairs))
        plain = ref.rms_norm_backward(wide(dy), wide(x), EPS)[0]
        check(ops.norm_backward(dy, x, rstd, rms=True), plain, tolerance, wide(dy) * rstd[:, None])
        got_gamma = ops.rms_norm_grad(dy, x, rstd, gamma)
        check(got_gamma, dgamma + gamma, chain_tolerance(width, rows, 1), np.append(dy * x * rstd[:, None], gamma))


def test_sums_of_rows_run_in_their_order() -> None:
    rng = np.random.default_rng(2)
    for rows, width in itertools.product([0, 1, 5, 33], [1, 3, 16, 33, 129]):
        x, onto = normal(rng, rows, width), normal(rng, width)
        want = np.add.accumulate(np.concatenate([onto[None], x]), axis=0, dtype=np.float32)[-1]
        assert ops.sum_rows(x, onto).tobytes() == want.tobytes()


# SwiGLU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_swiglu(precision: str) -> None:
    """The product and what it makes on the way, in floats and in pairs; sums deeper than a tile, rows in every cut."""
    rng = np.random.default_rng(3)
    for rows, k, f in [(1, 1, 1), (3, 2, 2), (5, 7, 3), (13, 33, 17), (33, 9, 65), (200, 770, 34), (7, 2100, 130)]:
        x, w = normal(rng, rows, k), normal(rng, k, 2 * f) / np.float32(np.sqrt(k))
        hidden, y = ops.swiglu_product(x, w, precision=precision)
        assert hidden.tobytes() == ops.matmul(x, w, precision=precision).tobytes()
        check(y, ref.swiglu(wide(hidden)), chain_tolerance(1, 1, 1))
        dy_of = normal(rng, rows, k), normal(rng, k, f) / np.float32(np.sqrt(k))
        dy = ops.matmul(*dy_of, precision=precision)
        dx, again = ops.swiglu_gradient_product(*dy_of, hidden, precision=precision)
        assert again.tobytes() == y.tobytes()
        check(dx, ref.swiglu_backward(wide(dy), wide(hidden)), chain_tolerance(1, 1, 1, 1), np.append(dy, dx))
        if precision == "bfloat16":
            assert np.array_equal(ops.swiglu_product(x, w, precision=precision, pairs="y")[1], rounded(y, True))
            for pairs in ("y", "c", "cy") if f % 2 == 0 else ("y",):
                parts = ops.swiglu_gradient_product(*dy_of, hidden, precision=precision, pairs=pairs)
                assert np.array_equal(parts[0], rounded(dx, "c" in pairs)), (rows, k, f, pairs)
                assert np.array_equal(parts[1], rounded(y, "y" in pairs)), (rows, k, f, pairs)


def test_swiglu_of_small_and_large_numbers() -> None:
    gate = np.concatenate([sign * np.geomspace(1e-38, 3e38, 801) for sign in (-1, 1)]).astype(np.float32)
    ones = np.ones((1, gate.size), np.float32)
    one = np.ones((1, 1), np.float32)
    hidden, y = ops.swiglu_product(one, np.concatenate([gate[None], ones], axis=1))
    want = wide(gate) / (1 + np.exp(-np.clip(wide(gate), -300, None)))
    assert np.all(np.abs(y[0] - want) <= chain_tolerance(1, 1) * np.abs(want) + 1e-35)
    d_hidden, again = ops.swiglu_gradient_product(one, ones, hidden)
    assert again.tobytes() == y.tobytes() and np.isfinite(d_hidden).all()
    near = np.clip(wide(gate), -300, 300)
    s = 1 / (1 + np.exp(-near))
    slope = d_hidden[0, : gate.size]
    assert np.abs(slope - (s + near * s * (1 - s))).max() <= 40 * np.finfo(np.float32).eps
    bad = np.array([[1, np.nan, 2, 1, 1, 1]], np.float32)
    assert np.array_equal(np.isnan(ops.swiglu_product(one, bad)[1]), [[False, True, False]])


# rotary positions, norms of heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("gains", [False, True])
def test_rotation(gains: bool) -> None:
    """On its way out of the product of queries, keys and values."""
    rng = np.random.default_rng(4)
    for batch, length, heads, kv_heads, size in HEADS:
        width = (heads + 2 * kv_heads) * size
        x, w, turn = normal(rng, batch, length, 7), normal(rng, 7, width), turns(length, size)
        q_gain, k_gain = (normal(rng, size), normal(rng, size)) if gains else (None, None)
        options: dict[str, Any] = {"kv_heads": kv_heads, "q_gain": q_gain, "k_gain": k_gain, "eps": EPS}
        for precision in ("float32", "bfloat16"):
            plain = ops.matmul(x.reshape(-1, 7), w, precision=precision).reshape(batch, length, width)
            before, qkv = ops.rotated_product(x, w, turn, heads, precision=precision, **options)
            if gains:
                assert before.tobytes() == plain.tobytes()
            want = rotated(
                wide(plain), *(g if g is None else wide(g) for g in (q_gain, k_gain)), config(heads, kv_heads, size)
            )
            check(qkv, want, chain_tolerance(size, 1, 1))
            assert np.array_equal(qkv[..., -kv_heads * size :], plain[..., -kv_heads * size :])
            if precision == "bfloat16":
                before, pairs = ops.rotated_product(x, w, turn, heads, precision=precision, pairs="c", **options)
                assert before.tobytes() == plain.tobytes() and np.array_equal(pairs, rounded(qkv, True))


@pytest.mark.parametrize("gains", [False, True])
def test_attention_of_shared_heads_and_the_way_back_through_the_rotation(gains: bool) -> None:
    rng = np.random.default_rng(5)
    for batch, length, heads, kv_heads, size in HEADS:
        width, shape = (heads + 2 * kv_heads) * size, config(heads, kv_heads, size)
        before, dout = normal(rng, batch, length, width), normal(rng, batch, length, heads * size)
        q_gain, k_gain = (normal(rng, size), normal(rng, size)) if gains else (None, None)
        wide_gains = [g if g is None else wide(g) for g in (q_gain, k_gain)]
        qkv = rotated(wide(before), *wide_gains, shape).astype(np.float32)
        options: dict[str, Any] = {"kv_heads": kv_heads}
        if gains:
            options |= {"q_gain": q_gain, "k_gain": k_gain, "before": before, "eps": EPS}
        spread = float(np.abs(qkv).max())
        tolerance = chain_tolerance(size, length, length, size, 1, 1) * (1 + spread**2 * np.sqrt(size))
        out, lse = ops.attention(qkv, heads, kv_heads=kv_heads)
        check(out, ref.attention(wide(qkv), heads, kv_heads), tolerance, wide(qkv))
        want = ref.attention_backward(wide(dout), wide(qkv), heads, kv_heads)
        plain = ops.attention_backward(dout, qkv, lse, kv_heads=kv_heads)
        check(plain, want, 2 * tolerance, np.append(wide(dout) * (1 + spread), want))
        want, by_gain = rotated_backward(want, wide(before), *wide_gains, shape)
        turned = ops.attention_backward(dout, qkv, lse, turns=turns(length, size), **options)
        dqkv = turned[0] if gains else turned
        check(dqkv, want, 3 * tolerance, np.append(wide(dout) * (1 + spread), want) * (10 if gains else 1))
        for part, name in zip(turned[1:], by_gain, strict=True) if gains else ():
            check(part.sum(axis=0), by_gain[name], 4 * tolerance, np.append(wide(dout) * (1 + spread), by_gain[name]))
        if length > 1:
            with ref.bfloat16_products():
                want = ref.attention_backward(wide(dout), wide(qkv), heads, kv_heads)
            out, lse = ops.attention(qkv, heads, "bfloat16", kv_heads=kv_heads)
            assert ops.attention(qkv, heads, "bfloat16", "a", kv_heads)[0].tobytes() == out.tobytes()
            got = ops.attention_backward(dout, qkv, lse, "bfloat16", kv_heads=kv_heads)
            check(got, want, bfloat16_tolerance(7), np.append(wide(dout), want))
            got = ops.attention_backward(dout, qkv, lse, "bfloat16", turns=turns(length, size), **options)
            pairs = ops.attention_backward(dout, qkv, lse, "bfloat16", "ac", turns=turns(length, size), **options)
            got, pairs = (got, pairs) if gains else ([got], [pairs])
            assert np.array_equal(pairs[0], rounded(got[0], True))
            assert all(a.tobytes() == b.tobytes() for a, b in zip(pairs[1:], got[1:], strict=True))


def test_one_head_of_keys_for_each_of_queries_is_plain_attention() -> None:
    rng = np.random.default_rng(6)
    qkv, dout = normal(rng, 2, 37, 9 * 10), normal(rng, 2, 37, 30)
    for precision in ("float32", "bfloat16"):
        out, lse = ops.attention(qkv, 3, precision)
        assert ops.attention(qkv, 3, precision, kv_heads=3)[0].tobytes() == out.tobytes()
        got = ops.attention_backward(dout, qkv, lse, precision)
        assert ops.attention_backward(dout, qkv, lse, precision, kv_heads=3).tobytes() == got.tobytes()


# generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gains", [False, True])
def test_decoding_rotates_and_shares_heads(gains: bool) -> None:
    """Rows of different lengths; the bits of the rotation in training, and of any number of threads."""
    rng = np.random.default_rng(7)
    for heads, kv_heads, size in [(1, 1, 2), (3, 1, 6), (4, 2, 16), (4, 2, 64), (6, 3, 34)]:
        lengths = np.array([0, 1, 15, 16, 17, 63, 64, 78], np.int32)
        rows, capacity, shape = len(lengths), 80, config(heads, kv_heads, size)
        q_dim, kv_dim, turn = heads * size, kv_heads * size, turns(capacity, size)
        before = normal(rng, rows, capacity, q_dim + 2 * kv_dim)
        q_gain, k_gain = (normal(rng, size), normal(rng, size)) if gains else (None, None)
        options: dict[str, Any] = {"kv_heads": kv_heads, "q_gain": q_gain, "k_gain": k_gain, "eps": EPS}
        eye = np.eye(before.shape[-1], dtype=np.float32)
        qkv = ops.rotated_product(before, eye, turn, heads, **options)[1]
        keys, values = qkv[..., q_dim : q_dim + kv_dim].copy(), qkv[..., q_dim + kv_dim :].copy()
        for row, length in enumerate(lengths):
            keys[row, length:] = values[row, length:] = np.nan
        last, at = before[np.arange(rows), lengths], (np.arange(rows), lengths)
        seen = set()
        for threads in (1, 2, 3):
            soma.set_num_threads(threads)
            out, new_keys, new_values = ops.decode_attention(last, keys, values, lengths, heads, turns=turn, **options)
            seen.add(out.tobytes() + new_keys.tobytes() + new_values.tobytes())
        soma.set_num_threads(1)
        assert len(seen) == 1
        assert np.array_equal(new_keys[at], qkv[at][:, q_dim : q_dim + kv_dim])
        assert np.array_equal(new_values[at], qkv[at][:, q_dim + kv_dim :])
        full = rotated(wide(before), *(g if g is None else wide(g) for g in (q_gain, k_gain)), shape)
        want = np.stack(
            [ref.attention(full[r : r + 1, : n + 1], heads, kv_heads)[0, -1] for r, n in enumerate(lengths)]
        )
        tolerance = chain_tolerance(size, size, capacity, capacity, 1, 1) * (
            1 + float(np.square(full).max()) * np.sqrt(size)
        )
        assert np.linalg.norm(out - want) <= tolerance * np.linalg.norm(full[at])


@pytest.mark.parametrize("form", ["live", "float32", "bfloat16", "int8"])
def test_swiglu_in_generation_is_the_product_s(form: str) -> None:
    """Halves that begin with a panel of 64 outputs, and others."""
    rng = np.random.default_rng(8)
    for k, f in [(1, 1), (33, 17), (65, 64), (130, 192), (385, 100)]:
        x, w = normal(rng, 45, k), normal(rng, k, 2 * f) / np.float32(np.sqrt(k))
        for rows, prompt in itertools.product((1, 5, 45), (False, True)):
            seen = set()
            for threads in (1, 2, 3):
                soma.set_num_threads(threads)
                seen.add(ops.decode_swiglu(x[:rows], w, weights=form, prompt=prompt).tobytes())
            soma.set_num_threads(1)
            hidden = ops.decode_linear(x[:rows], w, weights=form, prompt=prompt)
            got = np.frombuffer(seen.pop(), np.float32).reshape(rows, f)
            assert not seen
            check(got, ref.swiglu(wide(hidden)), chain_tolerance(1, 1, 1))
            if form in ("live", "float32"):
                assert got.tobytes() == ops.swiglu_product(x[:rows], w)[1].tobytes()


# threads, mistakes -----------------------------------------------------------------------------------------------


def test_the_same_bits_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(9)
    x, dy, gamma = normal(rng, 301, 211), normal(rng, 301, 211), normal(rng, 211)
    rstd = ops.norm(x, eps=EPS, rms=True)[2]
    w, w_back = normal(rng, 211, 2 * 130), normal(rng, 211, 130)
    hidden = ops.swiglu_product(x, w)[0]
    heads, kv_heads, size, turn = 6, 3, 22, turns(71, 22)
    before, dout = normal(rng, 3, 71, 12 * size), normal(rng, 3, 71, heads * size)
    eye = np.eye(12 * size, dtype=np.float32)
    options: dict[str, Any] = {"kv_heads": 3, "q_gain": gamma[:22].copy(), "k_gain": gamma[22:44].copy(), "eps": EPS}
    qkv = ops.rotated_product(before, eye, turn, heads, **options)[1]
    lse = ops.attention(qkv, heads, kv_heads=kv_heads)[1]
    back = {"turns": turn, "before": before, **options}
    work: dict[str, Callable[[], Any]] = {
        "norm": lambda: ops.norm(x, eps=EPS, gamma=gamma, rms=True)[::2],
        "norm_backward": lambda: ops.norm_backward(dy, x, rstd, gamma=gamma, rms=True, again=True),
        "norm_grad": lambda: ops.rms_norm_grad(dy, x, rstd, gamma),
        "sum_rows": lambda: ops.sum_rows(normal(np.random.default_rng(1), 999, 211), gamma),
    }
    for precision, pairs in (("float32", ""), ("bfloat16", ""), ("bfloat16", "c")):
        p: dict[str, Any] = {"precision": precision}
        work |= {
            f"swiglu {p} {pairs}": lambda p=p: ops.swiglu_product(x, w, **p),
            f"swiglu' {p} {pairs}": lambda p=p, c=pairs: ops.swiglu_gradient_product(dy, w_back, hidden, pairs=c, **p),
            f"rotated {p} {pairs}": lambda p=p, c=pairs: ops.rotated_product(
                before, eye, turn, heads, pairs=c, **p, **options
            ),
            f"attention {p}": lambda p=p: ops.attention(qkv, heads, kv_heads=kv_heads, **p),
            f"attention' {p} {pairs}": lambda p=p, c=pairs: ops.attention_backward(
                dout, qkv, lse, pairs=c, **p, **back
            ),
        }
    assert_same_bits(work)


def test_wrong_shapes_are_errors_that_name_the_operand() -> None:
    x, qkv, turn = np.ones((3, 4), np.float32), np.ones((1, 2, 12), np.float32), np.ones((2, 2), np.float32)
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("RMSNorm has no beta", lambda: ops.norm(x, eps=1e-6, gamma=x[0], beta=x[0], rms=True)),
        ("dgamma", lambda: ops.rms_norm_grad(x, x, np.ones(3, np.float32), np.ones(3, np.float32))),
        ("onto", lambda: ops.sum_rows(x, np.ones(3, np.float32))),
        ("kv_heads", lambda: ops.attention(qkv, 3, kv_heads=2)),
        ("head_size", lambda: ops.attention(qkv, 4, kv_heads=2)),
        ("turns", lambda: ops.rotated_product(qkv, np.ones((12, 12), np.float32), turn[:1], 2, kv_heads=2)),
        ("even", lambda: ops.rotated_product(qkv, np.ones((12, 3), np.float32), turn, 1)),
        ("even number", lambda: ops.swiglu_product(x, np.ones((4, 3), np.float32))),
        ("hidden", lambda: ops.swiglu_gradient_product(x, np.ones((4, 3), np.float32), x)),
    ]
    for message, call in wrong:
        with pytest.raises(ValueError, match=message):
            call()
