"""The ranks of an MPI program through mpi4py. MPI moves the numbers, and the sums are made here, in the order of ranks.

The standard only recommends that MPI's own sums have one order, and that all ranks get the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 14  # bytes up to which every rank gets the buffers of all; above it, each rank sums a part


class MpiComm:
    """A `Comm` over a copy of a communicator of mpi4py, so that other messages of the program do not mix with its own.

    A large buffer travels twice, less one part in `size`, as in a ring: each rank gets its part of all buffers, sums
    it, and hands the sum to all.

    Args:
        communicator: an intra-communicator of mpi4py, such as `MPI.COMM_WORLD`.
    """

    def __init__(self, communicator: Any) -> None:
        self._mpi = communicator.Dup()
        self.rank: int = self._mpi.Get_rank()
        self.size: int = self._mpi.Get_size()

    def allreduce(self, buffer: NDArray[Any]) -> None:
        """As `Comm.allreduce`."""
        if buffer.nbytes <= _SMALL:
            parts = np.empty((self.size, buffer.size), buffer.dtype)
            self._mpi.Allgather(buffer, parts)
            buffer[:] = _sum(parts)
            return
        part = -(-buffer.size // self.size)
        whole = np.zeros(part * self.size, buffer.dtype)
        whole[: buffer.size] = buffer
        parts = np.empty((self.size, part), buffer.dtype)
        self._mpi.Alltoall(whole, parts)
        self._mpi.Allgather(_sum(parts), whole)
        buffer[:] = whole[: buffer.size]

    def broadcast(self, buffer: NDArray[Any]) -> None:
        """As `Comm.broadcast`."""
        self._mpi.Bcast(buffer)


def _sum(parts: NDArray[Any]) -> NDArray[Any]:
    """The sum of the rows, one after another."""
    total: NDArray[Any] = parts[0]
    for part in parts[1:]:
        total += part
    return total
