"""SIGTERM and SIGHUP as Ctrl-C, so that a training that is told to end saves what it has."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from soma_native.training.interrupt import interrupt

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

ended_by: list[int] = []  # the signal, where it was one of these and not Ctrl-C, that ended the command


@contextlib.contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """Within this block these signals do what Ctrl-C does, also where that is ignored as in a script's background jobs.

    Only the first does: a terminal that closes sends more than one, and the saving is to get to its end. What was
    ignored when the program started, as `nohup` has it, stays ignored.
    """

    def terminate(number: int, frame: object) -> None:
        if not ended_by:
            ended_by.append(number)
            interrupt()

    in_main_thread = threading.current_thread() is threading.main_thread()
    taken = [number for number in _SIGNALS if in_main_thread and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
