"""The history of a training run: its records as dicts, CSV, JSON or a plot, and the start of over-fitting."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from soma_native.analysis.floor import Floor
from soma_native.errors import CheckpointError
from soma_native.files.atomic_file import write_file

_FORMAT = 2  # format 1 had no val_bits_per_byte, no floor and no averaged_from
_OVERFIT_MARGIN = 0.01  # share of the lowest validation loss; a smaller rise may be noise, as during warm-up


class Record(TypedDict):
    """One line of the history; a plain dict at run time."""

    epoch: int
    step: int
    train_loss: float
    val_loss: float | None
    seconds: float
    tokens_per_second: float
    lr: float
    val_bits_per_byte: float | None


class Decision(TypedDict):
    """How a run went on after `step` steps; a plain dict at run time."""

    step: int
    total_steps: int
    eval_every: int
    max_eval_windows: int | None
    reason: Literal["clock", "early stopping"]


FIELDS = tuple(Record.__annotations__)


class History:
    """The records of a training run, in order.

    Attributes:
        records: a dict for each record, usually one an epoch:
            `epoch`: the epoch, from 1;
            `step`: optimizer steps done;
            `train_loss`: the mean over all pairs trained on since the last record, in nats a token;
            `val_loss`: the mean over the validation data, or None without validation data;
            `seconds`: wall-clock time of the run, with validation and saving, over all resumed parts;
            `tokens_per_second`: pairs trained on per second since the last record, without validation and saving;
            `lr`: the learning rate of the last step;
            `val_bits_per_byte`: the validation loss in bits for each UTF-8 byte of text, which compares different
            tokenizers; None without validation, and where the tokenizer loses text (as kind "word" does).
        data: counts of the data by part, "train" and "validation": documents, tokens, pairs, windows, dropped
            documents and tokens, unknown tokens, the longest window.
        floor: what predictors without training reach on the validation data (`train` measures it), or None.
        averaged_from: the validation is that of averaged weights after this step; None without an average.
        teachers: the best record of each model that the run trained before its own, to be taught by it; the last
            record where nothing is validated.
        warnings: the warnings of the trainer, such as over-fitting.
        decisions: how the run's length was decided while it ran, in order: after `step` steps there were to be
            `total_steps` in all, a record every `eval_every` steps, at most `max_eval_windows` windows in a validation
            (None: all), for the reason "clock" (`TrainConfig.minutes`) or "early stopping".
        stop_reason: the reason of the end: "finished", "early stopping", "stopped" (by `Trainer.stop`), "interrupted"
            (Ctrl-C); None while the training runs, and if an error ended it.
        checkpoint: the folder last saved into, or None.

    >>> history = History()
    >>> for step, (train, val) in enumerate([(3.0, 3.1), (2.0, 2.5), (1.0, 2.9), (0.5, 3.3)], start=1):
    ...     history.records.append(
    ...         {"epoch": step, "step": step, "train_loss": train, "val_loss": val, "seconds": 1.0 * step,
    ...          "tokens_per_second": 100.0, "lr": 1e-3, "val_bits_per_byte": None})
    >>> history.best["step"], history.overfit_from["step"]
    (2, 2)
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.data: dict[str, dict[str, int]] = {}
        self.floor: Floor | None = None
        self.averaged_from: int | None = None
        self.teachers: list[Record] = []
        self.warnings: list[str] = []
        self.decisions: list[Decision] = []
        self.stop_reason: str | None = None
        self.checkpoint: str | None = None
        self._overfit_warning: str | None = None  # the one that is in warnings

    @property
    def best(self) -> Record | None:
        """The record of the lowest validation loss, the first of equals; None without validation."""
        judged = [record for record in self.records if record["val_loss"] is not None]
        return min(judged, key=_val_loss) if judged else None

    @property
    def best_teacher(self) -> float | None:
        """The lowest validation loss of a teacher; None without teachers and without validation."""
        return min((record["val_loss"] for record in self.teachers if record["val_loss"] is not None), default=None)

    def following(self) -> History:
        """The history of the model that is trained after this one, which is a teacher."""
        history = History()
        history.floor, history.checkpoint = self.floor, self.checkpoint
        history.teachers = [*self.teachers, self.best or self.records[-1]]
        return history

    @property
    def compared(self) -> str | None:
        """How the best record compares with the floor, such as "14% below a 5-gram"; None without either."""
        best = self.best
        if self.floor is None or best is None or best["val_bits_per_byte"] is None:
            return None
        return self.floor.sentence(best["val_bits_per_byte"])

    @property
    def overfit_from(self) -> Record | None:
        """The record at which over-fitting began, or None.

        It is the best record, if two later evaluations in a row had a validation loss more than 1% higher, and a lower
        training loss. A new lowest validation loss makes another record the best.
        """
        best = self.best
        if best is None:
            return None
        later = [record for record in self.records if record["step"] > best["step"] and record["val_loss"] is not None]
        limit = _val_loss(best) * (1.0 + _OVERFIT_MARGIN)
        turned = [_val_loss(record) > limit and record["train_loss"] < best["train_loss"] for record in later]
        return best if any(first and second for first, second in itertools.pairwise(turned)) else None

    @property
    def overfit_warning(self) -> str | None:
        """`overfit_from` in words, or None."""
        turn = self.overfit_from
        if turn is None:
            return None
        return (
            f"over-fitting from step {turn['step']} (epoch {turn['epoch']}) on: the validation loss was lowest there, "
            f"{turn['val_loss']:.4f}, and has risen since, while the training loss kept falling"
        )

    def renew_overfit_warning(self) -> str | None:
        """Bring the warning of over-fitting in `warnings` up to date. Returns what is new about it, or None."""
        old, new = self._overfit_warning, self.overfit_warning
        if new == old:
            return None
        if old in self.warnings:
            self.warnings.remove(old)
        self._overfit_warning = new
        if new is None:
            return "no over-fitting after all: the validation loss has reached a new lowest value"
        self.warnings.append(new)
        return new

    def bad_evaluations(self, min_delta: float = 0.0) -> int:
        """Number of evaluations since the validation loss last fell by more than `min_delta` below the lowest one."""
        lowest, bad = float("inf"), 0
        for record in self.records:
            if record["val_loss"] is None:
                continue
            if record["val_loss"] < lowest - min_delta:
                lowest, bad = record["val_loss"], 0
            else:
                bad += 1
        return bad

    def _bits_per_nat(self) -> float | None:
        """Bits a byte for each nat a token, if the validation has both; its text is the measure for training too."""
        for record in reversed(self.records):
            if record["val_loss"] and record["val_bits_per_byte"] is not None:
                return record["val_bits_per_byte"] / record["val_loss"]
        return None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {
            "format": _FORMAT,
            "records": self.records,
            "data": self.data,
            "floor": None if self.floor is None else asdict(self.floor),
            "averaged_from": self.averaged_from,
            "teachers": self.teachers,
            "warnings": self.warnings,
            "decisions": self.decisions,
            "stop_reason": self.stop_reason,
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """The inverse of `to_dict`.

        Raises:
            ValueError: the values are not those of a history.
        """
        history = cls()
        try:
            if values["format"] not in (1, _FORMAT):
                raise ValueError(
                    f"format {values['format']!r} of a history is not known; this version reads 1 and {_FORMAT}"
                )
            for record in values["records"]:
                if values["format"] == 1:
                    record = {**record, "val_bits_per_byte": None}
                if set(record) != set(FIELDS):
                    raise ValueError(f"a record of a history has the keys {sorted(record)}; expected {sorted(FIELDS)}")
                history.records.append(cast(Record, dict(record)))
            history.data = dict(values["data"])
            floor = values.get("floor")
            history.floor = None if floor is None else Floor(**floor)
            history.averaged_from = values.get("averaged_from")
            history.teachers = list(values.get("teachers", []))
            history.warnings = list(values["warnings"])
            history.decisions = list(values.get("decisions", []))  # older runs have none
            history.stop_reason = values["stop_reason"]
            history.checkpoint = values["checkpoint"]
            history._overfit_warning = history.overfit_warning
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a history: {error!r}") from None
        return history

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a JSON file, at once or not at all."""
        write_file(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> History:
        """Read what `to_json` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is not a history. The message gives the problem.

        >>> import tempfile
        >>> history = History()
        >>> path = tempfile.mkdtemp() + "/history.json"
        >>> history.to_json(path)
        >>> History.from_json(path).records
        []
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:  # includes errors of JSON and of UTF-8
            raise CheckpointError(f"cannot be read as a history: {error}", path=path) from None

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the records to a CSV file, at once or not at all. A missing validation loss is an empty field."""
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        write_file(path, text.getvalue())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the losses of training and validation, the floor and the start of over-fitting into a PNG file.

        The axis has bits a byte where the validation has them, also for the training loss, by the validation's bytes a
        token. Else it has nats a token.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there is no record to draw.
        """
        if not self.records:
            raise ValueError("the history has no records to draw")
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("the loss curve needs matplotlib: pip install 'soma-native[plot]'") from None
        figure = Figure(figsize=(8, 5), layout="constrained")
        self._draw(figure.subplots())
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        write_file(path, picture.getvalue())

    def _draw(self, axes: Any) -> None:
        bits = self._bits_per_nat()
        unit = 1.0 if bits is None else bits

        def curve(label: str, points: list[tuple[int, float]]) -> None:
            if points:
                axes.plot([step for step, _ in points], [unit * loss for _, loss in points], marker=".", label=label)

        judged = [(record["step"], _val_loss(record)) for record in self.records if record["val_loss"] is not None]
        averaged = math.inf if self.averaged_from is None else self.averaged_from
        curve("training", [(record["step"], record["train_loss"]) for record in self.records])
        curve("validation", [point for point in judged if point[0] <= averaged])
        curve("validation, averaged weights", [point for point in judged if point[0] > averaged])
        if self.best_teacher is not None:
            lowest = unit * self.best_teacher
            axes.axhline(lowest, color="tab:purple", linestyle=":", linewidth=1, label=f"best teacher, {lowest:.3f}")
        if self.floor is not None and bits is not None:
            floor = {"character 5-gram": self.floor.ngram, "single tokens": self.floor.tokens, "xz -9e": self.floor.xz}
            for style, (name, height) in zip((":", "-.", "--"), floor.items(), strict=True):
                if height is not None:
                    axes.axhline(height, color="grey", linestyle=style, linewidth=1, label=f"{name}, {height:.3f}")
        turn = self.overfit_from
        if turn is not None:
            lowest = unit * _val_loss(turn)
            axes.axvline(turn["step"], color="grey", linestyle="--", linewidth=1)
            axes.annotate(
                f"over-fitting from here\n(validation {lowest:.3f})",
                (turn["step"], lowest), xytext=(6, -30), textcoords="offset points", fontsize="small",
            )  # fmt: skip
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)" if bits is None else "loss (bits a byte)")
        axes.grid(alpha=0.3)
        axes.legend()

    def plot_if_possible(self, path: str | os.PathLike[str]) -> None:
        """`plot`, or nothing if matplotlib is missing, the file cannot be written, or there is no record."""
        with contextlib.suppress(ImportError, OSError, ValueError):
            self.plot(path)

    def __repr__(self) -> str:
        last = f", last {self.records[-1]}" if self.records else ""
        return f"History({len(self.records)} records{last})"


def bits_text(record: Record, digits: int = 4) -> str:
    """The bits per byte of a record, to stand behind its validation loss; "" where there are none."""
    bits = record["val_bits_per_byte"]
    return "" if bits is None else f" ({bits:.{digits}f} bits/byte)"


def _val_loss(record: Record) -> float:
    loss = record["val_loss"]
    return float("inf") if loss is None else loss
