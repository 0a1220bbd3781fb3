"""Delays Ctrl-C, and other signals that mean the same, until a training run is between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import ClassVar


def interrupt() -> None:
    """Interrupt the training run of the main thread as Ctrl-C does. For handlers of other signals."""
    if InterruptGuard.current is None:
        raise KeyboardInterrupt
    InterruptGuard.current.interrupt()


class InterruptGuard:
    """In its `with` block, Ctrl-C raises KeyboardInterrupt; inside `hold()`, only at the end of `hold()`.

    It acts only in the main thread, and only if Python's own handler of SIGINT is installed. A handler of the program
    stays in place.
    """

    current: ClassVar[InterruptGuard | None] = None  # the innermost guard of the main thread

    def __init__(self) -> None:
        self._installed = False
        self._holding = False
        self._pending = False
        self._outer: InterruptGuard | None = None

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._outer, InterruptGuard.current = InterruptGuard.current, self
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._on_interrupt)
                self._installed = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False
        if InterruptGuard.current is self:
            InterruptGuard.current = self._outer

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupt()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt, now or at the end of `hold()`."""
        if not self._holding:
            raise KeyboardInterrupt
        self._pending = True

    @property
    def pending(self) -> bool:
        """Whether a Ctrl-C waits for the end of `hold()`."""
        return self._pending

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Delay a Ctrl-C inside this block to its end, so that the block runs as a whole. Blocks may be nested."""
        outer, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = outer
        if self._pending and not outer:
            self._pending = False
            raise KeyboardInterrupt
