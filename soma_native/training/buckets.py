"""The sum of gradients over ranks, in buckets, which begins while the backward pass still makes the rest of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from soma_native.core import _core
from soma_native.model.model import Model
from soma_native.parallel.world import World

LEAST, MOST = 1 << 20, 16  # floats of a bucket; buckets
_SHARE = 1 / 128  # of a bucket: a smaller sum takes another way through MpiComm, with another delay


def measured_count(world: World, size: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """The number of buckets for so many floats, the same on all ranks, from sums that rank 0 measures.

    With n buckets, a sum takes n times the delay of the link, and a part in n of it waits for the end of the pass. Both
    are equal where n is the root of (time of all floats / delay).
    """
    if world.alone or len(buckets(size)) == 1:
        return 1
    seconds = []
    for floats in (1, round(_SHARE * LEAST), LEAST):  # the first waits for the last rank
        buffer, began = np.zeros(floats, np.float32), clock()
        world.allreduce(buffer)
        seconds.append(max(clock() - began, 1e-6))
    _, small, bucket = seconds
    delay = max(1e-6, (small - _SHARE * bucket) / (1 - _SHARE))
    count = round(math.sqrt(max(0.0, bucket - delay) * size / LEAST / delay))
    return int(world.share(max(1, min(MOST, count))))


@contextmanager
def summed(world: World, model: Model, count: int = MOST) -> Iterator[None]:
    """A block with the last backward pass of a step, after which gradients are the sums of all ranks.

    The gradients of the last layers are final first. A thread sums what is final, if the `Comm` allows that and the
    gradients lie in the memory of the host in more than one bucket. The calls of the `Comm` are the same otherwise. If
    the pass fails, the thread ends after the bucket that it has begun.

    Args:
        world: the ranks.
        model: whose gradients are summed.
        count: of buckets at most, the same on all ranks.
    """
    core = model._core
    if world.alone:
        yield
    elif not (world.any_thread and core.on_host and len(buckets(core.flat(gradient=True).size, count)) > 1):
        yield
        gradients = core.flat(gradient=True) if core.on_host else np.array(core.flat(gradient=True))
        _sum(world, gradients, count)
        if not core.on_host:
            core.write_flat(gradients, gradient=True)
    else:
        progress = _core.Progress()
        with ThreadPoolExecutor(1, "sum of gradients") as pool:
            try:
                core.report_to(progress)
                done = pool.submit(_sum, world, core.flat(gradient=True), count, progress)
                yield
                progress.reach(0)  # also of a rank that had no part of the windows
            finally:
                progress.end()
                core.report_to(None)
        done.result()


def buckets(size: int, count: int = MOST) -> list[slice]:
    """The parts of so many floats that are summed at once, the last first."""
    floats = max(LEAST, -(-size // count))
    return [slice(max(0, end - floats), end) for end in range(size, 0, -floats)]


def _sum(world: World, gradients: NDArray[np.float32], count: int, progress: _core.Progress | None = None) -> None:
    for bucket in buckets(gradients.size, count):
        if progress is not None and not progress.wait(bucket.start):
            return
        world.allreduce(gradients[bucket])
