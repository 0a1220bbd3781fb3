"""Norms, embeddings, dropout and losses as CUDA kernels, in every order of threads, against float64 and the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from helpers.cuda import (
    I64,
    LAYER_NORM,
    RMS_NORM,
    DeviceMatrix,
    Dropout,
    F,
    NormStats,
    NormWeights,
    Numbers,
    RowScores,
    empty,
    in_every_order,
    lib,
)
from helpers.noise import core_noise
from helpers.numerics import chain_tolerance, normal, relative_error
from oracles import ops as ref
from oracles.ops import Array, round_bfloat16
from soma_native._core import _ops as cpu

SHAPES = [(1, 1), (3, 2), (9, 31), (17, 32), (5, 33), (2, 200), (130, 7)]
EPS = 1e-5
IGNORED, MASKED = -100, -1


def weights(gamma: Numbers | None, beta: Numbers | None, kind: int) -> Any:
    return ctypes.byref(NormWeights(*(w.memory.address if w else None for w in (gamma, beta)), kind))


def stats(mean: Numbers | None, rstd: Numbers | None) -> Any:
    return ctypes.byref(NormStats(*(s.memory.address if s else None for s in (mean, rstd))))


def as_stored(x: Array, pairs: bool) -> Array:
    return round_bfloat16(x) if pairs else x


# norms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LAYER_NORM, RMS_NORM])
@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_norm(kind: int, with_weights: bool, pairs: bool) -> None:
    rng = np.random.default_rng(0)
    for rows, c in SHAPES:
        x, gamma, beta = normal(rng, rows, c) + 1, normal(rng, c), normal(rng, c)
        gain = Numbers(gamma) if with_weights else None
        shift = Numbers(beta) if with_weights and kind == LAYER_NORM else None

        def compute(x: Array = x, gain: Any = gain, shift: Any = shift) -> tuple[Array, Array]:
            y, rstd = empty(x.shape, pairs), Numbers(np.zeros(len(x), np.float32), upload=False)
            mean = Numbers(np.zeros(len(x), np.float32), upload=False) if kind == LAYER_NORM else None
            lib.soma_norm(y.out, stats(mean, rstd), DeviceMatrix(x).operand, weights(gain, shift, kind), F(EPS))
            return y.read(), rstd.read()

        y, rstd = in_every_order(compute)
        wide, g, b = x.astype(float), gamma if with_weights else None, beta if with_weights else None
        want = ref.norm(wide, EPS, g, b) if kind == LAYER_NORM else ref.rms_norm(wide, EPS, g)
        if c > 1:  # the variance of one number is 0
            assert relative_error(y, want) <= chain_tolerance(c, c, 1, 1) + pairs * 2.0**-8
        centred = wide - wide.mean(axis=1, keepdims=True) * (kind == LAYER_NORM)
        assert relative_error(rstd, 1 / np.sqrt((centred**2).mean(axis=1) + EPS)) <= chain_tolerance(c, c, 1, 1) * 50


@pytest.mark.parametrize("kind", [LAYER_NORM, RMS_NORM])
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_norm_backward(kind: int, pairs: bool, with_residual: bool) -> None:
    rng = np.random.default_rng(1)
    for rows, c in SHAPES[1:]:
        x, dy, onto = normal(rng, rows, c), normal(rng, rows, c), normal(rng, rows, c)
        gamma, beta = normal(rng, c), normal(rng, c)
        wide = x.astype(float)
        mean = wide.mean(axis=1) * (kind == LAYER_NORM)
        rstd = 1 / np.sqrt(((wide - mean[:, None]) ** 2).mean(axis=1) + EPS)

        def compute(x: Array = x, dy: Array = dy, onto: Array = onto, *w: Array) -> tuple[Array, Array]:
            saved = [Numbers(s.astype(np.float32)) for s in w[:2]]
            gain, shift = Numbers(w[2]), Numbers(w[3])
            dx, again = DeviceMatrix(onto), empty(x.shape, pairs)
            lib.soma_norm_backward(
                dx.out,
                DeviceMatrix(dy).operand,
                DeviceMatrix(x).operand,
                stats(*saved) if kind == LAYER_NORM else stats(None, saved[1]),
                weights(gain, shift if kind == LAYER_NORM else None, kind),
                dx.pointer if with_residual else None,
                again.out,
            )
            return dx.read(), again.read()

        dx, again = in_every_order(lambda w=(x, dy, onto, mean, rstd, gamma, beta): compute(*w))
        if kind == LAYER_NORM:
            want, y = ref.norm_backward(dy, wide, EPS, gamma)[0], ref.norm(wide, EPS, gamma, beta)
        else:
            want, y = ref.rms_norm_backward(dy, wide, EPS, gamma)[0], ref.rms_norm(wide, EPS, gamma)
        # Two columns: what layer norm leaves of a gradient is a difference of nearly equal numbers.
        terms = np.linalg.norm(dy * gamma * rstd[:, None]) + with_residual * np.linalg.norm(onto)
        error = np.linalg.norm(dx - (want + onto * with_residual))
        assert error <= chain_tolerance(c, c, 1, 1, 1) * terms * (20 if c == 2 else 1)
        assert relative_error(again, y) <= chain_tolerance(c, 1, 1) * 20 + pairs * 2.0**-8


@pytest.mark.parametrize("kind", [LAYER_NORM, RMS_NORM])
def test_norm_grad_adds_the_sums_over_rows(kind: int) -> None:
    rng = np.random.default_rng(2)
    for rows, c in [*SHAPES, (300, 40)]:
        x, dy, mean, rstd = normal(rng, rows, c), normal(rng, rows, c), normal(rng, rows), normal(rng, rows)
        gamma, beta = normal(rng, c), normal(rng, c)
        mean *= kind == LAYER_NORM

        def compute(w: tuple[Array, ...] = (x, dy, mean, rstd, gamma, beta)) -> tuple[Array, Array]:
            saved, sums = [Numbers(s) for s in w[2:4]], [Numbers(s) for s in w[4:]]
            lib.soma_norm_grad(
                sums[0].pointer,
                sums[1].pointer if kind == LAYER_NORM else None,
                DeviceMatrix(w[1]).operand,
                DeviceMatrix(w[0]).operand,
                stats(*saved) if kind == LAYER_NORM else stats(None, saved[1]),
                kind,
            )
            return sums[0].read(), sums[1].read()

        dgamma, dbeta = in_every_order(compute)
        terms = dy.astype(float) * (x.astype(float) - mean[:, None]) * rstd[:, None]
        scale = np.abs(terms).sum() + np.abs(gamma).sum()
        assert np.abs(dgamma - (gamma + terms.sum(axis=0))).max() <= chain_tolerance(rows, 1, 1) * scale
        want = beta + dy.astype(float).sum(axis=0) * (kind == LAYER_NORM)
        assert np.abs(dbeta - want).max() <= chain_tolerance(rows, 1) * (np.abs(dy).sum() + np.abs(beta).sum())


# sums, dropout, embeddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [True, False])
def test_sum_rows(pairs: bool) -> None:
    rng = np.random.default_rng(3)
    for rows, c in [*SHAPES, (300, 40)]:
        x, onto = normal(rng, rows, c), normal(rng, c)

        def compute(x: Array = x, onto: Array = onto) -> Array:
            out = Numbers(onto)
            lib.soma_sum_rows(out.pointer, DeviceMatrix(x, pairs).operand)
            return out.read()

        want = onto + as_stored(x, pairs).astype(float).sum(axis=0)
        assert np.abs(in_every_order(compute) - want).max() <= chain_tolerance(rows, 1) * np.abs(x).sum()
        if not pairs and rows <= 128:  # one block: the processor's order
            assert np.array_equal(compute(onto=np.zeros_like(onto)), cpu.sum_rows(x, np.zeros_like(onto)))


def mix(x: int) -> int:
    """The finalizer of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> shift) * factor % 2**64
    return x ^ x >> 31


