"""What connects the processes of one run: a small protocol that MPI, threads or anything else can fill."""

from __future__ import annotations

from typing import Any, Protocol, cast

from numpy.typing import NDArray

from soma_native.errors import ArgumentTypeError

_NAMES = ("rank", "size", "allreduce", "broadcast")


class Comm(Protocol):
    """The ranks of one run. Every rank makes the same calls, in the same order, with buffers of the same size.

    A buffer is a C-contiguous array of NumPy with one dimension, and the result takes its place. A call that cannot
    be completed raises on every rank that can still be reached.

    It may also have `gather(buffer, bounds)`, as `World.gather`, which sends less than a sum, and `watched(say)`, a
    block in which a rank that is gone ends all, as `World.watched`. An attribute `any_thread` that is true says that
    calls, one at a time, may come from any thread. Gradients are then summed while later ones are still computed.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def allreduce(self, buffer: NDArray[Any]) -> None:
        """Replace the buffer (float32 or float64) by the sum of the buffers of all ranks.

        Every rank gets the same bits. For one `size`, each element is summed in the same order, wherever it stands in
        the buffer and however long that is.
        """

    def broadcast(self, buffer: NDArray[Any]) -> None:
        """Replace the buffer (float32, float64 or uint8) by that of rank 0."""


def as_comm(value: Any) -> Comm:
    """`value` as a `Comm`; a communicator of mpi4py gets an adapter, and its ranks share the processors.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if type(value).__module__.split(".")[0] == "mpi4py" and hasattr(value, "Allgather"):
        from soma_native.parallel.mpi import MpiComm

        return MpiComm.of(value)
    missing = [name for name in _NAMES if not hasattr(value, name)]
    if missing:
        problem = f"must be mpi4py's MPI.COMM_WORLD, or have {', '.join(_NAMES)}; {value!r:.80} has no {missing[0]}"
        raise ArgumentTypeError("comm", problem)
    return cast(Comm, value)
