"""Models with device="cuda", in the emulation or on a GPU: against reference and processor, bits in every order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_bfloat16 import products, rounded
from test_gradients import SMALL, assert_gradients, draw, expected

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, model_tolerance, relative_error
from helpers.orders import ORDERS, set_order
from helpers.shapes import of_block
from oracles import reference as ref

BLOCKS = ["soma", "gpt2", "llama"]
VARIANTS = [(block, tied) for block in BLOCKS for tied in (False, True)]
TINY = replace(SMALL, d_model=12, n_heads=2, d_ff=10, max_seq_len=9)
CASES = {
    "one token": (SMALL, 1, 1),
    "odd everything": (SMALL, 3, 13),
    "head size 1": (replace(SMALL, d_model=5, n_heads=5, d_ff=3), 2, 9),
    "several tiles": (replace(TINY, vocab_size=301, d_ff=140), 15, 9),
}


def on_gpu(config: ref.Config, params: ref.Params, precision: str = "float32") -> soma.Model:
    model = soma.Model(soma.ModelConfig(**config.to_dict()), precision=precision, device="cuda")
    for name, value in params.items():
        model.write(name, value)
    return model


@pytest.mark.parametrize(("block", "tied"), VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_every_gradient_in_float32(block: str, tied: bool, case: str) -> None:
    shape, rows, length = CASES[case]
    config = of_block(shape, block, tied)
    params, logits, loss, grads = expected(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = on_gpu(config, params)
    tolerance = model_tolerance(config, rows * length)
    assert model.device == "cuda"
    assert relative_error(model.forward(ids), logits) < tolerance
    assert model.loss(ids, targets) == pytest.approx(loss, rel=tolerance)
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=tolerance)
    # Backward takes the mean of attention's gradient from the output: of terms that cancel, roundings remain.
    assert_gradients(model.gradients(), grads, config, rows * length, share=0.01)


@pytest.mark.parametrize(("block", "tied"), VARIANTS)
def test_every_gradient_in_bfloat16(block: str, tied: bool) -> None:
    shape, rows, length = CASES["odd everything"]
    config = of_block(shape, block, tied)
    params, logits, loss, grads = rounded(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = on_gpu(config, params, "bfloat16")
    tolerance = bfloat16_tolerance(products(config))
    assert relative_error(model.forward(ids), logits) < tolerance
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=tolerance)
    largest = max(float(np.linalg.norm(want)) / np.sqrt(want.size) for want in grads.values())
    for name, value in model.gradients().items():
        size = max(float(np.linalg.norm(grads[name])), 0.25 * largest * float(np.sqrt(value.size)))
        assert np.linalg.norm(value - grads[name]) < tolerance * size, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", BLOCKS)
def test_scores_and_hidden_states_are_those_of_the_logits(block: str, precision: str) -> None:
    config = of_block(replace(TINY, vocab_size=301), block)
    ids, targets = draw(config, 15, 9)
    model = on_gpu(config, expected(config, 15, 9)[0], precision)
    counted = targets != ref.IGNORE
    logits = model.forward(ids)[counted].astype(float)
    want = np.log(ref.softmax(logits))
    logprobs, ranks, best, _ = model._core.score(ids, targets, 3)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert np.abs(logprobs - want[np.arange(len(want)), targets[counted]]).max() < 1e-5
    assert np.array_equal(ranks, 1 + np.argmax(order == targets[counted][:, None], axis=1))
    assert np.array_equal(best, order[:, :3])
    on_cpu = soma.Model(model.config, precision=precision)
    for name in on_cpu.parameters():
        on_cpu.write(name, model.read(name))
    tolerance = model_tolerance(config, 135) if precision == "float32" else bfloat16_tolerance(products(config))
    assert relative_error(model.hidden(ids), on_cpu.hidden(ids)) < tolerance


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", [soma.AdamW, soma.Muon])
@pytest.mark.parametrize("block", BLOCKS)
def test_steps_have_the_same_bits_in_every_order(block: str, optimizer: type[soma.Muon], precision: str) -> None:
    config = of_block(TINY, block)
    ids, targets = draw(config, 2, 9)
    runs = []
    for order in ORDERS:
        set_order(*order)
        model = soma.Model(soma.ModelConfig(**config.to_dict()), seed=3, precision=precision, device="cuda")
        steps = optimizer(model)
        losses = [(model.loss_and_grad(ids, targets), steps.step(lr=0.01)) for _ in range(2)]
        runs.append((losses, [array.tobytes() for array in model.parameters().values()]))
    set_order()
    assert all(run == runs[0] for run in runs)


@pytest.mark.parametrize("optimizer", [soma.AdamW, soma.Muon])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_training_follows_that_on_the_processor(block: str, optimizer: type[soma.Muon]) -> None:
    """The same initial bits; then the same losses but for rounding. Clipping is on."""
    config = soma.ModelConfig(**of_block(TINY, block).to_dict())
    models = [soma.Model(config, seed=4, precision="float32", device=device) for device in ("cpu", "cuda")]
    for name in models[0].parameters():
        assert models[0].read(name).tobytes() == models[1].read(name).tobytes()
    steps = [optimizer(model, max_grad_norm=0.5) for model in models]
    rng = np.random.default_rng(5)
    curves: list[list[tuple[float, float]]] = [[], []]
    for _ in range(16):
        ids = rng.integers(0, 3, (2, 10)).cumsum(axis=1) % config.vocab_size
        for model, step, curve in zip(models, steps, curves, strict=True):
            curve.append((model.loss_and_grad(ids[:, :-1], ids[:, 1:]), step.step(lr=0.01)))
    losses = np.array(curves)[:, :, 0]
    assert losses[0, :6] == pytest.approx(losses[1, :6], rel=1e-3)  # roundings part later
    assert losses[1, -5:].mean() < 0.95 * losses[1, 0]


def test_auto_trains_in_bfloat16_and_evaluates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOMA_PRECISION", raising=False)
    model = soma.Model(soma.ModelConfig(**TINY.to_dict()), device="cuda")
    assert (model.precision, model.evaluation_precision) == ("bfloat16", "float32")
