"""Averages of weights: what they are, and that they change places with the weights without losing a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import relative_error


def bits(arrays: dict[str, Any]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def walk(model: soma.Model, average: soma.WeightAverage, steps: int) -> list[dict[str, Any]]:
    """Weights of so many updates, each with other ones."""
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(steps):
        for array in model.parameters().values():
            array[...] = rng.standard_normal(array.shape)
        average.update()
        seen.append({name: array.astype(np.float64) for name, array in model.parameters().items()})
    return seen


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.995])
def test_an_exponential_average(tiny_model: soma.Model, decay: float) -> None:
    want = {name: array.astype(np.float64) for name, array in tiny_model.parameters().items()}
    average = soma.WeightAverage(tiny_model, decay)
    for t, seen in enumerate(walk(tiny_model, average, 30)):
        kept = min(decay, (1 + t) / (10 + t))
        want = {name: kept * want[name] + (1 - kept) * seen[name] for name in want}
    for name, array in average.values().items():
        assert relative_error(array, want[name]) < 1e-6, name


def test_a_mean_of_all_updates(tiny_model: soma.Model) -> None:
    average = soma.WeightAverage(tiny_model, decay=1)
    seen = walk(tiny_model, average, 20)
    for name, array in average.values().items():
        assert relative_error(array, np.mean([step[name] for step in seen], axis=0)) < 1e-6, name


def test_it_takes_the_place_of_the_weights_and_gives_it_back(tiny_model: soma.Model) -> None:
    average = soma.WeightAverage(tiny_model)
    walk(tiny_model, average, 3)
    view = tiny_model.parameters()
    trained, averaged = bits(view), bits(average.values())
    with average.applied() as model:
        assert model is tiny_model
        assert bits(view) == bits(tiny_model.parameters()) == averaged, "views that were taken before see it too"
        assert bits(average.values()) == trained
        with average.applied():
            assert bits(view) == averaged
        assert bits(view) == averaged
        with pytest.raises(RuntimeError, match="cannot be updated"):
            average.update()
    assert bits(view) == trained and bits(average.values()) == averaged
    with pytest.raises(ZeroDivisionError), average.applied():
        1 / 0  # noqa: B018
    assert bits(view) == trained
    average.apply()
    average.apply()
    assert bits(view) == averaged
    average.apply(False)
    assert bits(view) == trained


@pytest.mark.parametrize("decay", [-0.1, 1.1, "x", float("nan")])
def test_a_decay_out_of_range_is_refused(tiny_model: soma.Model, decay: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="decay must be"):
        soma.WeightAverage(tiny_model, decay)
