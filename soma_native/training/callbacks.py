"""Events of a training run, and the callbacks that receive them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias, get_args

from soma_native.errors import ArgumentTypeError
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import TrainConfig
from soma_native.training.history import History, Record

EventKind: TypeAlias = Literal[
    "start", "step", "epoch", "evaluate", "checkpoint", "warning", "plan", "sample", "end"
]  # fmt: skip
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


class RunningTrainer(Protocol):
    """The part of a `Trainer` that callbacks may use."""

    model: Model
    tokenizer: Tokenizer | None
    config: TrainConfig
    history: History

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte for each nat a token of the training loss, while `fit` runs; None without them."""

    def stop(self) -> None:
        """End the training after this step."""

    def averaged(self) -> AbstractContextManager[Model]:
        """In this block the model has the weights that are validated and saved."""

    def tell(self, kind: Literal["plan", "sample"], **details: Any) -> None:
        """Send an event of this kind to all callbacks, and so to `events.jsonl`."""


@dataclass(frozen=True)
class Event:
    """An event of a training run.

    Attributes:
        kind: "start" before the first step, also of each teacher; "step" after each optimizer step; "plan" after a
            decision about the number of steps, and when a callback tells the run's plan; "evaluate" after each new
            record of the history; "epoch" at the end of each epoch, after its record; "checkpoint" after a checkpoint
            was saved; "warning" when the trainer warns; "sample" when a callback tells one (`Trainer.tell`);
            "end" once, unless an error or Ctrl-C ended the run.
        trainer: the trainer; `event.trainer.stop()` ends the training after this step.
        history: the history so far.
        step, total_steps: optimizer steps done, and steps in all; with `minutes` None in all, until the first decision.
        epoch, epochs: the epoch of the last step (from 1), and epochs in all, or None likewise.
        loss: training loss of the last step, nats a token; NaN before the first.
        lr, grad_norm: learning rate and gradient norm (before clipping) of the last step; NaN before the first.
        seconds: wall-clock time so far.
        tokens_per_second: pairs trained on per second since the last record; 0 before the first step.
        record: the newest record of the history ("evaluate" and after), or None.
        message: the text of a warning, the folder of a checkpoint, the reason of a decision or of the end; else "".
        details: of a plan (a decision of `history.decisions`, or what was told) or sample ("prompt", "text"), by name.
        teacher: the number of the teacher that is trained, from 1, in a run that trains its own; `trainer`, `history`
            and steps are then the teacher's. None while the model itself is trained.
    """

    kind: EventKind
    trainer: RunningTrainer
    history: History
    step: int
    total_steps: int | None
    epoch: int
    epochs: int | None
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    tokens_per_second: float
    record: Record | None
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    teacher: int | None = None


class Callback:
    """Base class of callbacks with state. Override the hooks you need; the others do nothing.

    A callback need not derive from this class: any object with some of these methods is a callback. A function is one
    too; it is called with every event and looks at `event.kind`. Hooks run in the thread of `Trainer.fit`. An exception
    in a hook ends the training and reaches the caller of `fit`.

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

    def on_plan(self, event: Event) -> None:
        """When a callback tells the plan of the run, and after a decision about its steps: `event.details`."""

    def on_sample(self, event: Event) -> None:
        """When a callback tells a text of the model, `event.details["prompt"]` and `["text"]`."""

    def on_end(self, event: Event) -> None:
        """After the last step; `event.message` is the reason of the end."""


CallbackLike: TypeAlias = "Callable[[Event], object] | object"


class Dispatcher:
    """Finds the hooks of the callbacks once. Calls the hooks of an event in the order of the callbacks."""

    def __init__(self, callbacks: Iterable[CallbackLike], trainer: RunningTrainer) -> None:
        self._trainer = trainer
        self._hooks: dict[str, list[Callable[[Event], object]]] = {kind: [] for kind in EVENT_KINDS}
        for callback in callbacks:
            own = {kind: getattr(callback, f"on_{kind}") for kind in EVENT_KINDS if hasattr(callback, f"on_{kind}")}
            if isinstance(callback, type) or not (own or callable(callback)):
                problem = (
                    f"must be functions of an Event, or objects with a method such as on_step, got {callback!r:.80}"
                )
                raise ArgumentTypeError("callbacks", problem)
            for kind in EVENT_KINDS:
                hook: Any = own.get(kind) if own else callback
                if hook is not None and getattr(type(callback), f"on_{kind}", None) is not getattr(
                    Callback, f"on_{kind}"
                ):
                    self._hooks[kind].append(hook)

    def wants(self, kind: EventKind) -> bool:
        """Whether any callback has a hook for events of this kind."""
        return bool(self._hooks[kind])

    def emit(self, kind: EventKind, **facts: Any) -> None:
        """Call the hooks with an event that has these fields."""
        event = Event(kind=kind, trainer=self._trainer, history=self._trainer.history, **facts)
        for hook in self._hooks[kind]:
            hook(event)
