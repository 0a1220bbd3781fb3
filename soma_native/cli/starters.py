"""What mpiexec or srun tells a process that it starts, and the silence of all ranks but the first."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from socket import gethostname
from typing import NamedTuple

# What starters of ranks tell each: its number, how many there are, and whose libraries understand the starter.
_TOLD = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("Open MPI",)),
    ("PMI_RANK", "PMI_SIZE", ("MPICH", "Intel", "MVAPICH", "CRAY", "Microsoft")),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("",)),
)
_PATIENCE = 5.0  # seconds that a rank which cannot join waits for rank 0 to say why, and to end all
_JOINING = 300.0  # seconds until a rank ends that waits for others which do not join
joined = threading.Event()  # this process has reached the other ranks


class Told(NamedTuple):
    """What a starter said: the number of this process, how many there are, and which MPI can join them."""

    rank: int
    size: int
    libraries: tuple[str, ...]


def told() -> Told:
    """What the starter of this process told it; rank 0 of 1 for a process that was started alone."""
    for rank, size, libraries in _TOLD:
        if os.environ.get(rank, "").isdecimal() and os.environ.get(size, "").isdecimal():
            any_library = "SLURM_PROCID" in os.environ  # srun speaks the words of other starters too
            return Told(int(os.environ[rank]), int(os.environ[size]), ("",) if any_library else libraries)
    return Told(0, 1, ())


@contextlib.contextmanager
def silent_ranks(argv: Sequence[str]) -> Iterator[None]:
    """In this block only rank 0 of `train` prints. At its end the others leave the program, without an error.

    A starter ends all ranks when one has a status other than 0, and rank 0 may still have to say why. A rank that could
    not join the others says its own last line: rank 0 may know nothing of it.
    """
    rank = told().rank
    if argv[:1] != ["train"] or rank == 0:
        yield
        return
    said = io.StringIO()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(said):
        with contextlib.suppress(SystemExit):
            yield
    lines = said.getvalue().splitlines()
    if joined.is_set() or not lines:
        raise SystemExit(0)
    time.sleep(_PATIENCE)
    print(f"rank {rank} on {gethostname()}: {lines[-1]}", file=sys.stderr, flush=True)
    raise SystemExit(1)


@contextlib.contextmanager
def time_to_join() -> Iterator[None]:
    """In this block, an alarm of the system ends a process that waits too long. MPI holds the GIL, so no thread could.

    The starter then ends the others. Where there is no such alarm, they wait for ever.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, _JOINING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def end_all(argv: Sequence[str]) -> None:
    """End this process, and so all ranks, if it is a rank of `train` that has failed before it joined the others.

    They wait for it. MPICH's starter takes no notice of a status other than 0 before MPI begins; a signal it heeds.
    """
    if argv[:1] == ["train"] and told().size > 1 and not joined.is_set() and os.name == "posix":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
