"""Local steps on each rank, and now and then an outer step for all: DiLoCo, for ranks with slow links.

Douillard et al. 2023 (arXiv 2311.08105): the outer gradient is how far the weights went since the last outer step, in
the mean of the ranks. Nesterov's momentum follows it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from soma_native.core import _core
from soma_native.model.model import Model
from soma_native.parallel.world import World

RATE, MOMENTUM = 0.7, 0.9  # of the paper
KIND = "outer_momentum"


class OuterStep:
    """`g = mean of start - weights over ranks`, `m = momentum m + g`, `weights = start - rate (g + momentum m)`.

    `start` are the weights after the last outer step, which all ranks have.

    Args:
        world: the ranks.
        model: its weights now are the first `start`, the same on all ranks.
        rate, momentum: of the outer step.
    """

    def __init__(self, world: World, model: Model, rate: float = RATE, momentum: float = MOMENTUM) -> None:
        self._world, self._model, self._rate, self._momentum = world, model, rate, momentum
        self.begin()
        self._m = np.zeros_like(self._start)

    def begin(self) -> None:
        """Take the weights of the model as `start`."""
        self._start = np.array(self._model._core.flat())

    def step(self) -> None:
        """Replace the weights of all ranks."""
        gradient = self._start - self._model._core.flat()
        self._world.allreduce(gradient)
        gradient *= np.float32(1 / self._world.size)
        self._m *= np.float32(self._momentum)
        self._m += gradient
        gradient += np.float32(self._momentum) * self._m
        gradient *= np.float32(self._rate)
        self._start -= gradient
        self._model._core.write_flat(self._start)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """The arrays that a run needs to go on, as views."""
        config = self._model.config.core
        shapes, found = _core.parameter_shapes(config), {}
        for name, first in _core.parameter_offsets(config).items():
            found[f"{KIND}.{name}"] = self._m[first : first + math.prod(shapes[name])].reshape(shapes[name])
        return found
