"""One training run on several ranks: the same start for all, parts of batches, sums of gradients.

Every rank has the whole model, and takes the same steps with the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soma_native.errors import ArgumentError, OtherRunError
from soma_native.model.model import Model
from soma_native.optim.average import WeightAverage
from soma_native.optim.optimizer import Optimizer
from soma_native.parallel.world import World
from soma_native.system import active_isa
from soma_native.training.differences import differences
from soma_native.training.layout import Layout
from soma_native.training.phase import fingerprint
from soma_native.training.shards import Shards
from soma_native.training.state import TrainingState, check_arrays, read_arrays, read_state, state_arrays, write_array
from soma_native.version import __version__


def begin_together(world: World, layout: Layout) -> None:
    """Raise an ArgumentError on every rank unless all are about to do the same, and each has work.

    Ranks of other instruction sets round differently, and their weights would drift apart.
    """
    if world.alone:
        return
    settings = layout.config.to_dict()
    world.require_equal(
        {
            "version": __version__, "instruction set (SOMA_ISA)": active_isa(), **settings, **layout.identity,
            "weights of the model": fingerprint(layout.model),
        }
    )  # fmt: skip
    if layout.config.teachers:
        raise ArgumentError("teachers", f"must be 0 on several ranks, got {layout.config.teachers}")
    if layout.batch < world.size:
        raise ArgumentError(
            "comm", f"has {world.size} ranks, and a micro-batch has {layout.batch} windows: each rank needs one or more"
        )


def gradients_of_step(world: World, layout: Layout, step: int) -> tuple[float, int]:
    """Make the gradients of a step, on all ranks those of the whole batch. Returns its loss, and its pairs.

    Each rank takes its part of the windows of each micro-batch; of the last of an epoch it may have none. A part keeps
    the width of the micro-batch, so that its noise is that of the whole.
    """
    config, model = layout.config, layout.model
    micro_batches = layout.sampler.batches(step)
    pairs = sum(int(np.count_nonzero(targets >= 0)) for _, targets in micro_batches)
    loss = 0.0
    for i, (ids, targets) in enumerate(micro_batches):
        first, end = (len(ids) * rank // world.size for rank in (world.rank, world.rank + 1))
        if first < end:
            loss += model.loss_and_grad(
                ids[first:end], targets[first:end], pairs, dropout=config.dropout, token_mask=config.token_mask,
                noise=(layout.seed, step, i), first_window=first, teachers=layout.teachers, distill=config.distill,
            )  # fmt: skip
    _sum_gradients(world, model)
    return world.sum(loss)[0], pairs


def _sum_gradients(world: World, model: Model) -> None:
    """Replace the gradients of each rank by their sum, which has the same bits on all."""
    if world.alone:
        return
    gradients = model.gradients()
    whole = np.concatenate([array.ravel() for array in gradients.values()])
    world.allreduce(whole)
    end = 0
    for name, array in gradients.items():
        first, end = end, end + array.size
        model._core.write(name, whole[first:end].reshape(array.shape), True)


def share_arrays(
    world: World, arrays: Mapping[str, NDArray[np.float32]], write: Callable[[str, NDArray[np.float32]], None]
) -> None:
    """Give the arrays of rank 0 to all: `write` sets one of them by its name."""
    if world.alone:
        return
    for name, array in arrays.items():
        buffer = np.array(array)
        world.broadcast(buffer.reshape(-1))
        if not world.first:
            write(name, buffer)


def read_run(
    world: World,
    layout: Layout,
    folder: Path | None,
    optimizer: Optimizer,
    average: WeightAverage | None,
    shards: Shards,
) -> tuple[TrainingState, int]:
    """Load the arrays of the run in the folder of the first rank, on all ranks.

    Returns the rest of its state, and the steps of its optimizer.

    Raises:
        OtherRunError: the run differs from the one that `layout` is the plan of.
        FileNotFoundError, CheckpointError: as `read_state` and `check_arrays`.
        RankError: any of these happened on the first rank.
    """
    model = layout.model
    shapes = {name: array.shape for name, array in state_arrays(model, {}, average).items()}
    shapes |= {name: shape for name, (shape, _) in shards.state.items()}

    def read() -> tuple[TrainingState, int] | None:
        if folder is None:
            return None
        state, steps = read_state(folder)
        if found := differences(layout, folder, state):
            raise OtherRunError(folder, found)
        check_arrays(folder, shapes)
        return state, steps

    found = world.together(read)
    state, steps = world.share(None if found is None else (asdict(found[0]), found[1]))
    arrays = None if folder is None else read_arrays(folder, shapes)
    for name, shape in shapes.items():
        array = np.empty(shape, np.float32) if arrays is None else np.array(next(arrays))
        world.broadcast(array.reshape(-1))
        write_array(model, optimizer, average, name, array)
    return TrainingState(**state), steps
