"""Whether a run trains teachers before its own model: what pays where the time allows many epochs of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from soma_native.model.flops import flops_per_token
from soma_native.planning.candidates import MOST_MINUTES, START, TRAINING, Candidate, Outlook, judge, memory_of
from soma_native.planning.speed import Speed
from soma_native.training.memory import COMFORTABLE

DISTILL = 0.7  # share of the teachers in the loss
_MOST = 4
_EPOCHS = 30.0  # of a teacher; one model over-fits a tiny text after 23 to 45 (docs/LOG.md)
_LEAST = 25.0  # epochs of a teacher, with fewer of which there are fewer teachers
_STUDENT = 2.0  # epochs of the model for one of a teacher, at least
_FORWARD = 1 / 3  # of a step: what a teacher takes of each step of the model


@dataclass(frozen=True)
class Lessons:
    """How the epochs of a run are shared out.

    Attributes:
        teachers: their number.
        each: epochs of a teacher.
        epochs: of the model.
    """

    teachers: int
    each: float
    epochs: float

    @property
    def length(self) -> float:
        """The time of a teacher, as a part of the model's."""
        return float(f"{self.each / (self.epochs * self.slower):.3g}")

    @property
    def slower(self) -> float:
        """How many times as long a step of the model takes as one without teachers."""
        return 1 + self.teachers * _FORWARD

    def flops(self, each: Candidate, pairs: float) -> float:
        """Floating-point operations of all, where an epoch has so many pairs."""
        step, forward = (flops_per_token(each.config, each.window, training) for training in (True, False))
        return pairs * (step * self.teachers * self.each + (step + self.teachers * forward) * self.epochs)

    def __str__(self) -> str:
        return (
            f"teachers: {self.teachers} model{'s' * (self.teachers != 1)} of {self.each:.0f} epochs each "
            "first, then the model learns from the text and from their mean"
        )


def lessons(epochs: float, asked: int | None = None, most: int = _MOST) -> Lessons | None:
    """The lessons that the time of so many epochs of one model allows; None where one model alone is better.

    Args:
        epochs: of one model.
        asked: the number of teachers that is to be, whatever the time allows.
        most: teachers that there may be else.

    >>> lessons(650.0)
    Lessons(teachers=4, each=30.0, epochs=227.14285714285717)
    >>> lessons(140.0).teachers, lessons(100.0)
    (2, None)
    """
    for count in range(most, 1, -1) if asked is None else (asked,):
        each = min(_EPOCHS, epochs / _cost(count))
        if asked or each >= _LEAST:
            return Lessons(count, each, (epochs - count * each) / (1 + count * _FORWARD))
    return None


def taught(
    each: Candidate,
    batches: Sequence[int],
    speed: Speed,
    minutes: float,
    settings: Mapping[str, Any],
    free: int | None,
    device: str = "cpu",
) -> tuple[Outlook, Lessons] | None:
    """The outlook of a model that others teach, with the smallest batch, since a teacher has few steps.

    None where one model alone is better, or where there is no memory for two teachers.
    """
    alone = judge(each, batches[-1:], speed, minutes, settings)
    asked = settings.get("teachers")
    for most in range(_MOST, 1, -1):
        found = lessons(alone.epochs, asked, most)
        if found is None:
            return None
        needed = memory_of(each, alone.batch, speed.precision, settings, found.teachers, device)
        if asked or free is None or needed <= COMFORTABLE * free:
            steps = max(1, round(found.epochs * alone.epoch.steps))
            return replace(alone, epochs=found.epochs, steps=steps), found
    return None


def worth_lessons(each: Candidate, batches: Sequence[int], speed: Speed, minutes: float) -> float:
    """At least `minutes`, and so many that the most teachers learn in full that may be with `MOST_MINUTES`."""
    epoch = each.epochs_by[batches[-1]]
    for count in range(_MOST, 1, -1):
        seconds = _EPOCHS * _cost(count) * speed.seconds(each.config, epoch.steps, epoch.padded, each.window)
        needed = math.ceil((seconds + START) / (6 * TRAINING)) / 10
        if needed <= MOST_MINUTES:
            return max(minutes, needed)
    return minutes


def _cost(teachers: int) -> float:
    """The epochs of one model in whose time teachers have one each, and their student its least."""
    return teachers + _STUDENT * (1 + teachers * _FORWARD)
