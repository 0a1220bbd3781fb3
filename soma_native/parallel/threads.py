"""Ranks that are threads of one process: for tests, and as an example of a `Comm`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

from soma_native.errors import RankError

T = TypeVar("T")


class _Meeting:
    """Where the ranks wait for each other, and lay down their buffers."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.buffers: list[Any] = [None] * size
        self.failed: list[int] = []


class ThreadComm:
    """A `Comm` between threads, which `run_ranks` makes. A rank that fails makes the calls of the others fail."""

    any_thread = True

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self._meeting = meeting
        self.rank, self.size = rank, meeting.barrier.parties

    def allreduce(self, buffer: NDArray[Any]) -> None:
        """As `Comm.allreduce`."""
        buffers = self._meeting.buffers
        buffers[self.rank] = buffer
        self._wait()
        total = buffers[0].copy()
        for other in buffers[1:]:
            total += other
        self._wait()
        buffer[:] = total

    def broadcast(self, buffer: NDArray[Any]) -> None:
        """As `Comm.broadcast`."""
        if self.rank == 0:
            self._meeting.buffers[0] = buffer
        self._wait()
        if self.rank != 0:
            buffer[:] = self._meeting.buffers[0]
        self._wait()

    def _wait(self) -> None:
        try:
            self._meeting.barrier.wait()
        except threading.BrokenBarrierError:
            raise RankError(self._meeting.failed[0], "ended before the others") from None


def run_ranks(size: int, work: Callable[[ThreadComm], T]) -> list[T]:
    """Call `work` once a rank, each in a thread of its own, rank 0 in the caller's. Returns the results by rank.

    Raises:
        Exception: that of the first rank that failed; the others are ended first.
    """
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    errors: list[tuple[int, BaseException]] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadComm(meeting, rank))
        except BaseException as error:
            errors.append((rank, error))
            meeting.failed.append(rank)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(1, size)]
    for thread in threads:
        thread.start()
    run(0)
    for thread in threads:
        thread.join()
    for _, error in sorted(errors, key=lambda each: (isinstance(each[1], RankError), each[0])):
        raise error
    return results
