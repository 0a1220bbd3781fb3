"""Models in bfloat16: every gradient on every ISA, training, and the choice of the precision."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
from test_gradients import CASES, LARGE, VARIANTS, draw, expected

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, relative_error
from helpers.shapes import of_block
from oracles import reference as ref


def rounded_model(config: ref.Config, params: ref.Params, precision: str = "bfloat16") -> soma.Model:
    model = soma.Model(soma.ModelConfig(**config.to_dict()), precision=precision)
    for name in model.parameters():
        model.write(name, params[name])
    return model


@functools.cache
def rounded(config: ref.Config, rows: int, length: int) -> tuple[ref.Params, ref.Array, float, ref.Params]:
    """(parameters, logits, loss, gradients) of the reference with rounded operands; computed once for all levels."""
    params = expected(config, rows, length)[0]
    ids, targets = draw(config, rows, length)
    with ref.bfloat16_products():
        loss, grads = ref.loss_and_grad(params, config, ids, targets)
        return params, ref.forward(params, config, ids), loss, grads


def products(config: ref.Config) -> int:
    """Number of matrix products in sequence on the longest path through forward and backward."""
    return 2 * (6 * config.n_layers + 1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("block", "tied"), VARIANTS)
@pytest.mark.parametrize("case", CASES | LARGE)
def test_every_gradient(case: str, block: str, tied: bool) -> None:
    shape, rows, length = (CASES | LARGE)[case]
    config = of_block(shape, block, tied)
    params, logits, loss, grads = rounded(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = rounded_model(config, params)
    assert model.precision == "bfloat16"
    tolerance = bfloat16_tolerance(products(config))
    assert relative_error(model.forward(ids), logits) < tolerance
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=tolerance)
    largest = max(float(np.linalg.norm(want)) / np.sqrt(want.size) for want in grads.values())
    for name, value in model.gradients().items():
        size = max(
            float(np.linalg.norm(grads[name])), 0.25 * largest * float(np.sqrt(value.size))
        )  # some nearly cancel
        assert np.linalg.norm(value - grads[name]) < tolerance * size, name


@pytest.mark.usefixtures("isa")
def test_it_is_not_float32(block: str) -> None:
    """The operands are really rounded: on every level the error is far larger than in single precision."""
    config = of_block(CASES["odd everything"][0], block, tied=False)
    params, logits, _, _ = expected(config, 3, 13)
    ids, _ = draw(config, 3, 13)
    assert relative_error(rounded_model(config, params).forward(ids), logits) > 1e-4
    assert relative_error(rounded_model(config, params, "float32").forward(ids), logits) < 1e-5


@pytest.mark.usefixtures("isa")
def test_the_same_bits_twice_and_on_any_number_of_threads(block: str) -> None:
    config = of_block(CASES["odd everything"][0], block)
    params = expected(config, 3, 13)[0]
    ids, targets = draw(config, 3, 13)
    seen = set()
    for threads in (1, 2, 3, 1):
        soma.set_num_threads(threads)
        model = rounded_model(config, params)
        optimizer = soma.AdamW(model, lr=1e-2)
        losses = []
        for _ in range(3):
            losses.append(model.loss_and_grad(ids, targets))
            optimizer.step()
        seen.add((*losses, b"".join(value.tobytes() for value in model.parameters().values())))
    assert len(seen) == 1


def test_training_follows_single_precision(block: str) -> None:
    """Within half a per cent of the loss, over fifty steps that half learn a repeating text."""
    config = soma.ModelConfig(vocab_size=17, d_model=48, n_layers=2, n_heads=3, d_ff=96, max_seq_len=32, block=block)
    rng = np.random.default_rng(4)
    batches = [(rng.integers(0, 17, (8, 1)) + np.arange(33) * (1 + i % 2)) % 17 for i in range(50)]
    curves = {}
    for precision in ("float32", "bfloat16"):
        model = soma.Model(config, seed=3, precision=precision)
        optimizer = soma.AdamW(model, lr=1e-3)
        curves[precision] = []
        for batch in batches:
            curves[precision].append(model.loss_and_grad(batch[:, :-1], batch[:, 1:]))
            optimizer.step()
    exact, rounded = np.array(curves["float32"]), np.array(curves["bfloat16"])
    assert exact[-1] < 0.7 * exact[0]
    assert np.all(np.abs(rounded - exact) < 0.005 * exact)


SMALLEST = soma.ModelConfig(vocab_size=7, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=4)


@pytest.mark.parametrize("said", [None, "", "auto"])
def test_auto_trains_in_bfloat16_where_it_is_faster(
    isa: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOMA_PRECISION", raising=False)
    if said is not None:
        monkeypatch.setenv("SOMA_PRECISION", said)
    model = soma.Model(SMALLEST)
    assert model.precision == ("bfloat16" if isa in ("avx512_bf16", "amx", "neon_bf16") else "float32")
    assert model.evaluation_precision == "float32"


def test_soma_precision_says_what_auto_trains_in(isa: str, precision: str) -> None:
    assert os.environ["SOMA_PRECISION"] == precision
    model = soma.Model(SMALLEST)
    assert (model.precision, model.evaluation_precision) == (precision, "float32")
    for other in ("float32", "bfloat16"):  # a given precision is never replaced
        model = soma.Model(SMALLEST, precision=other)
        assert (model.precision, model.evaluation_precision) == (other, other)


def test_an_unknown_soma_precision_is_an_error_that_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_PRECISION", "float16")
    with pytest.raises(ValueError, match="SOMA_PRECISION must be one of auto, float32, bfloat16, got 'float16'"):
        soma.Model(SMALLEST)
    assert soma.Model(SMALLEST, precision="float32").precision == "float32"


@pytest.mark.usefixtures("isa")
def test_evaluation_in_single_precision_beside_training_in_bfloat16(block: str) -> None:
    """The same bits as a model of one precision, in any order of training and evaluation."""
    config = of_block(CASES["odd everything"][0], block, tied=False)
    params = expected(config, 3, 13)[0]
    ids, targets = draw(config, 3, 13)
    exact, coarse, both = (rounded_model(config, params, p) for p in ("float32", "bfloat16", "bfloat16"))
    both._evaluate_in("float32")
    for _ in range(2):
        assert both.loss(ids, targets) == exact.loss(ids, targets) != coarse.loss(ids, targets)
        assert both.loss_and_grad(ids, targets) == coarse.loss_and_grad(ids, targets)
        assert np.array_equal(both.forward(ids), exact.forward(ids))
    for name, gradient in coarse.gradients().items():
        assert np.array_equal(both.gradients()[name], gradient)
    both._evaluate_in("bfloat16")
    assert np.array_equal(both.forward(ids), coarse.forward(ids))
