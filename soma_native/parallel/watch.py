"""Watches the ranks of an MPI program: a rank that dies, hangs or fails ends all, with a line that names it.

Each rank has a thread that says each second that its process lives, and how far it is: rank 0 to all, the others to
rank 0. MPI alone would let the others wait for ever for a process that is stopped or stuck.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from soma_native.errors import AllInterrupted, RankError

SILENCE = 30.0  # seconds without a sign of a process, after which it counts as gone
ABSENCE = 1800.0  # seconds for which the others wait for a rank whose process lives: a plan or a save may take long
GRACE = 5.0  # seconds that ranks have to end by themselves after one has failed

AFTER = "all ranks were ended. The checkpoint of the run, if it had one, is whole: resume from there"
logger = logging.getLogger("soma_native")


class _Sign(NamedTuple):
    """What a rank says of itself: its block; the collective calls it has begun; whether it left, and why."""

    block: int
    calls: int
    left: bool = False
    problem: str = ""


class Watch:
    """Watches in its `with` block, which all ranks enter, and leave together. A block inside it changes nothing.

    Args:
        communicator: of mpi4py, for the signs alone.
        silence, absence: as `SILENCE` and `ABSENCE`.
        say: gets the line that names the rank; None logs it.
    """

    def __init__(self, communicator: Any, silence: float, absence: float, say: Callable[[str], None] | None = None):
        self._mpi = communicator
        self._silence, self._absence = silence, absence
        self._say = logger.critical if say is None else say
        self._period = min(1.0, silence / 5)
        self.calls = 0
        self._depth = self._block = 0
        self._own = _Sign(0, 0)
        self._sent: list[Any] = []  # MPI reads what is sent until a request is done
        self._leaving = threading.Event()
        rank, size = communicator.Get_rank(), communicator.Get_size()
        self._rank = rank
        self._peers = [r for r in range(size) if r != rank] if rank == 0 else [0]

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._block += 1
            self._own = _Sign(self._block, self.calls)
            self._leaving.clear()
            self._thread = threading.Thread(target=self._watch, name="watch of ranks", daemon=True)
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            known = error is None or isinstance(error, (RankError, AllInterrupted))  # to all ranks: each leaves by it
            self._own = _Sign(self._block, self.calls, True, "" if known else str(error) or type(error).__name__)
            self._leaving.set()
            self._thread.join()

    def _watch(self) -> None:
        try:
            self._run()
        except Exception as error:  # of MPI: without a watch the ranks could wait for ever
            self._end(self._rank, f"cannot reach the others: {error}")

    def _run(self) -> None:
        last = time.monotonic()
        heard = dict.fromkeys(self._peers, last + max(0.0, self._absence - self._silence))  # they may come later
        signs = {rank: _Sign(self._block, 0) for rank in self._peers}
        behind: dict[int, tuple[int, float]] = {}
        failed_at: dict[int, float] = {}
        said_that_left = False
        while True:
            if not said_that_left:
                said_that_left = self._leaving.is_set()
                sign = self._own if said_that_left else _Sign(self._block, self.calls)
                self._sent = [request for request in self._sent if not request.Test()]
                for rank in self._peers:  # one that has left waits for this rank's leaving
                    self._sent.append(self._mpi.isend(tuple(sign), dest=rank))
            now = time.monotonic()
            gap, last = now - last, now
            for rank in self._peers:
                if gap > 5 * self._period:  # this process was stopped, and heard nothing meanwhile
                    heard[rank] += gap
                while self._mpi.iprobe(source=rank):
                    sign = _Sign(*self._mpi.recv(source=rank))
                    if sign.block == self._block:  # else it is of the block before
                        signs[rank], heard[rank] = sign, now
            here = [rank for rank in self._peers if not signs[rank].left]
            if said_that_left and not here:
                return
            for rank in here:
                # Each rank waits a little longer than the one before, so that one of them speaks.
                if now - heard[rank] > self._silence + max(0, self._rank - 1) * self._period:
                    self._end(rank, f"has given no sign for {self._silence:g} s: it hangs, or is gone")
            for rank in self._peers:
                grace = GRACE + max(0, self._rank - 1) * self._period
                if signs[rank].problem and not said_that_left and now - failed_at.setdefault(rank, now) > grace:
                    self._end(rank, signs[rank].problem)
            if self._rank == 0 and not said_that_left:
                self._look_for_absence(now, {0: self.calls, **{rank: signs[rank].calls for rank in here}}, behind)
            (time.sleep(0.02) if said_that_left else self._leaving.wait(self._period))

    def _look_for_absence(self, now: float, calls: dict[int, int], behind: dict[int, tuple[int, float]]) -> None:
        """End all if a rank behind the others has begun no call for too long. `behind` has its last, and since when.

        What the others say of themselves is some time old, so that they seem behind a rank that says it now.
        """
        most = max(calls.values())
        for rank, count in calls.items():
            if count == most or behind.get(rank, (count, now))[0] != count:
                behind.pop(rank, None)
            if count < most and now - behind.setdefault(rank, (count, now))[1] > self._absence:
                self._end(rank, f"has kept the others waiting for {self._absence:g} s")

    def _end(self, rank: int, problem: str) -> None:
        if hasattr(signal, "alarm"):
            signal.alarm(int(GRACE))  # ends the process where MPI waits for a network that is gone, and holds the GIL
        self._say(f"rank {rank}: {' '.join(problem.split())}; {AFTER}")
        self._mpi.Abort(1)
