"""What a training run tells others while it runs (events for callbacks), and how Ctrl-C reaches it between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from soma_native.history import History, Record

if TYPE_CHECKING:
    from soma_native.trainer import Trainer

__all__ = ["Callback", "Event", "EventKind", "interrupt"]

EventKind: TypeAlias = Literal["start", "step", "epoch", "evaluate", "checkpoint", "warning", "end"]
EVENT_KINDS: tuple[EventKind, ...] = ("start", "step", "epoch", "evaluate", "checkpoint", "warning", "end")


@dataclass(frozen=True)
class Event:
    """One thing that happened in a training run.

    Attributes:
        kind: "start" once before the first step; "step" after each optimizer step; "evaluate" after each new record
            of the history; "epoch" at the end of each epoch, after its record; "checkpoint" after a checkpoint was
            saved; "warning" when the trainer warns; "end" once, unless an error or Ctrl-C ended the run.
        trainer: the trainer; `event.trainer.stop()` ends the training after this step.
        history: its history so far.
        step, total_steps: optimizer steps done, and how many there will be.
        epoch, epochs: the epoch the last step was in (from 1), and in which the last one will be.
        loss: training loss of the last step, nats a token; NaN before the first.
        lr, grad_norm: learning rate and gradient norm (before clipping) of the last step; NaN before the first.
        seconds: wall-clock time so far.
        tokens_per_second: pairs trained on per second since the last record; 0 before the first step.
        record: the newest record of the history ("evaluate" and after), or None.
        message: what a warning says, the folder of a checkpoint, why the training ended; else "".
    """

    kind: EventKind
    trainer: Trainer
    history: History
    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    tokens_per_second: float
    record: Record | None
    message: str = ""


class Callback:
    """Base for callbacks with state: override the hooks you need; the others do nothing.

    A callback need not derive from this class. Any object with some of these methods will do, and so will a plain
    function, which is called with every event and looks at `event.kind`. Hooks run in the thread of `Trainer.fit`;
    an exception in one ends the training and reaches the caller of `fit`.

    >>> class StopAtLoss(Callback):
    ...     def on_step(self, event: Event) -> None:
    ...         if event.loss < 1.0:
    ...             event.trainer.stop()
    """

    def on_start(self, event: Event) -> None:
        """Before the first step."""

    def on_step(self, event: Event) -> None:
        """After each optimizer step."""

    def on_evaluate(self, event: Event) -> None:
        """After each new record of the history, `event.record`."""

    def on_epoch(self, event: Event) -> None:
        """At the end of each epoch."""

    def on_checkpoint(self, event: Event) -> None:
        """After a checkpoint was saved in the folder `event.message`."""

    def on_warning(self, event: Event) -> None:
        """When the trainer warns of `event.message`."""

    def on_end(self, event: Event) -> None:
        """After the last step; `event.message` says why it was the last."""


CallbackLike: TypeAlias = "Callable[[Event], object] | object"


class Dispatcher:
    """Finds the hooks of the callbacks once, and calls those of an event in the order the callbacks were given."""

    def __init__(self, callbacks: Iterable[CallbackLike] | CallbackLike) -> None:
        given = callbacks if isinstance(callbacks, Iterable) else [callbacks]
        self._hooks: dict[str, list[Callable[[Event], object]]] = {kind: [] for kind in EVENT_KINDS}
        for callback in given:
            own = {kind: getattr(callback, f"on_{kind}") for kind in EVENT_KINDS if hasattr(callback, f"on_{kind}")}
            if isinstance(callback, type) or not (own or callable(callback)):
                raise TypeError(
                    f"callbacks contains {callback!r}: expected functions of an Event, or objects with a method such "
                    f"as on_step or on_epoch"
                )
            for kind in EVENT_KINDS:
                hook: Any = own.get(kind) if own else callback
                if hook is not None and getattr(type(callback), f"on_{kind}", None) is not getattr(
                    Callback, f"on_{kind}"
                ):
                    self._hooks[kind].append(hook)

    def wants(self, kind: EventKind) -> bool:
        """Whether any callback hears events of this kind."""
        return bool(self._hooks[kind])

    def emit(self, event: Event) -> None:
        """Call the hooks for `event`."""
        for hook in self._hooks[event.kind]:
            hook(event)


def interrupt() -> None:
    """Do what Ctrl-C does to a training run of the main thread: for handlers of other signals, which run there."""
    if InterruptGuard.current is None:
        raise KeyboardInterrupt
    InterruptGuard.current.interrupt()


class InterruptGuard:
    """Within its `with` block, Ctrl-C raises KeyboardInterrupt as ever, except that `hold()` puts it off.

    It steps in only in the main thread and only where Python's own handler is in place; a program that handles
    SIGINT itself keeps doing so.
    """

    current: ClassVar[InterruptGuard | None] = None  # the innermost one of the main thread

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Put a Ctrl-C that comes inside this block off to its end, so that what is inside happens as a whole."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt
