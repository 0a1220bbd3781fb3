"""The gpt2 block with other activations and other scales of attention: gradients, bits, copies, what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_batch_split import trained
from test_bfloat16 import products, rounded, rounded_model
from test_gradients import SMALL, assert_gradients, draw, expected, native

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, model_tolerance, relative_error
from oracles import reference as ref
from soma_native import _core
from soma_native.errors import ArgumentError
from soma_native.training.differences import complete
from soma_native.training.layout import Layout

SHAPES = {
    "odd everything": (replace(SMALL, n_layers=3), 3, 13),
    "head size 1": (replace(SMALL, d_model=5, n_heads=5, d_ff=3), 2, 9),
    "attention tiles crossed": (replace(SMALL, max_seq_len=130), 2, 130),
    "sums deeper than a tile": (replace(SMALL, d_ff=900), 2, 17),
}

pytestmark = pytest.mark.usefixtures("settings_restored")


@pytest.fixture(params=ref.OTHER_GPT2)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ref.OTHER_GPT2[request.param]


def of(shape: ref.Config, variant: dict[str, Any]) -> ref.Config:
    return replace(shape, block="gpt2", tied_head=True, **variant)


# mathematics ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_gradient(variant: dict[str, Any], shape: str) -> None:
    small, rows, length = SHAPES[shape]
    config = of(small, variant)
    params, logits, loss, grads = expected(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = native(config, params)
    tolerance = model_tolerance(config, rows * length)
    assert relative_error(model.forward(ids), logits) < tolerance
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=tolerance)
    assert_gradients(model.gradients(), grads, config, rows * length)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", SHAPES)
def test_every_gradient_in_bfloat16(variant: dict[str, Any], shape: str) -> None:
    small, rows, length = SHAPES[shape]
    config = of(small, variant)
    params, logits, loss, grads = rounded(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = rounded_model(config, params)
    tolerance = bfloat16_tolerance(products(config))
    assert relative_error(model.forward(ids), logits) < tolerance
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=tolerance)
    largest = max(float(np.linalg.norm(want)) / np.sqrt(want.size) for want in grads.values())
    for name, value in model.gradients().items():
        size = max(float(np.linalg.norm(grads[name])), 0.25 * largest * float(np.sqrt(value.size)))
        assert np.linalg.norm(value - grads[name]) < tolerance * size, name


@pytest.mark.processor
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bits_of_one_thread(variant: dict[str, Any], precision: str) -> None:
    """Also where each thread carries whole sequences through all blocks."""
    sizes = {"vocab_size": 53, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 50, "max_seq_len": 64}
    config = soma.ModelConfig(**sizes, block="gpt2", **variant)
    alone = trained(config, precision, 12, threads=1)
    for threads in (2, 3):
        assert trained(config, precision, 12, threads) == alone, threads


# configuration -------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 7, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 37, "max_seq_len": 33}


def test_a_model_keeps_its_mathematics_in_copies(variant: dict[str, Any]) -> None:
    config = soma.ModelConfig(**SIZES, block="gpt2", **variant)
    model = soma.Model(config, seed=3)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made.config == config
        assert np.array_equal(made.forward([1, 2, 3]), model.forward([1, 2, 3]))
    assert soma.ModelConfig.from_dict(config.to_dict()) == config
    assert all(f"{key}={value!r}" in repr(config) for key, value in variant.items())


USUAL = {"soma": "relu", "gpt2": "gelu_tanh", "llama": "silu"}


def test_the_activation_of_each_block(block: str) -> None:
    assert soma.ModelConfig(**SIZES, block=block).activation == USUAL[block]
    for name in _core.block_activations(block):
        assert soma.ModelConfig(**SIZES, block=block, activation=name).activation == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "gpt2", "activation": "silu"}, r"one of gelu_tanh, gelu, relu in the gpt2 block, got 'silu'"),
        ({"block": "llama", "activation": "gelu"}, r"activation must be silu in the llama block, got 'gelu'"),
        ({"block": "llama", "scale_attn_weights": False}, "scale_attn_weights must be True in the llama block"),
        ({"block": "gpt2", "activation": "gelu_new"}, "activation must be one of"),
        ({"block": "soma", "activation": "gelu"}, r"activation must be relu in the soma block, got 'gelu'"),
        (
            {"block": "soma", "scale_attn_weights": False},
            "scale_attn_weights must be True in the soma block",
        ),
        ({"block": "soma", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
    ],
)
def test_what_a_block_does_not_compute_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        soma.ModelConfig(**SIZES, **fields)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="scale_attn_weights must be True or False, got 1"):
        soma.ModelConfig(**SIZES, block="gpt2", scale_attn_weights=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("block", "changes", "message"),
    [
        ("gpt2", {"activation": "silu"}, "'silu'"),
        ("soma", {"activation": "gelu"}, "activation of the soma block cannot be 'gelu'"),
        ("llama", {"activation": "relu"}, "activation of the llama block cannot be 'relu'"),
        ("soma", {"scale_attn_weights": False}, "scale_attn_weights"),
    ],
)
def test_the_core_refuses_it_too(block: str, changes: dict[str, Any], message: str) -> None:
    fields = {**soma.ModelConfig(**SIZES, block=block).to_dict(), **changes}
    with pytest.raises(ValueError, match=message):
        _core.Config(**fields)


LATER = ("activation", "scale_attn_weights", "scale_attn_by_inverse_layer_idx")


def test_a_run_of_an_older_version_can_go_on() -> None:
    """Its model lacked the later fields and computed their defaults."""
    tok = soma.Tokenizer.train(["a b c d e f"], kind="word")
    model = soma.Model(soma.ModelConfig(**{**SIZES, "vocab_size": tok.vocab_size}, block="gpt2"))
    identity = Layout(model, tok, soma.TrainConfig(epochs=1, batch_size=1), ["a b c d e f"], None).identity
    older = {key: value for key, value in identity["model"].items() if key not in LATER}
    assert len(older) == len(identity["model"]) - len(LATER)
    assert complete({**identity, "model": older}) == identity
    assert complete({**identity, "model": {**older, "activation": "relu"}}) != identity
