"""Dropout and masked tokens in a model: gradients against the reference, equal bits in any cut, nothing without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_batch_split import LENGTH, batch, bits, shape
from test_bfloat16 import products, rounded_model
from test_gradients import SMALL, assert_gradients, draw, native

import soma_native as soma
from helpers.noise import NOISE, masks
from helpers.numerics import COMPLEX_STEP, bfloat16_tolerance, model_tolerance
from helpers.shapes import of_block
from oracles import reference as ref

ONE_BY_ONE: dict[str, dict[str, Any]] = {
    "both": NOISE,
    "dropout": {**NOISE, "token_mask": 0.0},
    "masked tokens": {**NOISE, "dropout": 0.0},
    "most": {**NOISE, "dropout": 0.6, "token_mask": 0.6},
}


# gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_every_gradient(block: str, tied: bool, case: str) -> None:
    config = of_block(SMALL, block, tied)
    params = ref.random_parameters(config, seed=1)
    ids, targets = draw(config, 3, 13)
    loss, grads = ref.loss_and_grad(params, config, ids, targets, masks=masks(config, 3, 13, **ONE_BY_ONE[case]))
    model = native(config, params)
    assert model.loss_and_grad(ids, targets, **ONE_BY_ONE[case]) == pytest.approx(loss, rel=model_tolerance(config, 39))
    assert_gradients(model.gradients(), grads, config, 39)
    assert loss != pytest.approx(ref.loss(params, config, ids, targets), rel=1e-4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_every_gradient_of_other_activations(activation: str) -> None:
    config = ref.Config(7, 24, 2, 3, 37, 33, "gpt2", True, activation)
    params = ref.random_parameters(config, seed=1)
    ids, targets = draw(config, 3, 13)
    loss, grads = ref.loss_and_grad(params, config, ids, targets, masks=masks(config, 3, 13, **NOISE))
    model = native(config, params)
    assert model.loss_and_grad(ids, targets, **NOISE) == pytest.approx(loss, rel=1e-5)
    assert_gradients(model.gradients(), grads, config, 39)


def test_the_reference_itself_by_complex_step(block: str) -> None:
    """Along one random direction of all parameters at once, and along one of the token table."""
    config = of_block(SMALL, block)
    params = ref.random_parameters(config, seed=1)
    ids, targets = draw(config, 2, 9)
    found = masks(config, 2, 9, **NOISE)
    assert 0 < np.sum(found.tokens == 0) < 18
    _, grads = ref.loss_and_grad(params, config, ids, targets, masks=found)
    rng = np.random.default_rng(4)
    for names in (list(params), [ref.MODEL_NAMES[block]["wte"]]):
        along = {name: rng.standard_normal(params[name].shape) for name in names}
        moved = {name: value + 1j * COMPLEX_STEP * along.get(name, 0.0) for name, value in params.items()}
        slope = np.imag(ref.loss(moved, config, ids, targets, masks=found)) / COMPLEX_STEP
        assert sum(float((grads[name] * along[name]).sum()) for name in names) == pytest.approx(slope, rel=1e-9)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", ["both", "dropout"])
def test_every_gradient_in_bfloat16(block: str, case: str) -> None:
    config = of_block(SMALL, block)
    params = ref.random_parameters(config, seed=1)
    ids, targets = draw(config, 3, 13)
    with ref.bfloat16_products():
        found = masks(config, 3, 13, **ONE_BY_ONE[case])
        loss, grads = ref.loss_and_grad(params, config, ids, targets, masks=found)
    model = rounded_model(config, params)
    tolerance = bfloat16_tolerance(products(config))
    assert model.loss_and_grad(ids, targets, **ONE_BY_ONE[case]) == pytest.approx(loss, rel=tolerance)
    largest = max(float(np.linalg.norm(want)) / np.sqrt(want.size) for want in grads.values())
    for name, value in model.gradients().items():
        size = max(float(np.linalg.norm(grads[name])), 0.25 * largest * float(np.sqrt(value.size)))
        assert np.linalg.norm(value - grads[name]) < tolerance * size, name


def test_a_masked_token_is_no_token(block: str) -> None:
    """With nearly all tokens masked, the loss does not depend on their ids, nor does the table get a gradient."""
    config = of_block(SMALL, block, False)
    model = native(config, ref.random_parameters(config, seed=1))
    ids, targets = draw(config, 2, 9)
    options = {"token_mask": 0.6, "noise": (5,)}
    masked = masks(config, 2, 9, dropout=0.0, **options).tokens[..., 0] == 0
    table = ref.MODEL_NAMES[block]["wte"]
    loss = model.loss_and_grad(ids, targets, **options)
    touched = np.unique(np.nonzero(model.gradients()[table])[0])
    assert set(touched) == set(ids[~masked])
    ids[masked] = (ids[masked] + 1) % config.vocab_size
    assert model.loss_and_grad(ids, targets, **options) == loss


# bits ----------------------------------------------------------------------------------------------------------------


def results(model: soma.Model, rows: int, **options: Any) -> Any:
    model.zero_grad()
    return model.loss_and_grad(*batch(model.config, rows), **options), bits(model.gradients())


@pytest.mark.processor
@pytest.mark.usefixtures("isa", "settings_restored")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_with_any_threads_and_splits(block: str, precision: str) -> None:
    """Of 12 sequences each thread runs a split through all blocks; 5 sequences are not split (see test_batch_split)."""
    model = soma.Model(shape(block), seed=1, precision=precision)
    model._core.profile(True)
    for rows in (12, 5):
        found, splits = [], set()
        for threads in (1, 2, 3):
            soma.set_num_threads(threads)
            found.append(results(model, rows, **NOISE))
            splits.add(sum(r.calls for r in model._core.take_profile() if r.op == "embed dropout"))
        assert found[0] == found[1] == found[2]
        assert splits == ({1, 2, 3} if rows == 12 else {1})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_noise_everything_is_as_before(block: str, precision: str) -> None:
    model = soma.Model(shape(block), seed=1, precision=precision)
    model._core.profile(True)
    plain = results(model, 5)
    before = {(r.op, tuple(r.shape)): r.calls for r in model._core.take_profile()}
    noisy = results(model, 5, **NOISE)
    assert noisy != plain
    model._core.take_profile()
    assert results(model, 5, dropout=0.0, token_mask=0.0, noise=(1, 2)) == plain
    assert {(r.op, tuple(r.shape)): r.calls for r in model._core.take_profile()} == before


def test_evaluation_has_no_noise(block: str) -> None:
    model = soma.Model(shape(block), seed=1, precision="float32")
    ids, targets = batch(model.config, 5)
    before = model.loss(ids, targets), model.forward(ids).tobytes()
    model.loss_and_grad(ids, targets, **NOISE)
    assert (model.loss(ids, targets), model.forward(ids).tobytes()) == before
    assert model.loss_and_grad(ids, targets) == before[0]


def test_the_numbers_of_a_call_name_its_noise(block: str) -> None:
    model = soma.Model(shape(block), seed=1, precision="float32")
    losses = [results(model, 5, dropout=0.2, noise=noise)[0] for noise in [(0, 1), (1, 0), (0, 1, 0), np.array([0, 1])]]
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_parts_of_a_batch_have_the_noise_of_the_whole(block: str) -> None:
    model = soma.Model(shape(block), seed=1, precision="float32")
    ids, targets = batch(model.config, 5)
    pairs = int((targets >= 0).sum())
    whole = model.loss_and_grad(ids, targets, pairs, **NOISE)
    expected = {name: array.copy() for name, array in model.gradients().items()}
    model.zero_grad()
    parts = [(0, 2), (2, 3), (3, 5)]
    loss = sum(model.loss_and_grad(ids[a:b], targets[a:b], pairs, **NOISE, first_window=a) for a, b in parts)
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, array in model.gradients().items():
        largest = np.finfo(np.float32).eps * ids.size * np.abs(expected[name]).max()  # sums over rows, in other orders
        assert np.abs(array - expected[name]).max() <= largest, name
    assert model.loss_and_grad(ids[2:], targets[2:], pairs, **NOISE) != model.loss_and_grad(
        ids[2:], targets[2:], pairs, **NOISE, first_window=2
    )


# profile -------------------------------------------------------------------------------------------------------------


def test_the_profiler_names_dropout(block: str) -> None:
    config = shape(block)
    model = soma.Model(config, precision="float32")
    model._core.profile(True)
    soma.set_num_threads(1)
    model.loss_and_grad(*batch(config, 3), **NOISE)
    records = model._core.take_profile()
    tokens, c = 3 * LENGTH, config.d_model
    calls = {(r.op, tuple(r.shape[:2])): r.calls for r in records}
    assert calls["dropout", (tokens, c)] == 2 * config.n_layers + 1  # backward: two branches a layer, the embedding
    assert calls["embed dropout", (tokens, c)] == 1
    branches = [r for r in records if r.op.endswith(" +residual dropout")]
    assert sum(r.calls for r in branches) == 2 * config.n_layers
    assert all(r.group == "dropout" for r in records if r.op == "dropout")


# arguments -----------------------------------------------------------------------------------------------------------


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "all dropped": ({"dropout": 1, "noise": (1,)}, ValueError, "dropout must be at least 0 and below 1, got 1"),
    "all masked": ({"token_mask": 1.0, "noise": (1,)}, ValueError, "token_mask must be at least 0 and below 1, got 1"),
    "negative": ({"dropout": -0.1, "noise": (1,)}, ValueError, "dropout must be at least 0 and below 1, got -0.1"),
    "no number": ({"dropout": "0.1", "noise": (1,)}, TypeError, "dropout must be a number"),
    "no noise": ({"dropout": 0.1}, ValueError, r"noise must name the call where there is dropout or token_mask"),
    "one integer": ({"dropout": 0.1, "noise": 7}, TypeError, r"noise must be integers such as \(seed, step\), got 7"),
    "a text": ({"dropout": 0.1, "noise": "ab"}, TypeError, "noise must be integers"),
    "a fraction": ({"dropout": 0.1, "noise": (0, 0.5)}, TypeError, r"noise\[1\] must be an integer, got 0.5"),
    "below zero": ({"dropout": 0.1, "noise": (0, -1)}, ValueError, r"noise\[1\] must be from 0 to"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_noise_is_named(case: str) -> None:
    options, error, message = BAD[case]
    model = native(SMALL, ref.random_parameters(SMALL, seed=1))
    ids, targets = draw(SMALL, 2, 5)
    with pytest.raises(error, match=message):
        model.loss_and_grad(ids, targets, **options)
    assert not any(value.any() for value in model.gradients().values())
