"""A `Comm` with the delay and the rate of a slow link, to measure what a way of training would cost over one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from numpy.typing import NDArray

from soma_native.parallel.comm import Comm
from soma_native.parallel.world import World


class SlowComm:
    """Makes each call last as long as it would over links of this delay and rate; the calls themselves are `comm`'s.

    A sum is counted as a ring: 2 (size - 1) messages one after another, each a part in `size` of the buffer; a gather
    is half of it. A broadcast is one message. All links work at one time, in both directions.

    Args:
        comm: what connects the ranks.
        delay: seconds from one rank to another.
        rate: bytes a second of each link.
        sleep: waits for so many seconds.

    Attributes:
        seconds: that this rank has waited so far.
        bytes: that this rank has sent so far.
    """

    def __init__(self, comm: Comm, delay: float, rate: float, sleep: Callable[[float], object] = time.sleep) -> None:
        self._comm, self._delay, self._rate, self._sleep = comm, delay, rate, sleep
        self.rank, self.size, self.any_thread = comm.rank, comm.size, World(comm).any_thread
        self.seconds, self.bytes = 0.0, 0.0

    def allreduce(self, buffer: NDArray[Any]) -> None:
        """As `Comm.allreduce`."""
        self._comm.allreduce(buffer)
        self._wait(2 * (self.size - 1), buffer.nbytes / self.size)

    def broadcast(self, buffer: NDArray[Any]) -> None:
        """As `Comm.broadcast`."""
        self._comm.broadcast(buffer)
        self._wait(1, buffer.nbytes)

    def gather(self, buffer: NDArray[Any], bounds: Sequence[int]) -> None:
        """As `World.gather`."""
        World(self._comm).gather(buffer, bounds)
        self._wait(self.size - 1, buffer.nbytes / self.size)

    def watched(self, say: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
        """As `World.watched`."""
        return World(self._comm).watched(say)

    def _wait(self, messages: int, size: float) -> None:
        seconds = messages * (self._delay + size / self._rate)
        self.seconds += seconds
        self.bytes += messages * size
        self._sleep(seconds)
