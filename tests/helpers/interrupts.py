"""A signal whose handler raises, for tests of long calls that must end with it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

needs_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")


class Alarm(Exception):
    """Raised by the handler of SIGALRM."""


@contextmanager
def alarm() -> Iterator[Callable[[], None]]:
    """Expects an Alarm inside. Yields the function that has it raised 10 ms later."""

    def ring(number: int, frame: object) -> None:
        raise Alarm

    def ring_soon() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):
            yield ring_soon
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
