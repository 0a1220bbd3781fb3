"""Norms, activations, attention, embeddings, loss and optimizer on every ISA against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from helpers.numerics import bfloat16_tolerance, chain_tolerance, normal
from helpers.threads import assert_same_bits
from oracles import reference as ref
from oracles.activations import ACTIVATIONS, relu_backward
from oracles.reference import Array
from soma_native._core import _ops as ops

# Around the widths of one vector (4, 8, 16) and of two: one less, exactly these, and one more. Also primes.
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 385, 1021]


pytestmark = pytest.mark.usefixtures("one_thread")


def wide(x: Array) -> Array:
    return x.astype(np.float64)


def check(got: Array, want: Array, tolerance: float, size: Array | None = None) -> None:
    """||got - want|| <= tolerance ||size||. `size` is the result's terms, if they may cancel; else it is `want`."""
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want if size is None else size), got.shape


# norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_norm(eps: float, affine: bool) -> None:
    rng = np.random.default_rng(0)
    for width, rows in itertools.product(WIDTHS, [0, 1, 3]):
        x = 3 * normal(rng, rows, width) + 1
        options = {"gamma": normal(rng, width), "beta": normal(rng, width)} if affine else {}
        weights = [wide(w) for w in options.values()]
        y, mean, rstd = ops.norm(x, eps=eps, **options)
        tolerance = chain_tolerance(width, width, 1)
        # Centring cancels: x - mean gets smaller, but the rounding error of x stays.
        size = wide(x) * rstd[:, None] * (np.abs(options["gamma"]).max() if affine else 1)
        check(y, ref.norm(wide(x), eps, *weights), tolerance, np.append(size, weights[1:]))
        check(mean, wide(x).mean(axis=1), chain_tolerance(width), wide(x))
        check(rstd, 1 / np.sqrt(wide(x).var(axis=1) + eps), tolerance * (1 if width > 1 else 1e3))
        assert ops.norm(x, eps=eps, in_place=True, **options)[0].tobytes() == y.tobytes()


