"""The ranks of an MPI program through mpi4py. MPI moves the numbers, and the sums are made here, in the order of ranks.

The standard only recommends that MPI's own sums have one order, and that all ranks get the same bits.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native.parallel.watch import ABSENCE, SILENCE, Watch
from soma_native.system import get_num_threads, set_num_threads

logger = logging.getLogger("soma_native")
_shared = threading.Event()  # the processors of this machine, among its ranks
_SMALL = 1 << 14  # bytes up to which every rank gets the buffers of all; above it, each rank sums a part


class MpiComm:
    """A `Comm` over a copy of a communicator of mpi4py, so that other messages of the program do not mix with its own.

    A large buffer travels twice, less one part in `size`, as in a ring: each rank gets its part of all buffers, sums
    it, and hands the sum to all. A rank that waits sleeps, for another may need its processor.

    Args:
        communicator: an intra-communicator of mpi4py, such as `MPI.COMM_WORLD`.
        silence: seconds without a sign of a process, after which `watched` ends all.
        absence: seconds that ranks wait for one whose process lives, likewise.
    """

    def __init__(self, communicator: Any, silence: float = SILENCE, absence: float = ABSENCE) -> None:
        from mpi4py import MPI

        self._mpi, self._in_place = communicator.Dup(), MPI.IN_PLACE
        self.rank: int = self._mpi.Get_rank()
        self.size: int = self._mpi.Get_size()
        self.any_thread: bool = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        self._watch: Watch | None = None
        if self.size > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._watch = Watch(communicator.Dup(), silence, absence)
        elif self.size > 1 and self.rank == 0:
            logger.warning(
                "this MPI allows no calls of several threads at once, so nothing ends the others of a rank that is gone"
            )
        self._share_processors()

    @classmethod
    def of(cls, communicator: Any) -> MpiComm:
        """The one `MpiComm` of a communicator: MPI has a limited number of copies."""
        key = communicator.py2f()
        if key not in _made:
            _made[key] = cls(communicator)
        return _made[key]

    def watched(self, say: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
        """A block, which all ranks enter and leave, in which a rank that dies, hangs or fails ends all.

        Without it, and where MPI allows no calls of several threads at once, the others wait for ever.

        Args:
            say: gets the line that names the rank; None logs it.
        """
        if self._watch is None:
            return nullcontext()
        if say is not None:
            self._watch._say = say
        return self._watch

    def allreduce(self, buffer: NDArray[Any]) -> None:
        """As `Comm.allreduce`."""
        if buffer.nbytes <= _SMALL:
            parts = np.empty((self.size, buffer.size), buffer.dtype)
            self._wait(self._mpi.Iallgather(buffer, parts))
            buffer[:] = _sum(parts)
            return
        part = -(-buffer.size // self.size)
        bounds = [min(rank * part, buffer.size) for rank in range(self.size + 1)]
        counts = [end - first for first, end in itertools.pairwise(bounds)]
        own = slice(bounds[self.rank], bounds[self.rank + 1])
        parts = np.empty((self.size, counts[self.rank]), buffer.dtype)
        self._wait(self._mpi.Ibarrier())
        self._mpi.Alltoallv((buffer, (counts, bounds[:-1])), (parts, counts[self.rank]))
        buffer[own] = _sum(parts)
        self._hand_out(buffer, bounds)

    def broadcast(self, buffer: NDArray[Any]) -> None:
        """As `Comm.broadcast`."""
        self._wait(self._mpi.Ibarrier())
        self._mpi.Bcast(buffer)

    def gather(self, buffer: NDArray[Any], bounds: Sequence[int]) -> None:
        """As `World.gather`."""
        self._wait(self._mpi.Ibarrier())
        self._hand_out(buffer, bounds)

    def _hand_out(self, buffer: NDArray[Any], bounds: Sequence[int]) -> None:
        counts = [end - first for first, end in itertools.pairwise(bounds)]
        self._mpi.Allgatherv(self._in_place, (buffer, (counts, list(bounds[:-1]))))

    def _wait(self, request: Any) -> None:
        """Wait for all ranks: at first without a pause, then with pauses of an eighth of the time, or 5 ms.

        The backward pass of this rank may need its processor, so the wait without a pause is short.
        """
        if self._watch is not None:
            self._watch.calls += 1
        began = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - began
            if waited > 1e-4:
                time.sleep(min(waited / 8, 5e-3))

    def _share_processors(self) -> None:
        """Set the threads of each rank, so that those of one machine together have no more than it has processors.

        A processor, and what a cgroup allows, is shared by the ranks that may use it. `SOMA_NUM_THREADS` is obeyed. A
        process shares once: later its number of threads is a share, or was set by the program.
        """
        from mpi4py import MPI

        if os.environ.get("SOMA_NUM_THREADS") or _shared.is_set():
            return
        _shared.set()
        here = self._mpi.Split_type(MPI.COMM_TYPE_SHARED)
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        found: list[tuple[set[int], int]] = here.allgather((own, get_num_threads()))
        here.Free()
        set_num_threads(threads_of(own, found))


_made: dict[int, MpiComm] = {}


def threads_of(own: set[int], ranks: list[tuple[set[int], int]]) -> int:
    """The threads of a rank on the processors `own`; `ranks` has those of all on its machine, and their threads alone.

    Processors are shared equally by the ranks on them. Where a rank has fewer threads than processors, a quota limits
    all together.
    """
    alone = next(threads for processors, threads in ranks if processors == own)
    share = sum(1 / sum(cpu in processors for processors, _ in ranks) for cpu in own)
    quotas = [threads for processors, threads in ranks if threads < len(processors)]
    if quotas:
        share = min(share, max(quotas) / len(ranks))
    return max(1, min(alone, int(share + 1e-9)))


def _sum(parts: NDArray[Any]) -> NDArray[Any]:
    """The sum of the rows, one after another."""
    total: NDArray[Any] = parts[0]
    for part in parts[1:]:
        total += part
    return total
