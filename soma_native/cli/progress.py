"""Shows the progress of training a model or a tokenizer: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, TextIO

from soma_native.training.callbacks import Callback, Event
from soma_native.training.history import Record, bits_text

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_SECONDS = 30.0  # longest time between two lines without a terminal


class ProgressDisplay(Callback):
    """A callback that prints a line for each record, and in a terminal a live bar below the lines.

    Without a terminal it prints a short line every half minute between two records. It does not print warnings: the
    trainer logs them.

    The bar shows epoch, step, the loss smoothed over about the last 20 steps, the last validation loss, tokens per
    second and the time left. Use the display as a context manager, which restores the terminal after any end of the
    run: `with ProgressDisplay() as progress: trainer.fit(texts, callbacks=[progress])`.

    Args:
        stream: the stream to print to; None means standard error.
        live: whether to draw the bar; None means only if `stream` is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, live: bool | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() if live is None else live
        self._progress: Progress | None = None
        self._task: Any = None
        self._smooth = math.nan
        self._validation = ""
        self._said_at = 0.0
        self._introduced = False
        self._windows: int | None = None  # most in a validation, as far as it was said
        self._from = (0, 0.0)  # step and seconds at which the display began with this model

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_start(self, event: Event) -> None:
        """Print the sizes of the data once, and which model is trained where there are several; draw the bar."""
        self.close()
        self._smooth, self._validation, self._from = math.nan, "", (event.step, event.seconds)
        if not self._introduced:
            self._windows = event.trainer.config.max_eval_windows
            self._introduce(event)
        self._introduced = True
        self._said_at = event.seconds
        if teachers := event.trainer.config.teachers:
            self._line(
                f"the model, taught by {teachers}" if event.teacher is None else f"teacher {event.teacher}/{teachers}"
            )
        if event.teacher is None and event.total_steps is not None and event.step >= event.total_steps:
            folder = event.trainer.config.checkpoint_dir
            self._line(
                f"already finished: all {event.total_steps:,} steps are done; to train the model on other texts, give "
                f"--from {folder} and another --out"
            )
        elif event.step:
            self._line(f"continuing after step {event.step:,}{_of(event.total_steps, ' of ')}")
        self._keep_validation(event.record)
        if self._live:
            self._start_bar(event)

    def _introduce(self, event: Event) -> None:
        for name, counts in event.history.data.items():
            documents = f"{counts['documents']:,} document{'s' * (counts['documents'] != 1)}"
            self._line(
                f"{name}: {documents}, {counts['tokens']:,} tokens, {counts['pairs']:,} pairs"
                f" in {counts['windows']:,} windows"
                + (f", {counts['unknown_tokens']:,} unknown" if counts["unknown_tokens"] else "")
                + (f", dropped {counts['dropped_documents']:,} documents of fewer than 2 tokens"
                   if counts["dropped_documents"] else "")
            )  # fmt: skip
        if event.history.floor is not None:
            self._line(f"floor: {event.history.floor}")

    def _start_bar(self, event: Event) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            *([] if event.trainer.config.steps else [TextColumn("epoch {task.fields[epoch]}{task.fields[epochs]}")]),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}{task.fields[steps]}"),
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(file=self._stream, force_terminal=True),
            expand=True,
            refresh_per_second=4,  # drawing takes time from the training
        )
        self._task = self._progress.add_task(
            "", total=event.total_steps, completed=event.step, epoch=event.epoch, epochs=_of(event.epochs),
            steps=_of(event.total_steps), losses="loss -", speed="-",
        )  # fmt: skip
        self._progress.start()

    def on_step(self, event: Event) -> None:
        """Move the bar."""
        if self._progress is None:
            if event.seconds - self._said_at >= _QUIET_SECONDS:
                self._said_at = event.seconds
                self._line(
                    f"step {event.step}{_of(event.total_steps)}  loss {event.loss:.4f}{self._bits(event, event.loss)}"
                    f"  {event.tokens_per_second:,.0f} tokens/s"
                )
            return
        self._smooth = event.loss if math.isnan(self._smooth) else 0.95 * self._smooth + 0.05 * event.loss
        losses = f"loss {self._smooth:.3f}{self._bits(event, self._smooth, 3)}{self._validation}"
        self._progress.update(
            self._task, completed=event.step, total=event.total_steps, epoch=event.epoch, epochs=_of(event.epochs),
            steps=_of(event.total_steps), losses=losses, speed=f"{event.tokens_per_second:,.0f}",
        )  # fmt: skip

    @staticmethod
    def _bits(event: Event, loss: float, digits: int = 4) -> str:
        """A loss of training in bits per byte, by the validation's bytes a token."""
        bits = event.trainer.bits_per_nat
        return "" if bits is None else f" ({loss * bits:.{digits}f} bits/byte)"

    def on_plan(self, event: Event) -> None:
        """Say it where the clock leaves windows of the validation out."""
        windows, validation = event.details.get("max_eval_windows"), event.history.data.get("validation")
        if windows is not None and validation is not None and windows != self._windows:
            self._line(
                f"validation: by {windows:,} of {validation['windows']:,} windows, since all would take too long"
            )
            self._windows = windows

    def on_evaluate(self, event: Event) -> None:
        """Print the new record."""
        if event.record is None:
            return
        self._keep_validation(event.record)
        self._said_at = event.seconds
        best = event.history.best is event.record
        epochs = None if event.trainer.config.steps else event.epochs
        line = record_line(event.record, epochs, event.total_steps, self._left(event), event.trainer.bits_per_nat)
        self._line(line + ("  best" if best else ""))

    def _left(self, event: Event) -> float:
        """Seconds until the end of the run, or by the speed since `on_start` until the end of this model."""
        ended = event.teacher is None and event.step == event.total_steps
        if event.trainer.config.minutes is not None:
            return 0.0 if ended else max(0.0, 60 * event.trainer.config.minutes - event.seconds)
        step, seconds = self._from
        return (event.seconds - seconds) * ((event.total_steps or event.step) - event.step) / max(1, event.step - step)

    def on_sample(self, event: Event) -> None:
        """Print a text of the model in one line."""
        text = str(event.details["text"])
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # no character moves the cursor
        self._line(f"sample  {shown}")

    def _keep_validation(self, record: Record | None) -> None:
        if record is not None and record["val_loss"] is not None:
            self._validation = f"  validation {record['val_loss']:.3f}{bits_text(record, 3)}"

    def on_end(self, event: Event) -> None:
        """Remove the bar, and print the reason of an early end."""
        self.close()
        if event.message != "finished":
            self._line(f"ended after step {event.step:,}{_of(event.total_steps, ' of ')}: {event.message}")

    def _line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)


