"""Copies and pickles of models, optimizers and generators: equal to the original, and independent of it."""

from __future__ import annotations

import copy
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.child import output_of

IDS, TARGETS = [[3, 1, 4, 1, 5]], [[1, 4, 1, 5, 9]]
TOK = soma.Tokenizer.train(["the cat sat on the mat"], kind="char")


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, pickled])


def arrays(model: soma.Model) -> dict[str, bytes]:
    return {
        f"{kind}.{name}": array.tobytes()
        for kind, found in (("weight", model.parameters()), ("gradient", model.gradients()))
        for name, array in found.items()
    }


@WAYS
def test_a_copied_model_is_equal_and_its_own(
    tiny_model: soma.Model, precision: str, make_copy: Callable[[Any], Any]
) -> None:
    model = soma.Model(tiny_model.config, seed=3, precision=precision)
    model._settings = {"config.json": {"a setting": 1}}  # of the folder that it was loaded from
    for with_gradients in (False, True):
        if with_gradients:
            model.loss_and_grad(IDS, TARGETS)
        made = make_copy(model)
        assert arrays(made) == arrays(model) and made.config == model.config
        assert made._settings == model._settings
        assert repr(made) == repr(model), "the precisions too"
        assert made.loss(IDS, TARGETS) == model.loss(IDS, TARGETS)
        before = arrays(model)
        soma.AdamW(made, lr=0.1).step()
        next(iter(made.parameters().values()))[...] = 0
        assert arrays(model) == before


@WAYS
def test_a_copied_optimizer_goes_on_as_the_first(make_tiny_model: Any, make_copy: Callable[[Any], Any]) -> None:
    model = make_tiny_model()
    optimizer = soma.AdamW(model, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, max_grad_norm=0.5)
    for _ in range(3):
        model.loss_and_grad(IDS, TARGETS)
        optimizer.step()
    model, optimizer = copy.deepcopy([model, optimizer])
    assert optimizer.model is model, "a copied optimizer works on the copied model"
    other = make_copy(optimizer)
    assert (other.model is model) == (make_copy is copy.copy)
    assert (other.lr, other.step_count) == (0.01, 3)
    if other.model is model:
        moments = [(o.first_moments(), o.second_moments()) for o in (optimizer, other)]
        for mine, theirs in zip(*moments, strict=True):
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
        assert not np.shares_memory(*(next(iter(o.first_moments().values())) for o in (optimizer, other)))
        return
    for each in (optimizer, other):
        each.model.loss_and_grad(IDS, TARGETS)
    assert optimizer.step() == other.step()
    assert arrays(other.model) == arrays(model)


@WAYS
@pytest.mark.parametrize("applied", [False, True])
def test_a_copied_average_goes_on_as_the_first(
    make_tiny_model: Any, make_copy: Callable[[Any], Any], applied: bool
) -> None:
    model = make_tiny_model()
    average = soma.WeightAverage(model, decay=0.7)
    for array in model.parameters().values():
        array += 1
    average.update()
    average.apply(applied)
    model, average = copy.deepcopy([model, average])
    assert average.model is model, "a copied average is of the copied model"
    before, kept = arrays(model), {name: array.tobytes() for name, array in average.values().items()}
    other = make_copy(average)
    assert (other.model is model) == (make_copy is copy.copy)
    assert repr(other) == repr(average), "decay and updates too"
    assert arrays(other.model) == arrays(model) == before
    assert {name: array.tobytes() for name, array in other.values().items()} == kept
    for array in other.values().values():
        array[...] = 0
    assert {name: array.tobytes() for name, array in average.values().items()} == kept
    if other.model is model:
        return
    other = make_copy(average)
    for each in (average, other):
        each.apply(False)
        each.update()
    assert arrays(other.model) == arrays(model) and (arrays(model) == before) == (not applied)
    for name, array in average.values().items():
        assert np.array_equal(array, other.values()[name])


@WAYS
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_copied_generator_says_the_same(make_tiny_model: Any, weights: str, make_copy: Callable[[Any], Any]) -> None:
    generator = soma.Generator(make_tiny_model(vocab_size=TOK.vocab_size), TOK, end_token="<UNK>", weights=weights)
    made = make_copy(generator)
    assert repr(made) == repr(generator)
    assert made.generate("the", 8, seed=1) == generator.generate("the", 8, seed=1)


@WAYS
def test_a_trainer_says_why_it_cannot_be_copied(make_tiny_model: Any, make_copy: Callable[[Any], Any]) -> None:
    trainer = soma.Trainer(make_tiny_model(vocab_size=TOK.vocab_size), TOK)
    with pytest.raises(TypeError, match=r"a Trainer cannot be copied or pickled.*copy trainer\.model"):
        make_copy(trainer)


def test_pickles_name_the_package_and_no_module_of_it(make_tiny_model: Any) -> None:
    model = make_tiny_model(vocab_size=TOK.vocab_size)
    pickles = pickle.dumps([model, soma.AdamW(model), soma.WeightAverage(model), soma.Generator(model, TOK)])
    named = [str(text) for _, text, _ in pickletools.genops(pickles) if str(text).startswith("soma_native")]
    assert set(named) == {"soma_native"}


def test_a_worker_process_gets_a_model(tmp_path: Path) -> None:
    code = """
import multiprocessing

if __name__ == "__main__":
    model = small_model(seed=5)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(soma.Model.loss, (model, *batch())) == model.loss(*batch()))
"""
    assert output_of(code, tmp_path) == "True"
