"""The learning rate of each step: a linear warm-up, then a cosine decay or a constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

from soma_native._checks import choice
from soma_native.errors import ArgumentError

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step.

    Step s (from 0) of a warm-up of w steps has `lr * (s + 1) / (w + 1)`. After it, "constant" stays at `lr`, and
    "cosine" follows half a period of the cosine from `lr` to `min_lr` (Loshchilov and Hutter, "SGDR: Stochastic
    Gradient Descent with Warm Restarts", 2016, equation 5, without restarts):
    `min_lr + (lr - min_lr) (1 + cos(pi (s - w) / (total_steps - w))) / 2`.

    Args:
        lr: the highest learning rate.
        total_steps: number of steps of the training; later steps have the rate of the end.
        warmup_steps: number of steps of the warm-up, below `total_steps`.
        min_lr: the learning rate at the end of the cosine; None means lr / 10.
        kind: "cosine" or "constant".

    Raises:
        ValueError: an argument is outside its range.

    >>> schedule = Schedule(lr=1e-3, total_steps=100, warmup_steps=9)
    >>> [round(schedule(step), 6) for step in (0, 8, 9, 100)]
    [0.0001, 0.0009, 0.001, 0.0001]
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    min_lr: float | None = None
    kind: str = "cosine"

    def __post_init__(self) -> None:
        choice("schedule", self.kind, SCHEDULES)
        if not 0 <= self.warmup_steps < self.total_steps:
            problem = f"must be at least 0 and below the {self.total_steps} steps of the training"
            raise ArgumentError("warmup_steps", f"{problem}, got {self.warmup_steps}")

    def __call__(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return self.lr
        floor = self.lr / 10 if self.min_lr is None else self.min_lr
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return floor + (self.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
