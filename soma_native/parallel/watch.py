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

SILENCE = 30.0  # seconds without a sign of a process, after which it counts as gone
ABSENCE = 1800.0  # seconds for which the others wait for a rank whose process lives: a plan or a save may take long
GRACE = 5.0  # seconds that ranks have to end by themselves after one has failed

_AFTER = "all ranks were ended. The checkpoint of the run, if it had one, is whole: resume from there"
logger = logging.getLogger("soma_native")


class _Sign(NamedTuple):
    """What a rank says of itself: the collective calls it has begun; whether it has left; why, if it failed."""

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
        self._depth = 0
        self._own = _Sign(0)
        self._leaving = threading.Event()
        rank, size = communicator.Get_rank(), communicator.Get_size()
        self._rank = rank
        self._peers = [r for r in range(size) if r != rank] if rank == 0 else [0]

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._own = _Sign(self.calls)
            self._leaving.clear()
            self._thread = threading.Thread(target=self._run, name="watch of ranks", daemon=True)
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            problem = "" if error is None else str(error) or type(error).__name__
            self._own = _Sign(self.calls, True, problem)
            self._leaving.set()
            self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        heard = dict.fromkeys(self._peers, began)
        signs = {rank: _Sign(0) for rank in self._peers}
        behind: dict[int, float] = {}
        failed_at: dict[int, float] = {}
        said_that_left = False
        while True:
            if not said_that_left:
                said_that_left = self._leaving.is_set()
                sign = self._own if said_that_left else _Sign(self.calls)
                for rank in self._peers:
                    if not signs[rank].left or said_that_left:
                        self._mpi.isend(tuple(sign), dest=rank)
            now = time.monotonic()
            for rank in self._peers:
                while self._mpi.iprobe(source=rank):
                    signs[rank], heard[rank] = _Sign(*self._mpi.recv(source=rank)), now
            here = [rank for rank in self._peers if not signs[rank].left]
            if said_that_left and not here:
                return
            for rank in here:
                # Each rank waits a little longer than the one before, so that one of them speaks.
                if now - heard[rank] > self._silence + max(0, self._rank - 1) * self._period:
                    self._end(rank, f"has given no sign for {self._silence:g} s: it hangs, or is gone")
            for rank in self._peers:
                if signs[rank].problem and not said_that_left and now - failed_at.setdefault(rank, now) > GRACE:
                    self._end(rank, signs[rank].problem)
            if self._rank == 0 and not said_that_left:
                self._look_for_absence(now, {0: self.calls, **{rank: signs[rank].calls for rank in here}}, behind)
            (time.sleep(0.02) if said_that_left else self._leaving.wait(self._period))

    def _look_for_absence(self, now: float, calls: dict[int, int], behind: dict[int, float]) -> None:
        """End all if a rank has been behind the others for too long. `behind` has since when each is."""
        most = max(calls.values())
        for rank, count in calls.items():
            if count == most or len(calls) == 1:
                behind.pop(rank, None)
            elif now - behind.setdefault(rank, now) > self._absence:
                self._end(rank, f"has kept the others waiting for {self._absence:g} s")

    def _end(self, rank: int, problem: str) -> None:
        if hasattr(signal, "alarm"):
            signal.alarm(int(GRACE))  # ends the process where MPI waits for a network that is gone, and holds the GIL
        self._say(f"rank {rank}: {' '.join(problem.split())}; {_AFTER}")
        self._mpi.Abort(1)
