"""The optimizer on several ranks: each updates a part of the parameters, and has the moments of this part alone.

Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054), stage 1. AdamW's matrices are cut between rows. Vectors are whole,
and so are matrices of Muon, whose update is one product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soma_native.core import _core
from soma_native.model.model import Model
from soma_native.optim.optimizer import Optimizer
from soma_native.parallel.world import World

_ROWS = 16  # a part of a matrix begins at a multiple of these rows, and so at a cache line


class Part(NamedTuple):
    """Rows of a parameter, from `first` to before `end`, which a rank updates. A vector has a row for each element."""

    parameter: str
    first: int
    end: int
    rank: int


def share_out(state: Mapping[str, NDArray[Any]], size: int) -> list[Part]:
    """Cut the parameters, given the optimizer's state of all, so that each rank has about as much state.

    What is whole goes, the largest first, to the rank with the least so far. What may be cut fills all ranks up to one
    level. Returns the parts in the order of ranks.
    """
    floats: dict[str, int] = {}
    rows: dict[str, int] = {}
    for name, array in state.items():
        parameter = name.partition(".")[2]
        floats[parameter] = floats.get(parameter, 0) + array.size
        rows[parameter] = len(array)
    cut = [name for name in floats if f"first_moment.{name}" in state and state[f"first_moment.{name}"].ndim == 2]
    loads, parts = [0] * size, []
    for name in sorted(floats.keys() - set(cut), key=lambda name: (-floats[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += floats[name]
        parts.append(Part(name, 0, rows[name], rank))
    level = _level(loads, sum(floats[name] for name in cut))
    ends = list(itertools.accumulate(max(0.0, level - load) for load in loads))
    first = 0  # of this matrix, in the state of all that are cut
    for name in cut:
        row = floats[name] / rows[name]
        cuts = [min(rows[name], max(0, _ROWS * round((end - first) / row / _ROWS))) for end in ends[:-1]]
        for rank, (begin, end) in enumerate(itertools.pairwise([0, *cuts, rows[name]])):
            if begin < end:
                parts.append(Part(name, begin, end, rank))
        first += floats[name]
    return sorted(parts, key=lambda part: part.rank)


def _level(loads: list[int], floats: int) -> float:
    """The load that the least loaded ranks reach together with so many floats more."""
    low = sorted(loads)
    while (level := (sum(low) + floats) / len(low)) < low[-1]:
        low.pop()
    return level


class Shards:
    """Which rank has what.

    Args:
        world: the ranks.
        model: whose parameters are shared out.
        state: of an optimizer of all of them.

    Attributes:
        shapes: of the arrays of that state.
        parts: of the parameters, in the order of ranks.
    """

    def __init__(self, world: World, model: Model, state: Mapping[str, NDArray[Any]]) -> None:
        self._world, self._model = world, model
        self.shapes = {name: array.shape for name, array in state.items()}
        self.parts = share_out(state, world.size)
        offsets, shapes = _core.parameter_offsets(model.config.core), _core.parameter_shapes(model.config.core)
        self._own: list[tuple[slice, slice]] = []  # places in the memory of all parameters, and in what is sent
        self._others: list[tuple[slice, slice]] = []
        self._bounds, end = [0] * (world.size + 1), 0  # of the ranks' parts in what is sent
        for name, first, last, rank in self.parts:
            row = math.prod(shapes[name][1:])
            begin, end = end, end + (last - first) * row
            places = slice(offsets[name] + first * row, offsets[name] + last * row), slice(begin, end)
            (self._own if rank == world.rank else self._others).append(places)
            self._bounds[rank + 1 :] = [end] * (world.size - rank)
        self._sent = np.empty(0 if world.alone else end, np.float32)  # kept: new memory costs more than the sending

    def owned(self) -> dict[str, tuple[int, int]]:
        """The rows of parameters that this rank updates, as `Optimizer.part` takes them."""
        return {part.parameter: (part.first, part.end) for part in self.parts if part.rank == self._world.rank}

    def share_parameters(self) -> None:
        """Give the parameters that each rank has updated to all."""
        if self._world.alone:
            return
        core = self._model._core
        values = core.flat() if core.on_host else np.array(core.flat())
        for at, place in self._own:
            self._sent[place] = values[at]
        self._world.gather(self._sent, self._bounds)
        for at, place in self._others:
            values[at] = self._sent[place]
        if not core.on_host:
            core.write_flat(values)

    def whole_state(self, optimizer: Optimizer) -> dict[str, NDArray[np.float32]]:
        """The state of all ranks on rank 0; others get nothing."""
        own = optimizer.state()
        if self._world.alone:
            return own
        found = {}
        for name, shape in self.shapes.items():
            array = np.empty(shape, np.float32)
            bounds = [0] * (self._world.size + 1)
            for part in self.parts:
                if part.parameter == name.partition(".")[2]:
                    bounds[part.rank + 1] = part.end * math.prod(shape[1:])
                    if part.rank == self._world.rank:
                        array[part.first : part.end] = own[name]
            self._world.gather(array.reshape(-1), list(itertools.accumulate(bounds, max)))
            if self._world.first:
                found[name] = array
        return found