@pytest.mark.usefixtures("isa")
def test_norm_of_nearly_equal_numbers() -> None:
    """A mean of 1000 beside a variance of 1 needs two passes: a sum of squares would lose the variance."""
    rng = np.random.default_rng(1)
    for width in (5, 64, 1021):
        x = 1000 + normal(rng, 4, width)
        y, _, _ = ops.norm(x, eps=1e-6)
        size = wide(x) * (1 / wide(x).std(axis=1, keepdims=True))
        check(y, ref.norm(wide(x), 1e-6), chain_tolerance(width), size)
        assert np.abs(y.std(axis=1) - 1).max() < 1e-3
    assert np.array_equal(ops.norm(np.full((2, 33), 7, np.float32), eps=1e-6)[0], np.zeros((2, 33)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("affine", [False, True])
def test_norm_backward(affine: bool) -> None:
    rng = np.random.default_rng(2)
    for width, rows in itertools.product(WIDTHS, [1, 3, 4, 7]):
        x, dy, onto = normal(rng, rows, width), normal(rng, rows, width), normal(rng, rows, width)
        gamma = normal(rng, width) if affine else None
        weight = None if gamma is None else wide(gamma)
        y, mean, rstd = ops.norm(x, eps=1e-2)  # large enough for rows of one and two numbers to be well-conditioned
        want, dgamma, dbeta = ref.norm_backward(wide(dy), wide(x), 1e-2, weight)
        # The gradient is dy minus two projections, which may cancel.
        size = wide(dy) * rstd[:, None] * (1 if gamma is None else gamma)
        tolerance = chain_tolerance(width, width, width, 1)
        got = ops.norm_backward(dy, x, rstd, mean=mean, gamma=gamma)
        check(got, want, tolerance, size)
        check(ops.norm_backward(dy, x, rstd, mean=mean, gamma=gamma, onto=onto), want + onto, tolerance, size + onto)
        if not affine:
            check(ops.norm_backward(dy, y, rstd), want, tolerance, size)  # from the output alone
            check(ops.norm_backward(dy, y, rstd, onto=onto), want + onto, tolerance, np.append(size, onto))
        else:  # backward recomputes the output with the same roundings
            beta = normal(rng, width)
            y = ops.norm(x, eps=1e-2, gamma=gamma, beta=beta)[0]
            for pairs, same in ((False, y), (True, ref.round_bfloat16(y))):
                dx, again = ops.norm_backward(dy, x, rstd, mean=mean, gamma=gamma, beta=beta, pairs=pairs)
                assert dx.tobytes() == got.tobytes() and np.array_equal(again, same)
        start = normal(rng, 2, width)
        got_gamma, got_beta = ops.norm_grad(dy, x, mean, rstd, start[0], start[1])
        xhat = wide(dy) * ref.norm(wide(x), 1e-2)
        tolerance = chain_tolerance(width, width, rows, 1)
        check(got_gamma, dgamma + start[0], tolerance, np.concatenate([xhat.ravel(), wide(dy).ravel(), start[0]]))
        check(got_beta, dbeta + start[1], chain_tolerance(rows), np.append(dy, start[1]))


# activations ----------------------------------------------------------------------------------------------------

GELUS = ("gelu_tanh", "gelu")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", GELUS)
def test_gelu(activation: str) -> None:
    rng = np.random.default_rng(3)
    forward, backward = ACTIVATIONS[activation]
    for width in WIDTHS:
        x, dy = 3 * normal(rng, 2, width), normal(rng, 2, width)
        check(ops.gelu(x, activation)[1], forward(wide(x)), chain_tolerance(1, 1), wide(x))
        dx, y = ops.gelu_backward(dy, x, activation)
        check(dx, backward(wide(dy), wide(x)), chain_tolerance(1, 1, 1), wide(dy))
        assert y.tobytes() == ops.gelu(x, activation)[1].tobytes()
        assert ops.gelu(x, activation)[0].tobytes() == x.tobytes()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", GELUS)
def test_gelu_of_small_and_large_numbers(activation: str) -> None:
    """Near 0, where the exponential is about 1, and at large numbers, where it is clamped."""
    forward, backward = ACTIVATIONS[activation]
    x = np.concatenate([sign * np.geomspace(1e-38, 3e38, 4001) for sign in (-1, 1)]).astype(np.float32)[None]
    far = np.abs(x) > 20
    want, slope = forward(np.clip(wide(x), -20, None)), backward(np.ones(x.shape), np.clip(wide(x), -20, 20))
    dx, y = ops.gelu_backward(np.ones_like(x), x, activation)
    assert y.tobytes() == ops.gelu(x, activation)[1].tobytes()
    assert np.array_equal(y[far & (x > 0)], x[far & (x > 0)])
    assert np.abs(y - want)[far & (x < 0)].max() <= 1e-20
    assert np.all(np.abs(y - want) <= chain_tolerance(1, 1, 1) * np.abs(x) + np.finfo(np.float32).tiny)
    # With s = 1 / (1 + e^(-2u)) the slope has a term x s (1 - s) 2u': half an eps of 1 - s times up to 40.
    assert np.abs(dx - slope).max() <= chain_tolerance(1, 1, 1, 1) + 20 * np.finfo(np.float32).eps
    zero = np.zeros((1, 3), np.float32)
    assert np.array_equal(ops.gelu(zero, activation)[1], zero)
    assert np.array_equal(ops.gelu_backward(zero + 1, zero, activation)[0], zero + 0.5)
    bad = np.array([[1, np.nan, 2]], np.float32)
    assert np.array_equal(np.isnan(ops.gelu(bad, activation)[1]), np.isnan(bad))
    assert all(np.array_equal(np.isnan(part), np.isnan(bad)) for part in ops.gelu_backward(zero + 1, bad, activation))


@pytest.mark.usefixtures("isa")
def test_relu_backward() -> None:
    rng = np.random.default_rng(4)
    for width in WIDTHS:
        dy, y = normal(rng, 3, width), np.maximum(normal(rng, 3, width), 0)
        assert np.array_equal(ops.relu_backward(dy, y), relu_backward(dy, y))


# attention ------------------------------------------------------------------------------------------------------

# (batch, length, heads, head size): around tile rows, vector widths and the blocks of the backward pass (32, 48, 96).
ATTENTION = [
    (1, 1, 1, 1), (2, 2, 1, 3), (1, 3, 2, 4), (1, 4, 3, 5), (2, 5, 2, 8), (1, 6, 1, 7), (1, 7, 2, 9), (1, 11, 1, 16),
    (2, 12, 2, 15), (1, 13, 3, 17), (1, 16, 1, 32), (1, 17, 1, 31), (1, 31, 2, 33), (1, 33, 1, 64), (1, 47, 1, 65),
    (1, 48, 2, 8), (1, 49, 1, 13), (1, 95, 1, 16), (1, 97, 2, 5), (2, 127, 1, 24), (1, 129, 2, 12), (1, 193, 1, 7),
]  # fmt: skip


def attention_sums(length: int, size: int) -> float:
    """The error of attention's three sums: a score, the sum of the softmax, and the weighted values."""
    return chain_tolerance(size, length, length, 1, 1)


def scale_of(length: int, size: int) -> float:
    """The usual scale of the scores where the length is odd, another where it is even."""
    return float((1.0 if length % 2 else 0.7) / np.sqrt(size))


def log_sum_exp(qkv: Array, heads: int, scale: float) -> Array:
    """Log-sum-exp of the scaled scores of every query, (B, H, T)."""
    q, k, _ = ref.split_heads(qkv, heads)
    length = qkv.shape[1]
    scores = q @ k.swapaxes(-1, -2) * scale
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    top = scores.max(axis=-1)
    return np.asarray(top + np.log(np.exp(scores - top[..., None]).sum(axis=-1)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_attention(spread: float) -> None:
    """Flat, usual and peaked distributions."""
    rng = np.random.default_rng(5)
    for batch, length, heads, size in ATTENTION:
        channels = heads * size
        qkv, dout = normal(rng, batch, length, 3 * channels), normal(rng, batch, length, channels)
        qkv[..., : 2 * channels] *= spread
        scale = scale_of(length, size)
        out, lse = ops.attention(qkv, heads, scale=scale)
        # A score's rounding error grows with the score and multiplies the probability.
        amplified = attention_sums(length, size) * (1 + spread**2 * np.sqrt(size))
        check(out, ref.attention(wide(qkv), heads, scale=scale), amplified, wide(qkv[..., 2 * channels :]))
        want = log_sum_exp(wide(qkv), heads, scale)
        check(lse, want, amplified, want + 1 + spread**2)
        want = ref.attention_backward(wide(dout), wide(qkv), heads, scale=scale)
        got = ops.attention_backward(dout, qkv, lse, scale=scale)
        check(got, want, 2 * amplified, np.append(wide(dout) * (1 + spread), want))


@pytest.mark.usefixtures("isa")
def test_attention_in_bfloat16() -> None:
    """The errors of two products forward, and of five more backward. Log-sum-exp has the error of the first alone."""
    rng = np.random.default_rng(5)
    for batch, length, heads, size in ATTENTION:
        channels = heads * size
        qkv, dout = normal(rng, batch, length, 3 * channels), normal(rng, batch, length, channels)
        scale = scale_of(length, size)
        out, lse = ops.attention(qkv, heads, "bfloat16", scale=scale)
        want = log_sum_exp(wide(ref.round_bfloat16(qkv)), heads, scale=scale)
        check(lse, want, attention_sums(length, size) * (1 + np.sqrt(size)), want + 1)
        got = ops.attention_backward(dout, qkv, lse, "bfloat16", scale=scale)
        with ref.bfloat16_products():
            check(out, ref.attention(wide(qkv), heads, scale=scale), bfloat16_tolerance(2), wide(qkv))
            want = ref.attention_backward(wide(dout), wide(qkv), heads, scale=scale)
        check(got, want, bfloat16_tolerance(7), np.append(wide(dout), want))


@pytest.mark.usefixtures("isa")
def test_attention_of_extreme_scores() -> None:
    """With scores of +-1e4 and +-1e8 one position has all the weight, and nothing overflows."""
    rng = np.random.default_rng(6)
    for scale, length in itertools.product([1e2, 1e4], [5, 33]):
        qkv, dout = normal(rng, 1, length, 3 * 16), normal(rng, 1, length, 16)
        qkv[..., :32] = scale * np.sign(qkv[..., :32])  # sums of 8 products +-scale^2: exact, so ties are ties
        out, lse = ops.attention(qkv, 2)  # divided by sqrt(8)
        check(out, ref.attention(wide(qkv), 2), attention_sums(length, 8), wide(qkv[..., 32:]))
        check(lse, log_sum_exp(wide(qkv), 2, 8**-0.5), chain_tolerance(1))
        gradient = ops.attention_backward(dout, qkv, lse)
        want = ref.attention_backward(wide(dout), wide(qkv), 2)
        assert np.isfinite(gradient).all()
        # log-sum-exp has 24 bits; its rounding error is a relative error of the probabilities in backward.
        rounding = np.finfo(np.float32).eps * float(np.abs(lse).max())
        if rounding < 0.01:
            check(gradient, want, 4 * (rounding + attention_sums(length, 8)) * scale, np.append(wide(dout), want))


@pytest.mark.usefixtures("isa")
def test_attention_of_one_position_is_its_value() -> None:
    """Bit for bit, up to scores of 1e12, whose rounding error alone would overflow an exponential."""
    rng = np.random.default_rng(8)
    for size, factor in itertools.product([1, 8, 33], [1, 1e2, 1e6]):
        qkv = normal(rng, 1, 1, 3 * size)
        qkv[..., : 2 * size] *= factor
        value = qkv[..., 2 * size :]
        assert np.array_equal(ops.attention(qkv, 1)[0], value)
        assert np.array_equal(ops.attention(qkv, 1, "bfloat16")[0], ref.round_bfloat16(value))


@pytest.mark.usefixtures("isa")
def test_nan_reaches_what_looks_at_it() -> None:
    rng = np.random.default_rng(7)
    length, heads, size = 29, 2, 5
    clean = normal(rng, 1, length, 3 * heads * size)
    position = 13
    for part, reached in [(0, slice(position, position + 1)), (1, slice(position, None))]:
        qkv = clean.copy()
        qkv[0, position, part * heads * size + size] = np.nan  # second head
        want = np.zeros((1, length, heads, size), bool)
        want[0, reached, 1] = True
        out, lse = ops.attention(qkv, heads)
        assert np.array_equal(np.isnan(out), want.reshape(out.shape))
        assert np.array_equal(np.isnan(lse[0]), want[0, :, :, 0].T)


# embeddings and loss --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_embeddings() -> None:
    rng = np.random.default_rng(9)
    for width, batch, length in [(1, 1, 1), (3, 2, 5), (16, 3, 7), (17, 1, 11), (33, 4, 3), (65, 2, 13)]:
        wte, wpe = normal(rng, 7, width), normal(rng, 13, width)
        ids = rng.integers(0, 7, (batch, length)).astype(np.int32)  # few tokens, so that they repeat
        assert np.array_equal(ops.embed(ids, wte, wpe), ref.embedding(ids, wte, wpe))
        assert np.array_equal(ops.embed(ids, wte), wte[ids])
        dout = normal(rng, batch, length, width)
        dwte, dwpe = ref.embedding_backward(wide(dout), ids, 7, 13)
        got_wte, got_wpe = ops.embed_backward(dout, ids, wte, wpe)
        tolerance = chain_tolerance(batch * length)
        check(got_wte, dwte + wte, tolerance, np.append(dout, wte))
        check(got_wpe, dwpe + wpe, tolerance, np.append(dout, wpe))
        alone, none = ops.embed_backward(dout, ids, wte)
        assert np.array_equal(alone, got_wte) and none is None
        unused = np.setdiff1d(np.arange(7), ids)
        assert np.array_equal(got_wte[unused], wte[unused]) and np.array_equal(got_wpe[length:], wpe[length:])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_cross_entropy(spread: float) -> None:
    rng = np.random.default_rng(10)
    for vocabulary in [*WIDTHS, 4099]:
        rows = 7
        logits = spread * normal(rng, rows, vocabulary)
        targets = rng.integers(0, vocabulary, rows).astype(np.int32)
        targets[0], targets[-1] = 0, vocabulary - 1
        targets[2] = ref.IGNORE
        losses, untouched = ops.cross_entropy(logits, targets)
        assert untouched.tobytes() == logits.tobytes() and losses[2] == 0
        want = np.array([ref.cross_entropy(wide(logits[r : r + 1]), targets[r : r + 1], 1) for r in range(rows)])
        tolerance = chain_tolerance(vocabulary, 1, 1) * (1 + spread)
        check(losses, want, tolerance, want + np.log(vocabulary) + 1)
        again, gradient = ops.cross_entropy(logits, targets, 0.125)
        assert again.tobytes() == losses.tobytes()
        check(gradient, ref.cross_entropy_backward(wide(logits), targets, 8), tolerance, np.full(rows, 0.125))
        assert not gradient[2].any()


@pytest.mark.usefixtures("isa")
def test_cross_entropy_of_extreme_logits() -> None:
    for width in (2, 5, 16, 33, 65):
        rows = np.zeros((7, width), np.float32)
        rows[0] = 1e4  # e^10000 is no float, and a shift changes nothing
        rows[1] = -1e4
        rows[2, 1:] = -1e30  # certain and right
        rows[3, :-1] = -1e30  # certain and wrong
        rows[4, 1:] = -np.inf  # forbidden
        rows[5, 1] = np.nan
        targets = np.array([0, 0, 0, 0, 0, 0, width - 1], np.int32)
        losses, gradient = ops.cross_entropy(rows, targets, 1.0)
        even = np.log(width)
        assert np.allclose(losses[[0, 1, 6]], even, rtol=chain_tolerance(width, 1))
        assert losses[2] == losses[4] == 0 and losses[3] == np.float32(1e30) and np.isnan(losses[5])
        assert np.isnan(gradient[5]).all() and np.isfinite(gradient[np.arange(7) != 5]).all()
        want = np.full(width, 1 / width)
        want[0] -= 1
        for row in (0, 1):
            check(gradient[row], want, chain_tolerance(width, 1), np.ones(1))
        assert np.abs(gradient[[2, 4]]).max() <= chain_tolerance(width)
        wrong = np.zeros(width)
        wrong[0], wrong[-1] = -1, 1
        check(gradient[3], wrong, chain_tolerance(width))


# optimizer ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_sum_of_squares() -> None:
    """Up to 256 numbers are summed in single precision, and one thread sums 32768."""
    rng = np.random.default_rng(11)
    for count in [0, 1, 3, 15, 16, 17, 33, 255, 256, 257, 511, 32767, 32768, 32769, 65537, 100003]:
        x = normal(rng, count)
        want = float(np.square(wide(x)).sum())
        assert abs(ops.sum_squares(x) - want) <= chain_tolerance(256) * want, count
    x = np.ones(2**25, np.float32)  # single precision counts only to 2^24
    assert ops.sum_squares(x) == 2**25
    x[-1] = np.nan
    assert np.isnan(ops.sum_squares(x[-5:]))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_adamw(decay: float) -> None:
    """Three steps, with options that single precision holds exactly."""
    rng = np.random.default_rng(12)
    options: dict[str, Any] = {"lr": 2.0**-7, "weight_decay": decay, "eps": 2.0**-20}
    for count in [1, 3, 4, 5, 8, 15, 16, 17, 33, 1021, 32767, 32769]:
        p, m, v = normal(rng, count), np.zeros(count, np.float32), np.zeros(count, np.float32)
        oracle = ref.AdamW(betas=(0.875, 0.9375), max_grad_norm=0, **options)
        want = {"p": wide(p)[None]}  # of two dimensions, so that it decays
        for step in (1, 2, 3):
            g = normal(rng, count)
            oracle.step(want, {"p": wide(g)[None] / 4})
            p, g, m, v = ops.adamw(p, g, m, v, beta1=0.875, beta2=0.9375, grad_scale=0.25, step=step, **options)
            assert not g.any()
        for got, right in [(p, want["p"]), (m, oracle.m["p"]), (v, oracle.v["p"])]:
            check(got[None], right, chain_tolerance(1, 1, 1, 1))


# threads and shapes ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
def test_the_same_bits_on_any_number_of_threads() -> None:
    """Sizes that are large enough for three threads, and multiples of no block."""
    rng = np.random.default_rng(13)
    x, dy, onto, gamma = normal(rng, 201, 211), normal(rng, 201, 211), normal(rng, 201, 211), normal(rng, 211)
    long, dlong = normal(rng, 601, 701), normal(rng, 601, 701)
    stats = ops.norm(x, eps=1e-6)[1:]
    qkv, dout = normal(rng, 3, 71, 3 * 5 * 11), normal(rng, 3, 71, 5 * 11)
    lse = ops.attention(qkv, 5)[1]
    ids, targets = rng.integers(0, 29, (4, 201)), rng.integers(0, 211, 201).astype(np.int32)
    tables = normal(rng, 29, 211), normal(rng, 201, 211)
    embedded = normal(rng, 4, 201, 211)
    state = [normal(rng, 200_003) for _ in range(3)] + [np.square(normal(rng, 200_003))]
    step = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.5, "step": 7}
    work: dict[str, Callable[[], Any]] = {
        "norm": lambda: ops.norm(x, eps=1e-6, gamma=gamma, beta=gamma),
        "norm_backward": lambda: ops.norm_backward(dy, x, stats[1], mean=stats[0], gamma=gamma, onto=onto),
        "norm_grad": lambda: ops.norm_grad(dy, x, *stats, gamma, gamma),
        "gelu": lambda: ops.gelu(long),
        "gelu_backward": lambda: ops.gelu_backward(dlong, long),
        "gelu by erf": lambda: ops.gelu(long, "gelu"),
        "gelu_backward by erf": lambda: ops.gelu_backward(dlong, long, "gelu"),
        "relu_backward": lambda: ops.relu_backward(dlong, long),
        "attention": lambda: ops.attention(qkv, 5),
        "attention_backward": lambda: ops.attention_backward(dout, qkv, lse),
        "attention in bfloat16": lambda: ops.attention(qkv, 5, "bfloat16"),
        "attention_backward in bfloat16": lambda: ops.attention_backward(dout, qkv, lse, "bfloat16"),
        "embed": lambda: ops.embed(ids.astype(np.int32), *tables),
        "embed_backward": lambda: ops.embed_backward(embedded, ids.astype(np.int32), *tables),
        "cross_entropy": lambda: ops.cross_entropy(x, targets, 0.01),
        "sum_squares": lambda: np.float64(ops.sum_squares(state[0])),
        "adamw": lambda: ops.adamw(*state, **step),
    }
    assert_same_bits(work)


def test_wrong_shapes_are_errors_that_name_the_operand() -> None:
    x, row, ids = np.ones((3, 4), np.float32), np.ones(4, np.float32), np.zeros((1, 2), np.int32)
    three, qkv = np.ones(3, np.float32), np.ones((1, 2, 12), np.float32)
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("go together", lambda: ops.norm(x, eps=1e-6, gamma=row)),
        ("beta", lambda: ops.norm(x, eps=1e-6, gamma=row, beta=three)),
        ("rstd", lambda: ops.norm_backward(x, x, row)),
        ("dbeta", lambda: ops.norm_grad(x, x, three, three, row, three)),
        ("dimensions", lambda: ops.gelu(row)),
        ("shape", lambda: ops.gelu_backward(x, x.T.copy())),
        ("'silu'", lambda: ops.gelu(x, "silu")),
        ("shape", lambda: ops.relu_backward(x, row[None])),
        ("head_size", lambda: ops.attention(qkv, 3)),
        ("dout", lambda: ops.attention_backward(qkv, qkv, np.ones((1, 2, 2), np.float32))),
        ("ids", lambda: ops.embed(ids + 3, x, x)),
        ("positions", lambda: ops.embed(np.zeros((1, 4), np.int32), x, x)),
        ("dout", lambda: ops.embed_backward(x, ids, x, x)),
        ("targets", lambda: ops.cross_entropy(x, np.array([0, 4, 0], np.int32))),
        ("targets", lambda: ops.cross_entropy(x, np.zeros(4, np.int32))),
    ]  # fmt: skip
    for message, call in wrong:
        with pytest.raises(ValueError, match=message):
            call()
