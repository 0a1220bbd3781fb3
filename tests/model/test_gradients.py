"""The C++ model against the float64 reference: loss, logits and every gradient, on every ISA and awkward sizes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import model_tolerance, relative_error
from helpers.shapes import of_block
from oracles import reference as ref
from soma_native.model.config import BLOCKS

pytestmark = pytest.mark.levels("sse")

SMALL = ref.Config(vocab_size=7, d_model=24, n_layers=2, n_heads=3, d_ff=37, max_seq_len=33)
# (shape, batch, length) by the reason of the case.
CASES = {
    "one token": (SMALL, 1, 1),
    "odd everything": (SMALL, 3, 13),
    "full window": (SMALL, 1, 33),
    "one layer, one head": (replace(SMALL, n_layers=1, n_heads=1, vocab_size=19), 2, 16),
    "head size 1": (replace(SMALL, d_model=5, n_heads=5, d_ff=3), 2, 9),
    "narrower than a vector": (replace(SMALL, d_model=3, n_heads=1, d_ff=1, vocab_size=2), 2, 5),
    "attention tiles crossed": (replace(SMALL, max_seq_len=130), 2, 130),
    "loss head chunk crossed": (replace(SMALL, vocab_size=301, max_seq_len=130), 3, 107),
    "wide": (replace(SMALL, vocab_size=65, d_model=136, n_heads=2, d_ff=520, n_layers=1), 2, 17),
}
VARIANTS = [(block, tied) for block in BLOCKS for tied in (False, True)]


@pytest.fixture(params=VARIANTS, ids=[f"{block}-{'tied' if tied else 'untied'}" for block, tied in VARIANTS])
def variant(request: pytest.FixtureRequest) -> tuple[str, bool]:
    block, tied = request.param
    return str(block), bool(tied)


def draw(config: ref.Config, rows: int, length: int, seed: int = 2) -> tuple[ref.Array, ref.Array]:
    """Ids and targets. A fifth of the targets is ignored, but never all."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    targets = rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    ignored = rng.random((rows, length)) < 0.2
    ignored[-1, -1] = False
    targets[ignored] = ref.IGNORE
    return ids, targets


def native(config: ref.Config, params: ref.Params) -> soma.Model:
    model = soma.Model(soma.ModelConfig(**config.to_dict()), precision="float32")
    views = model.parameters()
    assert {name: view.shape for name, view in views.items()} == ref.parameter_shapes(config)
    for name in views:
        model.write(name, params[name])
    return model


@functools.cache
def expected(config: ref.Config, rows: int, length: int) -> tuple[ref.Params, ref.Array, float, ref.Params]:
    """(parameters, logits, loss, gradients) of the reference; computed once for all ISA levels."""
    params = ref.random_parameters(config, seed=1)
    ids, targets = draw(config, rows, length)
    loss, grads = ref.loss_and_grad(params, config, ids, targets)
    return params, ref.forward(params, config, ids), loss, grads


def assert_gradients(
    got: dict[str, Any], want: ref.Params, config: ref.Config, tokens: int, share: float = 1e-3
) -> None:
    """Each gradient is within the tolerance of its own norm, or of its terms' norm if the terms nearly cancel."""
    assert got.keys() == want.keys()
    floor = share * float(np.sqrt(sum(np.square(g).sum() for g in want.values()) / sum(g.size for g in want.values())))
    errors = {}
    for name, value in got.items():
        size = max(float(np.linalg.norm(want[name])), floor * float(np.sqrt(value.size)))
        errors[name] = float(np.linalg.norm(value - want[name])) / size
    assert max(errors.values()) < model_tolerance(config, tokens), errors


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", CASES)
def test_every_parameter(variant: tuple[str, bool], case: str) -> None:
    shape, rows, length = CASES[case]
    config = of_block(shape, *variant)
    params, logits, loss, grads = expected(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = native(config, params)
    tolerance = model_tolerance(config, rows * length)
    assert model.num_parameters == sum(value.size for value in params.values())
    assert relative_error(model.forward(ids), logits) < tolerance
    assert model.loss(ids, targets) == pytest.approx(loss, rel=tolerance)
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=tolerance)
    assert_gradients(model.gradients(), grads, config, rows * length)


