"""The oracle itself: every backward function of reference.py against the complex step of its forward function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.numerics import complex_step, relative_error
from helpers.shapes import of_block
from oracles import reference as ref
from oracles.activations import ACTIVATIONS

EXACT = 1e-10


def random(*shape: int, seed: int = 0) -> ref.Array:
    return np.random.default_rng(seed).standard_normal(shape)


def check(forward: Callable[[ref.Array], Any], x: ref.Array, gradient: ref.Array, weights: ref.Array) -> None:
    """The gradient of sum(weights * forward(x)) is `gradient`."""
    assert relative_error(gradient, complex_step(lambda z: (weights * forward(z)).sum(), x)) < EXACT


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(activation: str, with_bias: bool) -> None:
    x, w, b, r, dy = random(2, 3, 5), random(5, 4, seed=1), random(4, seed=2), random(2, 3, 4), random(2, 3, 4, seed=3)
    bias = b if with_bias else None
    dx, dw, db = ref.linear_backward(dy, x, w, bias, activation)
    check(lambda z: ref.linear(z, w, bias, activation, r), x, dx, dy)
    check(lambda z: ref.linear(x, z, bias, activation, r), w, dw, dy)
    check(lambda z: ref.linear(x, w, bias, activation, z), r, dy, dy)
    if with_bias:
        check(lambda z: ref.linear(x, w, z, activation, r), b, db, dy)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS.keys() - {"none"}))
def test_activation(activation: str) -> None:
    forward, backward = ACTIVATIONS[activation]
    x = np.concatenate([np.linspace(-30, 30, 41) + 0.01, [-1e-6, 1e-6]])
    dy = random(x.size)
    check(forward, x, backward(dy, x), dy)
    assert forward(np.array([50.0]))[0] == pytest.approx(50.0)
    assert forward(np.array([-50.0]))[0] == pytest.approx(0.0)


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("affine", [False, True])
def test_norm(eps: float, affine: bool) -> None:
    x, w, b, dy = random(2, 3, 7), random(7, seed=1), random(7, seed=2), random(2, 3, 7, seed=3)
    weight, bias = (w, b) if affine else (None, None)
    dx, dw, db = ref.norm_backward(dy, x, eps, weight)
    check(lambda z: ref.norm(z, eps, weight, bias), x, dx, dy)
    if affine:
        check(lambda z: ref.norm(x, eps, z, bias), w, dw, dy)
        check(lambda z: ref.norm(x, eps, weight, z), b, db, dy)
    plain = ref.norm(x, eps)
    assert np.allclose(plain.mean(axis=-1), 0, atol=1e-15)
    assert np.allclose(plain.var(axis=-1), x.var(axis=-1) / (x.var(axis=-1) + eps))


def test_rms_norm() -> None:
    x, w, dy = random(2, 3, 7), random(7, seed=1), random(2, 3, 7, seed=3)
    dx, dw = ref.rms_norm_backward(dy, x, 1e-5, w)
    check(lambda z: ref.rms_norm(z, 1e-5, w), x, dx, dy)
    check(lambda z: ref.rms_norm(x, 1e-5, z), w, dw, dy)
    check(lambda z: ref.rms_norm(z, 1e-5), x, ref.rms_norm_backward(dy, x, 1e-5)[0], dy)
    assert np.allclose(np.square(ref.rms_norm(x, 0.0)).mean(axis=-1), 1)


def test_swiglu() -> None:
    x, dy = 5 * random(3, 8), random(3, 4, seed=1)
    check(ref.swiglu, x, ref.swiglu_backward(dy, x), dy)
    assert ref.silu(np.array([40.0]))[0] == pytest.approx(40.0)
    assert ref.silu(np.array([-40.0]))[0] == pytest.approx(0.0)


def test_rotation_depends_on_the_distance_alone() -> None:
    """The product of a query and a key, whatever their positions; turning back undoes it."""
    q, k = random(6), random(6, seed=1)
    turned = [ref.rotate(np.broadcast_to(x, (9, 6)), 100.0) for x in (q, k)]
    scores = turned[0] @ turned[1].T
    for distance in range(-8, 9):
        assert np.ptp(np.diagonal(scores, distance)) < 1e-12
    assert np.ptp(scores) > 0.1
    x, dy = random(2, 5, 6), random(2, 5, 6, seed=2)
    check(lambda z: ref.rotate(z, 10.0), x, ref.rotate(dy, 10.0, -1.0), dy)
    assert np.allclose(ref.rotate(ref.rotate(x, 10.0), 10.0, -1.0), x)


def test_attention_of_shared_keys() -> None:
    """As if each head of queries had keys and values of its own; their gradients add up."""
    qkv, dy = random(2, 4, 8 * 3), random(2, 4, 4 * 3, seed=1)
    gradient = ref.attention_backward(dy, qkv, 4, 2)
    check(lambda z: ref.attention(z, 4, 2), qkv, gradient, dy)
    q, k, v = np.split(qkv, [12, 18], axis=-1)
    k, v = (x.reshape(2, 4, 2, 3).repeat(2, axis=2).reshape(2, 4, 12) for x in (k, v))
    assert np.allclose(ref.attention(qkv, 4, 2), ref.attention(np.concatenate([q, k, v], axis=-1), 4))


@pytest.mark.parametrize(("batch", "length", "heads", "size"), [(1, 1, 1, 3), (2, 5, 3, 2), (1, 6, 2, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(batch: int, length: int, heads: int, size: int, scale: float | None) -> None:
    width = heads * size
    qkv, dy = random(batch, length, 3 * width), random(batch, length, width, seed=1)
    check(lambda z: ref.attention(z, heads, scale=scale), qkv, ref.attention_backward(dy, qkv, heads, scale=scale), dy)


def test_attention_is_the_textbook_sum() -> None:
    """One query at a time, in plain loops: no position sees a later one, scores are divided by sqrt(head size)."""
    batch, length, heads, size = 2, 4, 2, 3
    width = heads * size
    qkv = random(batch, length, 3 * width)
    got = ref.attention(qkv, heads)
    for b, t, h in np.ndindex(batch, length, heads):
        cut = slice(h * size, (h + 1) * size)
        q = qkv[b, t, :width][cut]
        scores = np.array([q @ qkv[b, s, width : 2 * width][cut] for s in range(t + 1)]) / np.sqrt(size)
        p = np.exp(scores) / np.exp(scores).sum()
        want = sum(p[s] * qkv[b, s, 2 * width :][cut] for s in range(t + 1))
        assert np.allclose(got[b, t, cut], want, atol=1e-14)


@pytest.mark.parametrize("normalizer", [0, 11])
def test_cross_entropy(normalizer: int) -> None:
    logits = 3 * random(2, 4, 7)
    targets = np.array([[0, 6, -100, 3], [-100, 2, 2, 5]])
    gradient = ref.cross_entropy_backward(logits, targets, normalizer)
    check(lambda z: ref.cross_entropy(z, targets, normalizer), logits, gradient, np.array(1.0))
    assert not gradient[0, 2].any()
    uniform = ref.cross_entropy(np.zeros((2, 4, 7)), targets, normalizer)
    assert uniform == pytest.approx(np.log(7) * 6 / (normalizer or 6))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_distillation(share: float) -> None:
    rng = np.random.default_rng(5)
    logits, q = rng.standard_normal((2, 4, 7)), ref.softmax(rng.standard_normal((2, 4, 7)))
    targets = rng.integers(0, 7, (2, 4))
    targets[1, 2] = ref.IGNORE
    q[0, 0] = np.eye(7)[3]  # a teacher may be certain
    for normalizer in (0, 11):
        gradient = ref.distillation_backward(logits, q, targets, share, normalizer)
        check(lambda z, n=normalizer: ref.distillation(z, q, targets, share, n), logits, gradient, np.array(1.0))
    assert ref.distillation(np.log(ref.softmax(logits)), ref.softmax(logits), targets, 1.0) == pytest.approx(0.0)


def test_cross_entropy_survives_large_logits() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0]])
    assert ref.cross_entropy(logits, np.array([0])) == pytest.approx(0.0)
    assert ref.cross_entropy(logits, np.array([2])) == pytest.approx(2000.0)


def test_embedding() -> None:
    ids, wte, wpe = np.array([[1, 1, 4], [0, 1, 2]]), random(5, 3), random(6, 3, seed=1)
    dh = random(2, 3, 3, seed=2)
    dwte, dwpe = ref.embedding_backward(dh, ids, 5, 6)
    check(lambda z: ref.embedding(ids, z, wpe), wte, dwte, dh)
    check(lambda z: ref.embedding(ids, wte, z), wpe, dwpe, dh)


@pytest.mark.parametrize("tied_head", [False, True])
def test_every_parameter_of_the_model(block: str, tied_head: bool) -> None:
    check_parameters(of_block(TINY, block, tied_head))


@pytest.mark.parametrize("other", ref.OTHER_GPT2)
def test_every_parameter_of_other_gpt2(other: str) -> None:
    check_parameters(replace(TINY, block="gpt2", tied_head=True, **ref.OTHER_GPT2[other]))


TINY = ref.Config(vocab_size=7, d_model=6, n_layers=2, n_heads=3, d_ff=5, max_seq_len=6)


def check_parameters(config: ref.Config) -> None:
    params = ref.random_parameters(config, seed=3)
    rng = np.random.default_rng(4)
    ids, targets = rng.integers(0, 7, (2, 5)), rng.integers(0, 7, (2, 5))
    targets[0, 1] = ref.IGNORE
    _, grads = ref.loss_and_grad(params, config, ids, targets, normalizer=8)
    assert grads.keys() == params.keys()
    for name, value in params.items():
        wanted = complex_step(
            lambda z, name=name: ref.loss({**params, name: z}, config, ids, targets, normalizer=8),  # type: ignore[misc]
            value,
        )
        assert np.linalg.norm(wanted) > 1e-6, f"{name}: the test does not exercise it"
        assert relative_error(grads[name], wanted) < EXACT, name


def test_parameter_counts() -> None:
    def count(config: ref.Config) -> int:
        return sum(int(np.prod(shape)) for shape in ref.parameter_shapes(config).values())

    assert count(ref.Config(576, 128, 3, 4, 512, 256)) == 771_968
    assert count(ref.Config(60_000, 768, 12, 12, 3072, 1024)) == 177_927_168
    assert count(ref.Config(50_257, 768, 12, 12, 3072, 1024, "gpt2", True)) == 124_439_808


def test_clipping_scales_the_global_norm() -> None:
    grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    assert ref.clip_scale(grads, 1.0) == (5.0, pytest.approx(0.2, rel=1e-6))
    assert ref.clip_scale(grads, 6.0) == (5.0, 1.0)
    assert ref.clip_scale(grads, 0.0) == (5.0, 1.0)


def test_adamw_first_step_is_the_sign_of_the_gradient() -> None:
    """After one step m_hat = g and v_hat = g^2, whatever the betas; only the matrix decays."""
    params = {"w": np.array([[2.0, -2.0]]), "b": np.array([2.0])}
    ref.AdamW(lr=0.1, weight_decay=0.5, eps=0.0, max_grad_norm=0.0).step(
        params, {"w": np.array([[0.3, -5.0]]), "b": np.array([1e-4])}
    )
    assert np.allclose(params["w"], [[2.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]])
    assert np.allclose(params["b"], [1.9])
