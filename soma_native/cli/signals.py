"""Handles SIGTERM and SIGHUP like Ctrl-C, so that a training run saves a checkpoint before it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from soma_native.training.interrupt import interrupt

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

ended_by: list[int] = []  # the signal that ended the command, if it was one of these


@contextlib.contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """In this block these signals act like Ctrl-C, also where Ctrl-C is ignored, as in background jobs of a shell.

    Only the first signal acts, because a closing terminal sends several, and saving must not be interrupted. A signal
    that was ignored at the start of the program, as by `nohup`, stays ignored.
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