def _of(total: int | None, between: str = "/") -> str:
    return "" if total is None else f"{between}{total:{',' if between != '/' else ''}}"


def record_line(
    record: Record, epochs: int | None, total_steps: int | None, left: float = 0.0, bits_per_nat: float | None = None
) -> str:
    """A record of the history as one line of text, with the seconds that are left.

    `bits_per_nat` gives the training loss in bits per byte too.

    `epochs` is None for a run that counts steps, `total_steps` for a run by time, until the clock has decided.

    >>> record_line({"epoch": 2, "step": 40, "train_loss": 3.25, "val_loss": None, "seconds": 1.5,
    ...              "tokens_per_second": 30000.0, "lr": 1e-3, "val_bits_per_byte": None}, epochs=20, total_steps=400,
    ...             left=13.5)
    'epoch  2/20  step  40/400  loss 3.2500  lr 0.001  30,000 tokens/s  1.5 s, 13.5 s left'
    """
    validation = "" if record["val_loss"] is None else f"  validation {record['val_loss']:.4f}{bits_text(record)}"
    training = "" if bits_per_nat is None else f" ({bits_per_nat * record['train_loss']:.4f} bits/byte)"
    return (
        ("" if epochs is None else f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  ")
        + f"step {record['step']:>{len(str(total_steps or ''))}}{_of(total_steps)}"
        f"  loss {record['train_loss']:.4f}{training}{validation}  lr {record['lr']:.3g}"
        f"  {record['tokens_per_second']:,.0f} tokens/s"
        f"  {_time(record['seconds'])}" + (f", {_time(left)} left" if left else "")
    )


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class TokenizerProgress:
    """Shows the training of a tokenizer: a context manager, to pass as `progress` to `Tokenizer.train`.

    Args:
        size: the bytes of the texts, or None if unknown.
        stream: the stream to draw on; None means standard error. Nothing is drawn if it is no terminal.
    """

    def __init__(self, size: int | None, stream: TextIO | None = None) -> None:
        self._size = size
        self._stream = sys.stderr if stream is None else stream
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> TokenizerProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar of the stage."""
        if not self._stream.isatty():
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import Progress

            console = Console(file=self._stream, force_terminal=True)
            self._progress = Progress(console=console, transient=True, refresh_per_second=4)
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task({"counting": "reading", "merging": "merging pairs"}[stage])
        self._progress.update(self._tasks[stage], completed=done, total=total or self._size)