# Sizes beyond the blocks of the matrix product: in registers, in tiles, and in packed memory.
LARGE = {
    "sums deeper than a tile": (replace(SMALL, d_ff=900), 2, 17),
    "sums deeper than a packed part": (replace(SMALL, d_ff=4500), 1, 9),
    "more rows and columns than a packed part": (
        replace(SMALL, vocab_size=40_000, d_model=128, n_heads=4, n_layers=1, max_seq_len=130),
        1,
        111,
    ),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", LARGE)
def test_products_larger_than_their_blocks(block: str, case: str) -> None:
    shape, rows, length = LARGE[case]
    config = of_block(shape, block)
    params, logits, loss, grads = expected(config, rows, length)
    ids, targets = draw(config, rows, length)
    model = native(config, params)
    assert relative_error(model.forward(ids), logits) < model_tolerance(config, rows * length)
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=1e-5)
    assert_gradients(model.gradients(), grads, config, rows * length)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("name", "factor"), [("fc", 300.0), ("qkv", 30.0), ("head", 3000.0)])
def test_large_activations_saturate_as_they_should(variant: tuple[str, bool], name: str, factor: float) -> None:
    """Large inputs of GELU on both sides, attention to one key, a loss of thousands: no overflow, no lost digits."""
    config = of_block(SMALL, *variant)
    names = ref.LAYER_NAMES[config.block] | {"w_head": ref.MODEL_NAMES[config.block]["head"]}
    params = ref.random_parameters(config, seed=1)
    for target in {names[f"w_{name}"].format(layer) for layer in range(2)} & params.keys():
        params[target] = (params[target] * factor).astype(np.float32).astype(np.float64)
    ids, targets = draw(config, 2, 13)
    model = native(config, params)
    loss, grads = ref.loss_and_grad(params, config, ids, targets)
    assert relative_error(model.forward(ids), ref.forward(params, config, ids)) < 1e-4
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=1e-4)
    # The rounding of a large input is an error before the function is applied, so the bound is looser.
    largest = max(float(np.linalg.norm(value)) for value in grads.values())
    for target, value in model.gradients().items():
        assert np.linalg.norm(value - grads[target]) < 1e-3 * largest, target


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_lost(variant: tuple[str, bool], bad: float) -> None:
    """One bad number in any tensor reaches the loss or the gradient's norm, and the optimizer refuses to step."""
    config = of_block(SMALL, *variant)
    params = ref.random_parameters(config, seed=1)
    ids, targets = draw(config, 2, 13)
    for name, value in params.items():
        model = native(config, params)
        optimizer = soma.AdamW(model)
        row = int(ids[0, 0]) if "wte" in name else 0
        model.parameters()[name][(row,) if value.ndim == 1 else (row, 0)] = bad
        before = {key: array.copy() for key, array in model.parameters().items()}
        loss = model.loss_and_grad(ids, targets)
        assert not np.isfinite(loss) or np.isinf(bad), name
        if np.isfinite(loss) and all(np.isfinite(g).all() for g in model.gradients().values()):
            continue  # an infinite weight that a ReLU or a norm made harmless
        with pytest.raises(FloatingPointError):
            optimizer.step()
        for key, array in model.parameters().items():
            assert array.tobytes() == before[key].tobytes(), (name, key)


@pytest.mark.usefixtures("isa")
def test_shorter_and_longer_calls_on_one_model(variant: tuple[str, bool]) -> None:
    """Buffers that an earlier call of another shape filled do not change a later call."""
    config = of_block(SMALL, *variant)
    model = native(config, expected(config, 3, 13)[0])
    for rows, length in [(3, 13), (1, 1), (1, 33), (3, 13)]:
        _, logits, loss, grads = expected(config, rows, length)
        ids, targets = draw(config, rows, length)
        model.zero_grad()
        assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=1e-5)
        assert_gradients(model.gradients(), grads, config, rows * length)
        assert relative_error(model.forward(ids), logits) < 1e-5


