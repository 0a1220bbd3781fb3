"""Muon against its oracle in float64 and against PyTorch's; the same bits on any number of threads; hostile values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import muon_tolerance, normal, relative_error
from helpers.shapes import options_of
from oracles import muon as ref_muon
from oracles import reference as ref
from oracles.reference import Array, Params

IDS = np.arange(12, dtype=np.int32).reshape(2, 6) % 7
STEPS = 10

pytestmark = pytest.mark.usefixtures("settings_restored")


def small_model(block: str, precision: str = "float32", **sizes: int) -> soma.Model:
    shape = {"vocab_size": 29, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 40, "max_seq_len": 13}
    shape |= sizes
    options = options_of(block, shape["n_heads"], shape["d_model"] // shape["n_heads"], qk_norm=True)
    return soma.Model(soma.ModelConfig(**shape, **options, block=block), seed=1, precision=precision)


def config_of(model: soma.Model) -> ref.Config:
    return ref.Config(**model.config.to_dict())


def wide(arrays: dict[str, Array]) -> Params:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def steps_beside_the_oracle(model: soma.Model, seed: int = 0, size: float = 1.0, **options: Any) -> dict[str, float]:
    """Relative errors of what ten steps of random gradients add to each parameter."""
    coefficients = ref_muon.CLASSIC if options.get("coefficients") == "classic" else ref_muon.POLAR_EXPRESS
    optimizer = soma.Muon(model, **options)
    oracle = ref_muon.Muon(config_of(model), **{**options, "coefficients": coefficients})
    rng = np.random.default_rng(seed)
    begun = wide(model.parameters())
    want = {name: array.copy() for name, array in begun.items()}
    for _ in range(STEPS):
        for gradient in model.gradients().values():
            gradient[...] = size * normal(rng, *gradient.shape)
        norm = oracle.step(want, wide(model.gradients()))
        assert optimizer.step() == pytest.approx(norm, rel=1e-5)
        assert not any(gradient.any() for gradient in model.gradients().values())
    assert optimizer.step_count == STEPS
    found = model.parameters()
    return {name: relative_error(found[name] - begun[name], want[name] - begun[name]) for name in begun}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ten_steps(block: str, precision: str) -> None:
    errors = steps_beside_the_oracle(small_model(block, precision), lr=0.02)
    assert max(errors.values()) < muon_tolerance(precision), errors


@pytest.mark.parametrize(
    "options",
    [
        {"coefficients": "classic"},
        {"head_blocks": 1},
        {"head_blocks": 2},  # of three: the last block is one head
        {"head_blocks": 99},
        {"cautious": True, "weight_decay": 2.0},
        {"adamw_weight_decay": 0.0, "weight_decay": 2.0},
        {"momentum": 0.0, "betas": (0.5, 0.6), "eps": 1e-3},
        {"max_grad_norm": None},
        {"max_grad_norm": 0.1},
    ],
    ids=str,
)
def test_ten_steps_with_options(block: str, options: dict[str, Any]) -> None:
    given = {**options, "max_grad_norm": options.get("max_grad_norm", 1.0) or 0.0}
    errors = steps_beside_the_oracle(small_model(block), lr=0.02, **given)
    assert max(errors.values()) < muon_tolerance("float32"), errors


@pytest.mark.parametrize(
    "sizes", [{"d_ff": 1}, {"d_model": 3, "n_heads": 3, "d_ff": 200}, {"d_model": 130, "n_heads": 1}], ids=str
)
def test_ten_steps_of_awkward_shapes(block: str, sizes: dict[str, int], precision: str) -> None:
    """A matrix of one row or column is scaled to length one; heads of one channel are such matrices.

    In bfloat16 the least singular value of a matrix of 3 x 3 may be no larger than its rounding: half an error is
    what one direction lost of three would give.
    """
    for blocks in (None, 1):
        errors = steps_beside_the_oracle(small_model(block, precision, **sizes), lr=0.02, head_blocks=blocks)
        tolerance = muon_tolerance(precision) if precision == "float32" or sizes.get("d_model", 99) > 3 else 0.5
        assert max(errors.values()) < tolerance, errors


def test_the_factor_of_one_step_is_near_orthogonal(block: str, precision: str) -> None:
    """Polar Express brings all singular values that are not tiny near 1."""
    model = small_model(block, precision, d_model=48, d_ff=96)
    before = wide(model.parameters())
    rng = np.random.default_rng(0)
    for gradient in model.gradients().values():
        gradient[...] = normal(rng, *gradient.shape)
    soma.Muon(model, lr=1.0, weight_decay=0.0).step()
    for name, after in model.parameters().items():
        if not ref_muon.is_hidden(name, after.shape):
            continue
        for part in ref_muon.cut(name, before[name] - after, config_of(model), None):
            singular = np.linalg.svd(part / (0.2 * np.sqrt(max(part.shape))), compute_uv=False)
            assert np.median(singular) == pytest.approx(1, abs=0.15), name
            assert singular.max() < 1.3, name


def trained_bits(block: str, precision: str, **options: Any) -> bytes:
    """What five steps make of all parameters and all that is saved."""
    model = small_model(block, precision, d_model=96, d_ff=256, vocab_size=101, max_seq_len=40)
    optimizer = soma.Muon(model, lr=1e-2, **options)
    rng = np.random.default_rng(2)
    for _ in range(5):
        ids = rng.integers(0, 101, (6, 40)).astype(np.int32)
        model.loss_and_grad(ids, ids)
        optimizer.step()
    arrays = [*model.parameters().values(), *optimizer.state().values()]
    return b"".join(array.tobytes() for array in arrays)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("head_blocks", [None, 1])
def test_the_same_bits_on_any_number_of_threads(block: str, precision: str, head_blocks: int | None) -> None:
    """Two threads and three take a matrix each; of fifty, all share one product after the other."""
    made = []
    for threads in (1, 2, 3, 50):
        soma.set_num_threads(threads)
        made.append(trained_bits(block, precision, head_blocks=head_blocks))
    assert all(bits == made[0] for bits in made)


def test_pytorch_has_the_same_step() -> None:
    """torch.optim.Muon with match_rms_adamw, which rounds to bfloat16 and has the classic polynomial."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    rng = np.random.default_rng(3)
    model = small_model("gpt2", d_model=48, d_ff=100)
    names = [name for name, array in model.parameters().items() if ref_muon.is_hidden(name, array.shape)]
    parts = {
        (name, i): torch.nn.Parameter(torch.from_numpy(part.T.copy()))
        for name in names
        for i, part in enumerate(ref_muon.cut(name, model.parameters()[name], config_of(model), None))
    }
    theirs = torch.optim.Muon(
        parts.values(), lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True, ns_steps=5,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    ours = soma.Muon(model, lr=0.02, weight_decay=0.1, max_grad_norm=0, coefficients="classic")
    begun = {name: array.copy() for name, array in model.parameters().items()}
    for _ in range(STEPS):
        for name, gradient in model.gradients().items():
            gradient[...] = normal(rng, *gradient.shape)
            for i, part in enumerate(ref_muon.cut(name, gradient, config_of(model), None) if name in names else ()):
                parts[name, i].grad = torch.from_numpy(part.T.copy())
        theirs.step()
        ours.step()
    for (name, i), parameter in parts.items():
        mine = list(ref_muon.cut(name, model.parameters()[name] - begun[name], config_of(model), None))[i]
        begins = list(ref_muon.cut(name, begun[name], config_of(model), None))[i]
        assert relative_error(mine, parameter.detach().numpy().T - begins) < muon_tolerance("bfloat16"), name


def test_a_matrix_without_a_gradient_only_decays(block: str, precision: str) -> None:
    model = small_model(block, precision)
    before = {name: array.copy() for name, array in model.parameters().items()}
    optimizer = soma.Muon(model, lr=0.5, weight_decay=0.5)
    for _ in range(3):
        assert optimizer.step() == 0
    for name, array in model.parameters().items():
        kept = before[name] if array.ndim == 1 else before[name] * np.float32(0.75) ** 3
        assert relative_error(array, kept) < 1e-6, name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(block: str, bad: float) -> None:
    model = small_model(block)
    optimizer = soma.Muon(model)
    model.loss_and_grad(IDS, IDS)
    optimizer.step()
    model.loss_and_grad(IDS, IDS)
    next(reversed(model.gradients().values()))[...] = bad
    before = [array.tobytes() for array in [*model.parameters().values(), *optimizer.state().values()]]
    with pytest.raises(FloatingPointError, match=r"the gradient is not finite .*nothing was updated"):
        optimizer.step()
    assert [a.tobytes() for a in [*model.parameters().values(), *optimizer.state().values()]] == before
    assert optimizer.step_count == 1


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_gradients_of_any_size_leave_finite_weights(block: str, precision: str, size: float) -> None:
    """Below 1e-6 a norm counts as that, so such a step is small; above, only the direction counts."""
    errors = steps_beside_the_oracle(small_model(block, precision), size=size, weight_decay=0.0)
    hidden = [error for name, error in errors.items() if ref_muon.is_hidden(name, (1, 1))]
    assert np.isfinite(list(errors.values())).all()
    if size > 1:
        assert max(hidden) < muon_tolerance(precision), errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be from 0 to"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"momentum": "x"}, "momentum must be a number"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"adamw_weight_decay": -0.1}, "adamw_weight_decay must be"),
        ({"head_blocks": 0}, "head_blocks must be from 1"),
        ({"head_blocks": 1.5}, "head_blocks must be an integer"),
        ({"coefficients": "quintic"}, "coefficients must be one of polar_express, classic"),
        ({"cautious": 1}, "cautious must be True or False"),
        ({"eps": 0.0}, "eps must be"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        soma.Muon(small_model("soma"), **options)


def test_options_of_a_step() -> None:
    """Rate, decay and momentum may differ from step to step; what is left out is the optimizer's."""
    made = []
    for given in (False, True):
        model = small_model("gpt2")
        optimizer = soma.Muon(model) if given else soma.Muon(model, lr=0.02, weight_decay=0.7, momentum=0.6)
        model.loss_and_grad(IDS, IDS)
        if given:
            optimizer.momentum = 0.6
            optimizer.step(0.02, weight_decay=0.7)
        else:
            optimizer.step()
        made.append([array.tobytes() for array in model.parameters().values()])
    assert made[0] == made[1]
    optimizer.momentum = 1.5
    with pytest.raises(ValueError, match="momentum must be at least 0 and below 1"):
        optimizer.step()
    optimizer.momentum = 0.9
    for name in ("lr", "weight_decay"):
        with pytest.raises(ValueError, match=name):
            optimizer.step(**{name: -1.0})
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.step(lr=1e38, weight_decay=1e38)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_first(block: str, make_copy: Callable[[Any], Any]) -> None:
    model = small_model(block)
    optimizer = soma.Muon(model, lr=0.02, weight_decay=0.3, cautious=True, head_blocks=1, coefficients="classic")
    for _ in range(2):
        model.loss_and_grad(IDS, IDS)
        optimizer.step()
    other = make_copy(optimizer)
    assert repr(other) == repr(optimizer) and other.step_count == 2
    for each in (optimizer, other):
        each.model.loss_and_grad(IDS, IDS)
        each.step()
    for mine, theirs in zip(model.parameters().values(), other.model.parameters().values(), strict=True):
        assert np.array_equal(mine, theirs)


def test_what_is_saved_of_it(block: str) -> None:
    """Matrices have momentum and no second moment: they take a third less memory than with AdamW."""
    model = small_model(block)
    state = soma.Muon(model).state()
    hidden = {name for name, array in model.parameters().items() if ref_muon.is_hidden(name, array.shape)}
    rest = model.parameters().keys() - hidden
    want = {f"momentum.{name}" for name in hidden}
    want |= {f"{kind}_moment.{name}" for kind in ("first", "second") for name in rest}
    assert state.keys() == want
    for name, array in state.items():
        assert array.shape == model.parameters()[name.split(".", 1)[1]].shape


def test_it_learns(block: str, precision: str) -> None:
    model = small_model(block, precision)
    optimizer = soma.Muon(model, lr=1e-2)
    first = model.loss(IDS, IDS)
    for _ in range(30):
        model.loss_and_grad(IDS, IDS)
        optimizer.step()
    assert model.loss(IDS, IDS) < first / 4
