"""What a rank of a run asks of the others: sums, the word of rank 0, whether all agree."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from soma_native.errors import ArgumentError, RankError
from soma_native.parallel.comm import Comm

T = TypeVar("T")
_MESSAGE = 1024  # bytes of a shared value that travel at once, after eight of its length


class World:
    """The ranks of a run.

    Args:
        comm: connects them; None, or one of a single rank, is this process alone, which then waits for nobody.

    Attributes:
        rank, size: as those of `Comm`.
        alone: whether there is one rank.
        first: whether this is rank 0, which alone displays and writes.
        any_thread: as `Comm` may have it.
    """

    def __init__(self, comm: Comm | None = None) -> None:
        self._comm = comm
        self.rank, self.size = (0, 1) if comm is None else (comm.rank, comm.size)
        self.alone, self.first = self.size == 1, self.rank == 0
        self.any_thread: bool = getattr(comm, "any_thread", False)

    def watched(self, say: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
        """A block of all ranks in which one that dies, hangs or fails ends all, where `comm` can see to that.

        Args:
            say: gets the line that names the rank; None logs it.
        """
        watched = None if self.alone else getattr(self._comm, "watched", None)
        return nullcontext() if watched is None else cast(AbstractContextManager[None], watched(say))

    def allreduce(self, buffer: NDArray[Any]) -> None:
        """As `Comm.allreduce`."""
        if self._comm is not None and not self.alone:
            self._comm.allreduce(buffer)

    def broadcast(self, buffer: NDArray[Any]) -> None:
        """As `Comm.broadcast`."""
        if self._comm is not None and not self.alone:
            self._comm.broadcast(buffer)

    def gather(self, buffer: NDArray[Any], bounds: Sequence[int]) -> None:
        """Give all ranks the parts of each: rank r has `buffer[bounds[r]:bounds[r + 1]]`.

        Through the method `gather` of the `Comm`, if it has one; else as a sum.
        """
        if self._comm is None or self.alone:
            return
        if (gather := getattr(self._comm, "gather", None)) is not None:
            gather(buffer, bounds)
            return
        buffer[: bounds[self.rank]] = buffer[bounds[self.rank + 1] :] = -0.0  # x + -0 is x, also where x is -0
        self._comm.allreduce(buffer)

    def sum(self, *values: float) -> list[float]:
        """The sums of these numbers over the ranks."""
        buffer = np.array(values, np.float64)
        self.allreduce(buffer)
        return [float(value) for value in buffer]

    def share(self, value: Any) -> Any:
        """The value of rank 0, as JSON holds it; other ranks give anything."""
        if self.alone:
            return value
        data = json.dumps(value).encode() if self.first else b""
        buffer = np.zeros(8 + _MESSAGE, np.uint8)
        buffer[:8] = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
        buffer[8 : 8 + len(data)] = np.frombuffer(data[:_MESSAGE], np.uint8)
        self.broadcast(buffer)
        length = int.from_bytes(buffer[:8].tobytes(), "little")
        if length > _MESSAGE:
            rest = np.zeros(length - _MESSAGE, np.uint8)
            if self.first:
                rest[:] = np.frombuffer(data[_MESSAGE:], np.uint8)
            self.broadcast(rest)
            buffer = np.concatenate([buffer, rest])
        return json.loads(buffer[8 : 8 + length].tobytes())

    def texts(self, text: str) -> list[str]:
        """The texts of all ranks."""
        data = np.frombuffer(text.encode(errors="backslashreplace"), np.uint8)
        ends = np.zeros(self.size)
        ends[self.rank :] = len(data)
        self.allreduce(ends)
        bounds = [0, *(int(end) for end in ends)]
        whole = np.zeros(bounds[-1])
        whole[bounds[self.rank] : bounds[self.rank + 1]] = data
        self.allreduce(whole)
        joined = whole.astype(np.uint8).tobytes()
        return [joined[first:end].decode() for first, end in itertools.pairwise(bounds)]

    def by_machine(self, value: Any, device: str = "cpu") -> list[list[Any]]:
        """The values of all ranks, as JSON holds them, a list for each machine. The name and the last start tell it.

        On another device than the processor each rank counts as a machine.
        """
        found: dict[str, list[Any]] = {}
        for text in self.texts(json.dumps([_machine() if device == "cpu" else str(self.rank), value])):
            machine, given = json.loads(text)
            found.setdefault(machine, []).append(given)
        return list(found.values())

    def together(self, work: Callable[[], T]) -> T:
        """Call `work`, which waits for no other rank. If it fails on a rank, every rank raises.

        Raises:
            Exception: that of `work` on this rank.
            RankError: it failed on another.
        """
        if self.alone:
            return work()
        problem: BaseException | None = None
        try:
            result = work()
        except (Exception, KeyboardInterrupt) as error:
            problem = error
        found = self.texts("" if problem is None else str(problem) or type(problem).__name__)
        if problem is not None:
            raise problem
        for rank, text in enumerate(found):
            if text:
                raise RankError(rank, text)
        return result

    def require_equal(self, facts: Mapping[str, Any]) -> None:
        """Raise unless all ranks have these facts, which JSON can hold.

        Raises:
            ArgumentError: on every rank. The message names each fact that differs, and the ranks.
        """
        if self.alone:
            return
        given = [json.loads(text) for text in self.texts(json.dumps(facts))]
        found = []
        for name in {name: None for facts in given for name in facts}:
            here = given[0].get(name)
            for rank, other in enumerate(given):
                if other.get(name) != here:
                    found.append(f"{name} ({_shown(here)} on rank 0, {_shown(other.get(name))} on rank {rank})")
                    break
        if found:
            raise ArgumentError("comm", f"joins ranks that differ in {'; '.join(found)}: give all ranks the same")


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{platform.node()} {boot}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)[:80]
