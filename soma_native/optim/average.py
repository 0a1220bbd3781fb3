"""Averages of a model's weights over the steps of a training: exponential ones, and means of the last steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from soma_native._checks import instance, integer, number
from soma_native.core import _core
from soma_native.model.arrays import as_given
from soma_native.model.model import Model, as_floats


class WeightAverage:
    """A running average of a model's parameters, which can take their place and give it back bit for bit.

    With a decay d below 1, update t (from 0) makes `average = d' average + (1 - d') weights`, where d' is the smaller
    of d and (1 + t) / (10 + t): an average of a few steps does not reach back to the beginning. A decay of 1 makes the
    mean of all updates. The first update copies the weights where d is 1, and begins with them else.

    Args:
        model: whose parameters are averaged.
        decay: from 0 to 1.

    Raises:
        TypeError, ValueError: the decay is no number, or out of range.

    >>> from soma_native import Model, ModelConfig
    >>> model = Model(ModelConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=4))
    >>> average = WeightAverage(model, decay=1)
    >>> average.update()
    >>> model.parameters()["wte"][...] += 1
    >>> average.update()
    >>> with average.applied():  # half way between the two
    ...     averaged = model.loss([1, 2], [2, 3])
    >>> averaged == model.loss([1, 2], [2, 3])
    False
    """

    def __init__(self, model: Model, decay: float = 0.995) -> None:
        instance("model", model, Model)
        self.model = model
        self.decay = number("decay", decay, least=0, most=1)
        self._updates = 0
        self._core = _core.WeightAverage(model._core)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its model, and copied likewise: a deep copy of both together is a pair again."""
        return _average_of, (self.model, self.decay, self.updates, self.values(), self._core.is_applied)

    def __repr__(self) -> str:
        return f"WeightAverage(decay={self.decay:g}, updates={self.updates}, model={self.model!r})"

    @property
    def updates(self) -> int:
        """Updates so far, on which the weight of the next one depends."""
        return self._updates

    @updates.setter
    def updates(self, value: int) -> None:
        self._updates = integer("updates", value, 0)

    def update(self) -> None:
        """Take the weights as they are now into the average.

        Raises:
            RuntimeError: the average is in their place.
        """
        t = self._updates
        kept = t / (1 + t) if self.decay == 1 else min(self.decay, (1 + t) / (10 + t))
        self._core.update(1 - kept)
        self._updates = t + 1

    def values(self) -> dict[str, npt.NDArray[np.float32]]:
        """The average by parameter name; while it is applied, the weights that it stands for.

        These are writable views on the CPU, and copies that cannot be written to on another device; there is `write`.
        """
        return as_given(self._core.values(), "average.write(name, array) sets an array")

    def write(self, name: str, array: npt.ArrayLike) -> None:
        """Set the array of this parameter in :meth:`values`, on any device.

        Raises:
            TypeError, ValueError: there is no such parameter, it has another shape, or `array` holds no real numbers.
        """
        self._core.write(name, as_floats(array, self.model._shape(name)))

    def apply(self, on: bool = True) -> None:
        """Put the average in the place of the model's parameters, or with False these back where they were."""
        self._core.apply(on)

    @contextmanager
    def applied(self) -> Iterator[Model]:
        """Within it, the model's parameters are the average."""
        before = self._core.is_applied
        try:
            self.apply()
            yield self.model
        finally:
            self.apply(before)


def _average_of(
    model: Model, decay: float, updates: int, values: dict[str, npt.NDArray[np.float32]], applied: bool
) -> WeightAverage:
    average = WeightAverage(model, decay)
    average.updates = updates
    average.apply(applied)  # both are the model's parameters until now
    for name, array in values.items():
        average.write(name, array)
    return average


_average_of.__module__ = "soma_native"  # the name in pickles, which stays if this module moves
