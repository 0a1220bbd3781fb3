"""The optimizer on several ranks: each updates some parameters, and has the moments of these alone.

Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054), stage 1, with whole parameters as the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soma_native.model.model import Model
from soma_native.optim.optimizer import Optimizer
from soma_native.parallel.world import World


class Shards(NamedTuple):
    """Which rank has what.

    Attributes:
        state: the shape and the rank of each array of the optimizer's state, as in `Optimizer.state`.
        parameters: the rank of each parameter, sorted by rank.
    """

    state: dict[str, tuple[tuple[int, ...], int]]
    parameters: dict[str, int]


def share_out(state: Mapping[str, NDArray[Any]], size: int) -> Shards:
    """Give each parameter, the largest first, to the rank with the least state so far."""
    floats: dict[str, int] = {}
    for name, array in state.items():
        parameter = name.partition(".")[2]
        floats[parameter] = floats.get(parameter, 0) + array.size
    loads, owner = [0] * size, {}
    for name in sorted(floats, key=lambda name: -floats[name]):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += floats[name]
    return Shards(
        {name: (array.shape, owner[name.partition(".")[2]]) for name, array in state.items()},
        dict(sorted(owner.items(), key=lambda each: each[1])),
    )


def share_parameters(world: World, model: Model, shards: Shards) -> None:
    """Give the parameters that each rank has updated to all."""
    if world.alone:
        return
    arrays = model.parameters()
    flat = np.concatenate([arrays[name].ravel() for name in shards.parameters])
    ends = np.cumsum([arrays[name].size for name in shards.parameters])
    owners = np.array(list(shards.parameters.values()))
    world.gather(flat, [0, *(int(max(ends[owners <= rank], default=0)) for rank in range(world.size))])
    for (name, rank), end in zip(shards.parameters.items(), ends, strict=True):
        if rank != world.rank:
            model.write(name, flat[end - arrays[name].size : end].reshape(arrays[name].shape))


def whole_state(world: World, optimizer: Optimizer, shards: Shards) -> dict[str, NDArray[np.float32]]:
    """The state of all ranks on rank 0; others get nothing."""
    own = optimizer.state()
    if world.alone:
        return own
    found = {}
    for name, (shape, owner) in shards.state.items():
        array = np.array(own[name]) if owner == world.rank else np.empty(shape, np.float32)
        world.gather(array.reshape(-1), [0] * (owner + 1) + [array.size] * (world.size - owner))
        if world.first:
            found[name] = array
    return found