def test_gradients_accumulate_until_cleared(variant: tuple[str, bool]) -> None:
    config = of_block(SMALL, *variant)
    params, _, _, once = expected(config, 3, 13)
    ids, targets = draw(config, 3, 13)
    model = native(config, params)
    for _ in range(3):
        model.loss_and_grad(ids, targets)
    assert_gradients(model.gradients(), {name: 3 * value for name, value in once.items()}, config, 3 * ids.size)
    model.zero_grad()
    assert not any(value.any() for value in model.gradients().values())
    model.loss_and_grad(ids, targets)
    assert_gradients(model.gradients(), once, config, ids.size)


def test_micro_batches_with_one_normalizer_are_one_batch(variant: tuple[str, bool]) -> None:
    """Each row is a call with the whole batch's number of targets; the rows have unequal numbers."""
    config = of_block(SMALL, *variant)
    params, _, loss, grads = expected(config, 3, 13)
    ids, targets = draw(config, 3, 13)
    total = int((targets != ref.IGNORE).sum())
    assert len({int((row != ref.IGNORE).sum()) for row in targets}) > 1
    model = native(config, params)
    parts = [model.loss_and_grad(ids[i : i + 1], targets[i : i + 1], normalizer=total) for i in range(3)]
    assert sum(parts) == pytest.approx(loss, rel=1e-5)
    assert_gradients(model.gradients(), grads, config, ids.size)
    assert model.loss(ids, targets, normalizer=2 * total) == pytest.approx(loss / 2, rel=1e-5)


def test_a_micro_batch_without_targets_adds_nothing(variant: tuple[str, bool]) -> None:
    """A micro-batch may have no target at all, while the whole batch has some."""
    config = of_block(SMALL, *variant)
    ids, targets = draw(config, 3, 13)
    ignored = np.full_like(targets, ref.IGNORE)
    model = native(config, ref.random_parameters(config, seed=1))
    model.loss_and_grad(ids, targets, normalizer=64)
    before = {name: value.copy() for name, value in model.gradients().items()}
    assert model.loss_and_grad(ids, ignored, normalizer=64) == 0.0
    assert model.loss(ids, ignored, normalizer=64) == 0.0
    for name, value in model.gradients().items():
        assert np.array_equal(value, before[name]), name
    with pytest.raises(ValueError, match="-100"):  # without a normalizer there is no mean
        model.loss_and_grad(ids, ignored)


def test_a_row_of_ids_is_a_batch_of_one(variant: tuple[str, bool]) -> None:
    config = of_block(SMALL, *variant)
    model = native(config, ref.random_parameters(config, seed=1))
    ids, targets = draw(config, 1, 13)
    assert model.forward(ids[0]).shape == (13, config.vocab_size)
    assert np.array_equal(model.forward(ids[0]), model.forward(ids)[0])
    assert model.loss(ids[0], targets[0]) == model.loss(ids, targets)
    assert model.loss(ids.astype(np.int64), targets.tolist()) == model.loss(ids, targets)


def test_ignored_targets_change_nothing(variant: tuple[str, bool]) -> None:
    """In a causal model, ids after the last kept target change neither the loss nor its gradient."""
    config = of_block(SMALL, *variant)
    model = native(config, ref.random_parameters(config, seed=1))
    ids, targets = draw(config, 2, 13)
    targets[:, 6:] = ref.IGNORE
    targets[:, 5] = 1
    loss = model.loss_and_grad(ids, targets)
    before = {name: value.copy() for name, value in model.gradients().items()}
    model.zero_grad()
    ids[:, 6:] = (ids[:, 6:] + 1) % config.vocab_size
    assert model.loss_and_grad(ids, targets) == pytest.approx(loss, rel=1e-6)
    for name, value in model.gradients().items():
        assert np.allclose(value, before[name], rtol=1e-5, atol=1e-8), name


@pytest.mark.processor
def test_parameter_views_are_the_model(variant: tuple[str, bool]) -> None:
    config = of_block(SMALL, *variant)
    model = native(config, ref.random_parameters(config, seed=1))
    ids, _ = draw(config, 1, 5)
    before = model.forward(ids)
    for name, view in model.parameters().items():
        assert view.dtype == np.float32
        assert view.flags.c_contiguous
        assert view.flags.writeable
        assert model.gradients()[name].shape == view.shape
        view *= 2.0
    assert not np.allclose(model.forward(ids), before)
    views = model.parameters()
    del model
    assert all(np.isfinite(view).all() for view in views.values())  # a view keeps the memory alive