def key_of_mlp(numbers: tuple[int, ...], layer: int) -> int:
    """The key of the dropout of "mlp", the third site."""
    key = 0
    for number in (*numbers, layer):
        key = mix(key ^ mix(number))
    return mix(key + 2)


@pytest.mark.parametrize("pairs", [True, False])
def test_dropout_has_the_mask_of_the_processor(pairs: bool) -> None:
    rng = np.random.default_rng(4)
    noise = core_noise(0.25, 0.0, (1, 2, 3))
    for rows, c in SHAPES:
        x = normal(rng, rows, c)
        how = Dropout(0.25, key_of_mlp((1, 2, 3), 1), 5)

        def compute(x: Array = x, how: Any = how) -> Array:
            y = empty(x.shape, pairs)
            lib.soma_dropout(y.out, DeviceMatrix(x).operand, ctypes.byref(how))
            return y.read()

        want = cpu.dropout(x, noise, site="mlp", layer=1, first_row=5, pairs=pairs)
        assert np.array_equal(in_every_order(compute), want)


@pytest.mark.parametrize("positions", [True, False])
def test_embed_and_its_gradient_have_the_bits_of_the_processor(positions: bool) -> None:
    rng = np.random.default_rng(5)
    for batch, length, c, vocabulary in [(1, 1, 1, 1), (2, 3, 5, 4), (3, 7, 130, 3), (4, 9, 32, 50)]:
        ids = rng.integers(0, vocabulary, (batch, length)).astype(np.int32)
        wte, wpe, dout = normal(rng, vocabulary, c), normal(rng, length, c), normal(rng, batch * length, c)
        dwte, dwpe = normal(rng, vocabulary, c), normal(rng, length, c)

        def forward(ids: Array = ids, wte: Array = wte, wpe: Array = wpe) -> Array:
            out, on_device, position = empty((ids.size, wte.shape[1])), Numbers(ids), DeviceMatrix(wpe)
            lib.soma_embed(
                out.out,
                on_device.pointer,
                DeviceMatrix(wte).operand,
                position.operand if positions else None,
                I64(ids.shape[1]),
                ctypes.byref(Dropout(0.0, 0, 0)),
            )
            return out.read()

        def backward(ids: Array = ids, dout: Array = dout, dwte: Array = dwte, dwpe: Array = dwpe) -> Any:
            on_device, token, position = Numbers(ids), DeviceMatrix(dwte), DeviceMatrix(dwpe)
            lib.soma_embed_backward(
                token.out,
                position.out if positions else None,
                DeviceMatrix(dout).operand,
                on_device.pointer,
                ids.ctypes.data_as(ctypes.c_void_p),
                I64(ids.shape[1]),
            )
            return token.read(), position.read()

        wanted = cpu.embed(ids, wte, wpe if positions else None)
        assert np.array_equal(in_every_order(forward), wanted.reshape(-1, c))
        token, position = in_every_order(backward)
        want = cpu.embed_backward(dout.reshape(batch, length, c), ids, dwte, dwpe if positions else None)
        want = want if isinstance(want, tuple) else (want, None)
        assert np.array_equal(token, want[0])
        assert np.array_equal(position, want[1] if positions else dwpe)


