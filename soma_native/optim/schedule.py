"""The learning rate of each step: a linear warm-up, then a cosine, a line, a constant, or a constant and a line."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from soma_native._checks import choice, number
from soma_native.errors import ArgumentError

SCHEDULES = ("cosine", "wsd", "linear", "constant")


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step.

    Step s (from 0) of a warm-up of w steps has `lr * (s + 1) / (w + 1)`. After it:

    - "cosine" follows half a period of the cosine from `lr` to `min_lr` (Loshchilov and Hutter, "SGDR: Stochastic
      Gradient Descent with Warm Restarts", 2016, equation 5, without restarts):
      `min_lr + (lr - min_lr) (1 + cos(pi (s - w) / (total_steps - w))) / 2`.
    - "wsd" (warm-up, stable, decay) stays at `lr`, then falls in a line to `min_lr` over the last `decay_fraction` of
      all steps, or over what the warm-up leaves of them.
    - "linear" falls in a line from the end of the warm-up on.
    - "constant" stays at `lr`.

    Args:
        lr: the highest learning rate.
        total_steps: number of steps of the training; later steps have the rate of the end.
        warmup_steps: number of steps of the warm-up, below `total_steps`.
        min_lr: the learning rate at the end of cosine and lines; None means lr / 10 for the cosine and 0 for lines.
        kind: "cosine", "wsd", "linear" or "constant".
        decay_fraction: the part of all steps in which "wsd" falls, above 0 and at most 1.
        fall: (step, part): the fall goes on from this step, where this part of it is done. None means that it begins
            where the kind says; `again` gives others.

    Raises:
        ValueError: an argument is outside its range.

    >>> schedule = Schedule(lr=1e-3, total_steps=100, warmup_steps=9)
    >>> [round(schedule(step), 6) for step in (0, 8, 9, 100)]
    [0.0001, 0.0009, 0.001, 0.0001]
    >>> schedule = Schedule(lr=1e-3, total_steps=100, kind="wsd", decay_fraction=0.4)
    >>> [round(schedule(step), 6) for step in (0, 60, 80, 100)]
    [0.001, 0.001, 0.0005, 0.0]
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float | None = None
    kind: str = "cosine"
    decay_fraction: float = 0.5
    fall: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        choice("schedule", self.kind, SCHEDULES)
        number("decay_fraction", self.decay_fraction, above=0, most=1)
        if not 0 <= self.warmup_steps < self.total_steps:
            problem = f"must be at least 0 and below the {self.total_steps} steps of the training"
            raise ArgumentError("warmup_steps", f"{problem}, got {self.warmup_steps}")

    def __call__(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return self.lr
        done = self.done(step)
        if self.kind == "cosine":
            floor, left = self.lr / 10, 0.5 * (1.0 + math.cos(math.pi * done))
        else:
            floor, left = 0.0, 1.0 - done
        floor = floor if self.min_lr is None else self.min_lr
        return floor + (self.lr - floor) * left

    def done(self, step: int) -> float:
        """How much of the fall is done before step `step`, from 0 to 1 in a line; always 0 for "constant"."""
        if self.kind == "constant":
            return 0.0
        start, before = self._begin() if self.fall is None else self.fall
        return before + (1.0 - before) * min(1.0, max(0, step - start) / max(1, self.total_steps - start))

    def _begin(self) -> tuple[int, float]:
        start = self.warmup_steps
        if self.kind == "wsd":
            start = max(start, self.total_steps - max(1, round(self.decay_fraction * self.total_steps)))
        return start, 0.0

    def again(self, step: int, total_steps: int, cool_down: bool = False) -> Schedule:
        """The schedule of a run that, after `step` steps, is to end after `total_steps`. Its end is complete.

        A rate that falls goes on from where it is. One that does not fall yet stays until the kind lets it fall; with
        `cool_down`, or if the run ends within its warm-up, it falls from here on. Then "constant" falls in a line too.

        >>> schedule = Schedule(lr=1.0, total_steps=100, kind="wsd", decay_fraction=0.4)
        >>> [schedule.again(50, 60)(step) for step in (50, 55, 60)]
        [1.0, 0.5, 0.0]
        >>> [round(schedule.again(80, 90)(step), 6) for step in (80, 85, 90)]
        [0.5, 0.25, 0.0]
        """
        kind, lr, min_lr, warmup_steps = self.kind, self.lr, self.min_lr, self.warmup_steps
        at_once = cool_down or total_steps <= warmup_steps
        if step < warmup_steps and at_once:
            if min_lr is None and kind == "cosine":
                min_lr = lr / 10
            lr, warmup_steps = self(step), 0
            min_lr = None if min_lr is None else min(min_lr, lr)
        if cool_down and kind == "constant":
            kind = "linear"
        after = replace(
            self, lr=lr, total_steps=max(1, total_steps), warmup_steps=warmup_steps, min_lr=min_lr, kind=kind, fall=None
        )
        done = self.done(step)
        if done > 0 or at_once:
            return replace(after, fall=(step, done))
        start = after._begin()[0]
        return after if start >= step or kind != "wsd" else replace(after, fall=(step, 0.0))
