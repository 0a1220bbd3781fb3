"""One training run on several ranks: the same start for all, parts of batches, sums of gradients.

Every rank has the whole model. All take the same steps, or with `sync_every` steps of their own between outer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soma_native.errors import ArgumentError, OtherRunError
from soma_native.optim.average import WeightAverage
from soma_native.parallel.world import World
from soma_native.system import active_isa
from soma_native.training.buckets import measured_count, summed
from soma_native.training.differences import differences
from soma_native.training.layout import UNDECIDED, Layout
from soma_native.training.optimize import make_optimizer
from soma_native.training.outer import OuterStep
from soma_native.training.phase import fingerprint
from soma_native.training.state import TrainingState, check_arrays, read_arrays, read_state, state_arrays, write_array
from soma_native.version import __version__


def begin_together(world: World, layout: Layout) -> None:
    """Raise an ArgumentError on every rank unless all are about to do the same, and each has work.

    Ranks of other instruction sets round differently: a run would repeat its bits on those same machines alone.
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
        windows = f"{layout.batch} window{'s' * (layout.batch > 1)}"
        raise ArgumentError(
            "comm", f"has {world.size} ranks, and a micro-batch has {windows}: take fewer ranks, or a larger batch"
        )


class Ranks:
    """The ranks of a run at work: gradients of a step, what follows the optimizer's step, the state of all for a save.

    Args:
        world: the ranks.
        layout: the plan of the run, the same on all.

    Attributes:
        optimizer: of the parameters that this rank updates; of all of them with `sync_every`.
        agreed: whether all ranks have the same weights now. With `sync_every` they part between outer steps.
        whole: the state of the optimizers of all ranks, which `gather` makes on rank 0 for a save.
    """

    def __init__(self, world: World, layout: Layout) -> None:
        begin_together(world, layout)
        layout.require_memory(world)
        self._world, self._layout = world, layout
        self._every = layout.config.sync_every
        self._outer = None if self._every is None else OuterStep(world, layout.model)
        self._summing = world if self._outer is None else World()  # the ranks that sum their gradients in each step
        self._buckets = measured_count(self._summing, layout.model.num_parameters)
        self.optimizer, self._shards = make_optimizer(layout.model, layout.config, self._summing)
        self.whole: dict[str, NDArray[np.float32]] = {}
        self.agreed = True
        self._local = 0.0, 0  # loss times pairs, and pairs, since the ranks agreed

    def gradients(self, step: int) -> tuple[float, int]:
        """Make the gradients of a step. Returns its loss, and its pairs.

        Each rank takes its part of the windows of each micro-batch; of the last of an epoch it may have none. A part
        keeps the width of the micro-batch, so that its noise is that of the whole. Gradients, loss and pairs are those
        of the whole batch on all ranks, and with `sync_every` those of the part.
        """
        layout, rank, size = self._layout, self._world.rank, self._world.size
        config = layout.config
        batches = layout.sampler.batches(step)
        parts = [(len(ids) * rank // size, len(ids) * (rank + 1) // size) for ids, _ in batches]
        counted = parts if self._outer is not None else [(0, len(ids)) for ids, _ in batches]
        pairs = sum(
            int(np.count_nonzero(b[1][first:end] >= 0)) for b, (first, end) in zip(batches, counted, strict=True)
        )

        def loss_of(i: int) -> float:
            (ids, targets), (first, end) = batches[i], parts[i]
            return layout.model.loss_and_grad(
                ids[first:end], targets[first:end], pairs, dropout=config.dropout, token_mask=config.token_mask,
                noise=(layout.seed, step, i), first_window=first, teachers=layout.teachers, distill=config.distill,
            )  # fmt: skip

        own = [i for i, (first, end) in enumerate(parts) if first < end]
        loss = sum(loss_of(i) for i in own[:-1])
        with summed(self._summing, layout.model, self._buckets):
            loss += sum(loss_of(i) for i in own[-1:])
        return self._summing.sum(loss)[0], pairs

    def after_step(
        self, step: int, recorded: bool, loss: float, pairs: int, average: WeightAverage | None
    ) -> tuple[float, int]:
        """Give all ranks the weights after a step, or take an outer step where one is due, or a record.

        Until the clock has decided the number of steps, each is due: it decides at outer steps alone. Returns what the
        step adds to the loss times pairs, and to the pairs, of all ranks. Between outer steps it is nothing, and the
        next one adds the rest.
        """
        if self._outer is None or self._every is None:
            self._shards.share_parameters()
            return loss * pairs, pairs
        self._local = self._local[0] + loss * pairs, self._local[1] + pairs
        self.agreed = recorded or step % self._every == 0 or self._layout.total_steps == UNDECIDED
        if not self.agreed:
            return 0.0, 0
        self._outer.step()
        if average is not None and average.updates > 0:
            for name, array in self._mean_of(average.values()).items():
                average.write(name, array)
        total, count = self._world.sum(*self._local)
        self._local = 0.0, 0
        return total, int(count)

    def gather(self) -> None:
        """Make `whole` on rank 0, for a save. With `sync_every` it is the mean of the ranks' moments."""
        if self._outer is None:
            self.whole = self._shards.whole_state(self.optimizer)
            return
        moments = self._mean_of(self.optimizer.state())
        self.whole = moments | self._outer.state() if self._world.first else {}

    def _mean_of(self, arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        found = {name: np.array(array) for name, array in arrays.items()}
        for array in found.values():
            self._world.allreduce(array.reshape(-1))
            array /= np.float32(self._world.size)
        return found

    def read(self, folder: Path | None, average: WeightAverage | None) -> tuple[TrainingState, int]:
        """Load the arrays of the run in the folder of the first rank, on all ranks.

        Returns the rest of its state, and the steps of its optimizer.

        Raises:
            OtherRunError: the run differs from the one that `layout` is the plan of.
            FileNotFoundError, CheckpointError: as `read_state` and `check_arrays`.
            RankError: any of these happened on the first rank.
        """
        world, layout = self._world, self._layout
        outer = {} if self._outer is None else self._outer.state()
        shapes = {name: array.shape for name, array in state_arrays(layout.model, outer, average).items()}
        shapes |= self._shards.shapes

        def read() -> tuple[TrainingState, int] | None:
            if folder is None:
                return None
            state, steps = read_state(folder)
            if found := differences(layout, folder, state):
                raise OtherRunError(folder, found)
            best = {f"best.{name}": array.shape for name, array in layout.model.parameters().items() if state.best}
            check_arrays(folder, {**shapes, **best})
            return state, steps

        found = world.together(read)
        state, steps = world.share(None if found is None else (asdict(found[0]), found[1]))
        arrays = None if folder is None else read_arrays(folder, shapes)
        for name, shape in shapes.items():
            array = np.empty(shape, np.float32) if arrays is None else np.array(next(arrays))
            world.broadcast(array.reshape(-1))
            if name in outer:
                outer[name][...] = array
            else:
                write_array(layout.model, self.optimizer, average, name, array)
        if self._outer is not None:
            self._outer.begin()
        return TrainingState(**state), steps


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