def test_a_masked_token_has_no_row_and_no_gradient() -> None:
    ids = np.array([[MASKED, 0, MASKED]], np.int32)
    wte, wpe, ones = np.full((1, 3), 2, np.float32), np.full((3, 3), 5, np.float32), np.ones((3, 3), np.float32)
    on_device, out, position = Numbers(ids), empty((3, 3)), DeviceMatrix(wpe)
    nothing = ctypes.byref(Dropout(0.0, 0, 0))
    lib.soma_embed(out.out, on_device.pointer, DeviceMatrix(wte).operand, position.operand, I64(3), nothing)
    assert out.read().tolist() == [[5] * 3, [7] * 3, [5] * 3]
    token = DeviceMatrix(np.zeros((1, 3)))
    host = ids.ctypes.data_as(ctypes.c_void_p)
    lib.soma_embed_backward(token.out, None, DeviceMatrix(ones).operand, on_device.pointer, host, I64(3))
    assert token.read().tolist() == [[1] * 3]


# losses --------------------------------------------------------------------------------------------------------------

VOCABULARIES = [1, 2, 7, 64, 513, 1300]


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("share", [None, 0.25])
def test_cross_entropy(pairs: bool, share: float | None) -> None:
    rng = np.random.default_rng(6)
    for v in VOCABULARIES:
        logits, targets = 5 * normal(rng, 4, v), rng.integers(0, v, 4).astype(np.int32)
        targets[1] = IGNORED
        q = ref.softmax(normal(rng, 4, v).astype(float)).astype(np.float32)
        q[0, : v // 2] = 0
        q[0] /= max(q[0].sum(), np.float32(1e-3))

        def compute(logits: Array = logits, targets: Array = targets, q: Array = q) -> tuple[Array, Array]:
            x, ids = DeviceMatrix(logits), Numbers(targets)
            losses = Numbers(np.zeros(len(logits), np.float32), upload=False)
            gradient = empty(logits.shape, True) if pairs else x
            if share is None:
                lib.soma_cross_entropy(losses.pointer, x.out, ids.pointer, F(0.5), gradient.out)
            else:
                taught = DeviceMatrix(q)
                lib.soma_soft_cross_entropy(
                    losses.pointer, x.out, taught.operand, ids.pointer, F(share), F(0.5), gradient.out
                )
            return losses.read(), gradient.read()

        losses, gradient = in_every_order(compute)
        wide = logits.astype(float)
        if share is None:
            want, total = ref.cross_entropy_backward(wide, targets, 2), ref.cross_entropy(wide, targets, 1)
        else:
            taught = q.astype(float)
            want = ref.distillation_backward(wide, taught, targets, share, 2)
            total = ref.distillation(wide, taught, targets, share, 1)
        size = chain_tolerance(v, 1, 1) * (1 + np.abs(wide).max())
        assert losses[1] == 0 and not gradient[1].any()
        assert abs(losses.sum() - total) <= 4 * size
        assert np.abs(gradient - want).max() <= size + pairs * 2.0**-8


def test_a_loss_without_a_gradient_leaves_the_logits_and_a_nan_stays() -> None:
    logits, targets = normal(np.random.default_rng(7), 3, 40), np.array([0, 39, 1], np.int32)
    logits[1, 5] = np.nan
    x, ids, losses = DeviceMatrix(logits), Numbers(targets), Numbers(np.zeros(3, np.float32), upload=False)
    lib.soma_cross_entropy(losses.pointer, x.out, ids.pointer, F(0.0), x.out)
    assert np.array_equal(x.read(), logits, equal_nan=True)
    assert np.isnan(losses.read()).tolist() == [False, True, False]


@pytest.mark.parametrize("ties", [True, False])
def test_scores(ties: bool) -> None:
    rng = np.random.default_rng(9)
    for v in VOCABULARIES:
        logits, targets = 5 * normal(rng, 4, v), rng.integers(0, v, 4).astype(np.int32)
        logits = np.round(logits) if ties else logits
        targets[0] = v - 1
        top = min(v, 7)

        def compute(logits: Array = logits, targets: Array = targets, top: int = top) -> tuple[Array, ...]:
            x, ids = DeviceMatrix(logits), Numbers(targets)
            shapes = [(4, np.float32), (4, np.int32), ((4, top), np.int32), ((4, top), np.float32)]
            parts = [Numbers(np.zeros(shape, dtype), upload=False) for shape, dtype in shapes]
            logprobs, ranks, best, theirs = (part.memory.address for part in parts)
            lib.soma_score(ctypes.byref(RowScores(logprobs, ranks, top, best, theirs)), x.out, ids.pointer)
            return tuple(part.read() for part in parts)

        logprobs, ranks, best, theirs = in_every_order(compute)
        order, wide = np.argsort(-logits, axis=1, kind="stable"), logits.astype(float)
        want = wide - wide.max(axis=1, keepdims=True)
        want -= np.log(np.exp(want).sum(axis=1, keepdims=True))
        size = chain_tolerance(v, 1, 1) * (1 + np.abs(wide).max()) * 4
        assert np.abs(logprobs - want[np.arange(4), targets]).max() <= size
        assert np.array_equal(ranks, 1 + np.argmax(order == targets[:, None], axis=1))
        assert np.array_equal(best, order[:, :top])
        assert np.abs(theirs - np.take_along_axis(want, order[:, :top], axis=1)).max() <= size


@pytest.mark.parametrize("onto", [True, False])
def test_add_softmax(onto: bool) -> None:
    rng = np.random.default_rng(8)
    for v in VOCABULARIES:
        logits, before = 3 * normal(rng, 3, v), normal(rng, 3, v)

        def compute(logits: Array = logits, before: Array = before) -> Array:
            x = DeviceMatrix(logits)
            q = DeviceMatrix(before) if onto else x
            lib.soma_add_softmax(q.out, x.out, F(0.5), ctypes.c_bool(onto))
            return q.read()

        want = 0.5 * ref.softmax(logits.astype(float)) + before * onto
        assert np.abs(in_every_order(compute) - want).max() <= chain_tolerance(v, 1, 1) * 15
