"""SIGTERM as Ctrl-C, so that a training that is told to end saves what it has."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from soma_native.training.interrupt import interrupt

terminated = threading.Event()  # whether what ended the command was a SIGTERM and not Ctrl-C


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within this block SIGTERM does what Ctrl-C does, also where that is ignored as in a script's background jobs.

    A program that was started with SIGTERM ignored goes on ignoring it.
    """

    def terminate(number: int, frame: object) -> None:
        terminated.set()
        interrupt()

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
