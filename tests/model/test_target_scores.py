"""Hidden states and the scores of targets of a model, against its own logits in float64; memory; what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, dot_tolerance, relative_error, rounding_tolerance
from helpers.shapes import options_of
from oracles.reference import IGNORE, Array

MakeModel = Callable[..., soma.Model]


def make(block: str, precision: str = "float32", tied: bool = False) -> soma.Model:
    """A model with heads of 8 channels and weights so large that some tokens are much likelier than others."""
    options = options_of(block, 3, 8, qk_norm=tied)
    config = soma.ModelConfig(
        vocab_size=61, d_model=24, n_layers=2, n_heads=3, d_ff=50, max_seq_len=33, block=block, tied_head=tied,
        **options,
    )  # fmt: skip
    model = soma.Model(config, seed=1, precision=precision)
    for name, array in model.parameters().items():
        if array.ndim == 2:
            model.write(name, 8 * array)
    return model


def batch(model: soma.Model, rows: int = 5, length: int = 33) -> tuple[Array, Array]:
    """(ids, targets). Whole sequences, beginnings and some targets between are ignored."""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length + 1))
    targets = ids[:, 1:].copy()
    targets[1] = IGNORE
    targets[2, : length // 2] = IGNORE
    targets[3, ::3] = IGNORE
    return ids[:, :-1].astype(np.int32), targets.astype(np.int32)


def head_of(model: soma.Model) -> Array:
    """The output head (V, C), which is the last matrix of this shape; tied, it is the embedding."""
    shape = (model.config.vocab_size, model.config.d_model)
    return np.asarray([p for p in model.parameters().values() if p.shape == shape][-1])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_the_logits(block: str, precision: str, tied: bool) -> None:
    """Forward computes the same logits; only the order of rows in a product may differ, which changes no bit."""
    model = make(block, precision, tied)
    ids, targets = batch(model)
    counted = targets != IGNORE
    logits = model.forward(ids)[counted].astype(np.float64)
    want = logits - logits.max(axis=1, keepdims=True)
    want -= np.log(np.exp(want).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1, kind="stable")
    logprobs, ranks, best, best_logprobs = model._core.score(ids, targets, 4)
    assert logprobs.shape == ranks.shape == (counted.sum(),) and best.shape == best_logprobs.shape == (len(ranks), 4)
    assert np.abs(logprobs - want[np.arange(len(want)), targets[counted]]).max() < 1e-5
    assert np.array_equal(ranks, 1 + np.argmax(order == targets[counted][:, None], axis=1))
    assert np.array_equal(best, order[:, :4])
    assert np.abs(best_logprobs - np.take_along_axis(want, order[:, :4], axis=1)).max() < 1e-5
    assert logprobs.std() > 0.5, "tokens differ, so that a wrong row is seen"
    assert -logprobs.mean(dtype=np.float64) == pytest.approx(model.loss(ids, targets), rel=1e-6)


@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_on_any_number_of_threads(block: str, precision: str) -> None:
    """Sequences enough that a small model is split by sequences."""
    seen = set()
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        model = make(block, precision)
        ids, targets = batch(model, rows=12)
        parts = [*model._core.score(ids, targets, 3), model.hidden(ids)]
        seen.add(b"".join(part.tobytes() for part in parts))
    assert len(seen) == 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_head_reads_the_hidden_states(block: str, precision: str) -> None:
    model = make(block, precision)
    ids, _ = batch(model)
    states, head, logits = model.hidden(ids), head_of(model), model.forward(ids)
    assert states.dtype == np.float32 and states.shape == (*ids.shape, model.config.d_model)
    product = states.astype(np.float64) @ head.T.astype(np.float64)
    if precision == "float32":
        assert np.abs(product - logits).max() < dot_tolerance(model.config.d_model, states, head)
    else:
        assert relative_error(logits, product) < 2 * rounding_tolerance(1)
        exact = make(block).hidden(ids)
        assert 1e-5 < relative_error(states, exact) < bfloat16_tolerance(8 * model.config.n_layers)
    assert np.array_equal(model.hidden(ids[0]), states[0]), "a sequence has its bits alone too"


def test_logits_exist_for_some_rows_at_a_time() -> None:
    """A score takes less than a quarter of the memory of all logits."""
    config = soma.ModelConfig(
        vocab_size=40_000, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=2048, block="gpt2"
    )
    model = soma.Model(config, precision="float32")
    ids = np.arange(4096, dtype=np.int32).reshape(2, 2048)
    before = model._core.held_floats
    logprobs, ranks, best, _ = model._core.score(ids, ids, 2)
    assert model._core.held_floats - before < ids.size * config.vocab_size / 4
    assert len(logprobs) == len(ranks) == len(best) == ids.size and ranks.min() >= 1


def test_rows_beyond_the_first_logits_are_scored_too(block: str) -> None:
    """More rows than exist as logits at a time: the same numbers as sequence by sequence."""
    model = make(block)
    ids, targets = batch(model, rows=40)
    together, alone = model._core.score(ids, targets, 2), []
    for row in range(40):
        alone.append(model._core.score(ids[row : row + 1], targets[row : row + 1], 2))
    assert len(together[0]) > 512
    for part, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert np.array_equal(part, np.concatenate(parts))


def test_no_target_is_no_score_and_no_error(make_tiny_model: MakeModel) -> None:
    model = make_tiny_model()
    ids = np.arange(5, dtype=np.int32)[None]
    parts = model._core.score(ids, np.full_like(ids, IGNORE), 3)
    assert [part.shape for part in parts] == [(0,), (0,), (0, 3), (0, 3)]


def test_what_is_refused(make_tiny_model: MakeModel) -> None:
    model = make_tiny_model()
    ids = np.zeros((1, 4), np.int32)
    for message, arguments in (
        ("targets must be from 0 to 28", (ids, ids + 29, 0)),
        ("targets must have the shape of ids", (ids, ids[:, :3], 0)),
        ("ids must be from 0 to 28", (ids - 1, ids, 0)),
        ("top must be from 0 to 29, got 30", (ids, ids, 30)),
        ("max_seq_len is 13", (np.zeros((1, 14), np.int32), np.zeros((1, 14), np.int32), 0)),
    ):
        with pytest.raises(ValueError, match=message):
            model._core.score(*arguments)
    for wrong, error in (([1.5], TypeError), ([29], ValueError), ([], ValueError), ([[[1]]], ValueError)):
        with pytest.raises(error, match="ids"):
            model.hidden(wrong)


def test_weights_that_are_broken_are_an_error(block: str) -> None:
    model = make(block)
    name, array = next(iter(model.parameters().items()))
    model.write(name, np.full(array.shape, np.nan))
    ids, targets = batch(model)
    with pytest.raises(ValueError, match="a logit is not finite: the model's weights are broken"):
        model._core.score(ids, targets)


def test_the_profiler_names_scores(make_tiny_model: MakeModel) -> None:
    """Also where evaluation has a precision of its own."""
    for evaluation in ("float32", "bfloat16"):
        model = make_tiny_model(precision="bfloat16")
        model._evaluate_in(evaluation)
        ids = np.zeros((2, 13), np.int32)
        plain = model._core.score(ids, ids, 2)
        model._core.profile(True)
        measured = model._core.score(ids, ids, 2)
        assert all(np.array_equal(a, b) for a, b in zip(plain, measured, strict=True))
        (record,) = [r for r in model._core.take_profile() if r.op == "score"]
        assert record.group == "loss" and tuple(record.shape)[:3] == (26, 29, 2) and record.flops > 0
