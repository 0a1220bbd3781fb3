"""`events.jsonl`: what happens in a training run, one JSON object a line, for programs that watch or draw it."""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any

from soma_native.errors import CheckpointError
from soma_native.files.atomic_file import write_file
from soma_native.files.untrusted import open_regular
from soma_native.system import active_isa, get_num_threads
from soma_native.training.callbacks import Callback, Event
from soma_native.version import __version__

EVENTS_FILE = "events.jsonl"
_LONGEST_LINE = 1 << 20

logger = logging.getLogger("soma_native")


class EventLog(Callback):
    """Writes the events of a run into `events.jsonl` of its folder, each line in one call.

    Every object has "event" and "step", and "teacher" with its number while a run trains a teacher, whose steps are its
    own. There is a "start" for each model, and one "end". The events: "start" (version, machine, model, data, settings;
    steps and epochs in all, null until the clock decides), "plan" (what `Trainer.tell` was
    given, or a decision about the steps), "step" (about one a second, or one in `log_every` steps),
    "eval" (a record of the history), "sample" (prompt, text), "save" (folder), "end" (reason; the floor and how the
    model compared). A number that is not finite is null.

    Nothing is written before the first step, so that a run that does not begin replaces no file. A run that is resumed
    first cuts the lines of later steps than its own. A file that cannot be written is warned of once.

    Args:
        folder: the `checkpoint_dir` of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_FILE
        self._waiting: list[str] | None = []  # lines from before the first step
        self._file: int | None = None
        self._resumed, self._run, self._first = False, "", (math.inf, 0)
        self._step = 0
        self._teacher: int | None = None
        self._said_at = -math.inf  # seconds of the run
        self._warned = self._ended = False

    def on_start(self, event: Event) -> None:
        """Describe the run."""
        model, config = event.trainer.model, event.trainer.config
        said = {"seed": config.seed, "parameters": model.num_parameters, "data": event.history.data}
        self._run = f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"
        self._resumed = config.resume
        self._step, self._teacher = event.step, event.teacher
        self._first = _at(event.teacher, event.step)
        self._write(
            "start", event.step, run=self._run, total_steps=event.total_steps, epochs=event.epochs,
            seconds=event.seconds, version=__version__, isa=active_isa(), threads=get_num_threads(),
            precision=model.precision, evaluation_precision=model.evaluation_precision, parameters=model.num_parameters,
            model=model.config.to_dict(), data=event.history.data, settings=config.to_dict(),
        )  # fmt: skip

    def on_plan(self, event: Event) -> None:
        """Write the plan of the run."""
        self._write("plan", **{"step": event.step, **event.details})

    def on_step(self, event: Event) -> None:
        """Write a step now and then; the first line of a run makes the file."""
        self._step = event.step
        self._begin()
        every = event.trainer.config.log_every
        due = event.seconds - self._said_at >= max(1.0, event.seconds / 1000)  # so long runs have few lines
        if event.step % every == 0 if every else due:
            self._said_at = event.seconds
            self._write(
                "step", event.step, epoch=event.epoch, loss=event.loss, lr=event.lr, grad_norm=event.grad_norm,
                seconds=event.seconds, tokens_per_second=event.tokens_per_second,
            )  # fmt: skip

    def on_evaluate(self, event: Event) -> None:
        """Write the new record."""
        self._write("eval", **(event.record or {"step": event.step}))

    def on_sample(self, event: Event) -> None:
        """Write a text of the model."""
        self._write("sample", event.step, **event.details)

    def on_checkpoint(self, event: Event) -> None:
        """Write where the run was saved."""
        self._begin()
        self._write("save", event.step, folder=event.message, seconds=event.seconds)

    def on_end(self, event: Event) -> None:
        """Write the reason of the end."""
        floor = {"floor": event.history.to_dict()["floor"], "compared": event.history.compared}
        known = {} if event.history.floor is None else floor
        self._write("end", event.step, reason=event.message, seconds=event.seconds, **known)
        self._ended = True

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the file, after the end of a run that an error or Ctrl-C ended."""
        if kind is not None and not self._ended and self._waiting is None:
            interrupted = issubclass(kind, KeyboardInterrupt)
            self._write("end", self._step, reason="interrupted" if interrupted else f"{kind.__name__}: {error}")
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, event: str, step: int, **fields: Any) -> None:
        of: dict[str, int] = {} if self._teacher is None else {"teacher": self._teacher}
        line = json.dumps(_plain({"event": event, "step": step, **of, **fields}), allow_nan=False) + "\n"
        if self._waiting is not None:
            self._waiting.append(line)
        elif self._file is not None:
            self._append(line.encode())

    def _begin(self) -> None:
        """Make the file, or take up the one of the run that is resumed, and write what waits."""
        if self._waiting is None:
            return
        lines, self._waiting = "".join(self._waiting), None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            end = _end_of(self._path, self._run, self._first) if self._resumed else 0
            if not end:
                write_file(self._path, lines)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            if end:
                os.ftruncate(self._file, end)
                self._append(lines.encode())
        except (OSError, CheckpointError) as error:
            self._warn(error)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        try:
            written = os.write(self._file, data)
            if written < len(data):  # the disk is full: leave no part of a line
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
                raise OSError("the disk is full")
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.warning("events of this run are missing in %s: %s; the training goes on", self._path, error)
        self._warned = True


def _at(teacher: int | None, step: int) -> tuple[float, int]:
    """The place in a run: teachers come first, in their order."""
    return (math.inf if teacher is None else teacher), step


def _end_of(path: Path, run: str, last: tuple[float, int]) -> int:
    """The bytes of the lines up to this place, without a torn one at the end; 0 for no file, or one of another run."""
    end = 0
    if not os.path.lexists(path):
        return end
    with open_regular(path) as file:
        while line := file.readline(_LONGEST_LINE):
            try:
                event = json.loads(line)
                own = end > 0 or (event["event"] == "start" and event["run"] == run)
                if not own or _at(event.get("teacher"), event["step"]) > last or not line.endswith(b"\n"):
                    break
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            end += len(line)
    return end


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, with null for a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()  # a number of NumPy
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