@pytest.fixture(scope="module")
def tiny() -> soma.Model:
    return native(SMALL, ref.random_parameters(SMALL, seed=1))


IDS = np.zeros((2, 5), np.int32)
BAD_CALLS = {
    "id too large": (IDS + 7, IDS, "7"),
    "id negative": (IDS - 1, IDS, "-1"),
    "target too large": (IDS, IDS + 7, "7"),
    "target negative": (IDS, IDS - 2, "-2"),
    "all ignored": (IDS, IDS + ref.IGNORE, "ignore|-100"),
    "shapes differ": (IDS, IDS[:, :4], "shape"),
    "three dimensions": (IDS[None], IDS[None], "dimension|shape"),
    "no tokens": (IDS[:, :0], IDS[:, :0], "empty|at least|no "),
    "no rows": (IDS[:0], IDS[:0], "empty|at least|no "),
    "too long": (np.zeros((1, 34), np.int32), np.zeros((1, 34), np.int32), "33"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_values_are_named(tiny: soma.Model, case: str) -> None:
    ids, targets, message = BAD_CALLS[case]
    before = {name: value.copy() for name, value in tiny.gradients().items()}
    with pytest.raises(ValueError, match=message):
        tiny.loss_and_grad(ids, targets)
    with pytest.raises(ValueError, match=message):
        tiny.loss(ids, targets)
    for name, value in tiny.gradients().items():
        assert np.array_equal(value, before[name]), f"{name} was touched by a refused call"


BAD_IDS = ["id too large", "id negative", "three dimensions", "no tokens", "no rows", "too long"]


@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_ids_are_named_by_forward(tiny: soma.Model, case: str) -> None:
    ids, _, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        tiny.forward(ids)


@pytest.mark.parametrize("bad", [IDS.astype(np.float32), IDS.astype(np.float64), "abc", None])
def test_bad_types_are_named(tiny: soma.Model, bad: Any) -> None:
    with pytest.raises(TypeError, match="ids"):
        tiny.forward(bad)
    with pytest.raises(TypeError, match="targets"):
        tiny.loss(IDS, bad)


def test_ids_beyond_int32_do_not_wrap_around(tiny: soma.Model) -> None:
    wide = IDS.astype(np.int64) + 2**32
    with pytest.raises(ValueError, match=str(2**32)):
        tiny.forward(wide)


def test_bad_normalizer_is_named(tiny: soma.Model) -> None:
    with pytest.raises(ValueError, match="normalizer"):
        tiny.loss_and_grad(IDS, IDS, normalizer=-1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("d_model", 0),
        ("n_layers", 0),
        ("n_heads", 0),
        ("n_heads", 5),
        ("d_ff", 0),
        ("max_seq_len", 0),
        ("block", "resnet"),
        ("vocab_size", -3),
    ],
)
def test_bad_configurations_are_named(field: str, value: Any) -> None:
    good = {"vocab_size": 7, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 37, "max_seq_len": 33}
    with pytest.raises(ValueError, match=field):
        soma.Model(soma.ModelConfig(**{**good, field: value}))


def test_bad_precision_is_named() -> None:
    config = soma.ModelConfig(vocab_size=7, d_model=24, n_layers=1, n_heads=3, d_ff=37, max_seq_len=33)
    with pytest.raises(ValueError, match="float32"):
        soma.Model(config, precision="float16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", 0.0),
        ("eps", -1e-8),
        ("eps", 1e-60),  # 0 in single precision
        ("eps", float("nan")),
        ("eps", float("inf")),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.95)),
        ("betas", (0.9, 1 - 1e-12)),  # 1 in single precision
        ("lr", -1.0),
        ("lr", float("nan")),
        ("weight_decay", float("inf")),
        ("max_grad_norm", float("nan")),
    ],
)
def test_bad_options_of_the_optimizer_are_named(tiny: soma.Model, name: str, value: Any) -> None:
    """With eps = 0 a parameter that never had a gradient would become 0 / 0."""
    with pytest.raises(ValueError, match=name):
        soma.AdamW(tiny, **{name: value})
