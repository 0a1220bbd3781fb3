"""Decides by the clock how many steps a run has. The decisions are kept, so that a resumed run repeats them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from soma_native.training.history import Decision
from soma_native.training.layout import UNDECIDED, Layout

Clock = Callable[[], float]

_MARGIN, _MOST_MARGIN = 0.01, 2.0  # of the time, and in seconds: not planned for
_EVALUATIONS, _EVALUATED = 10, 0.2  # most evaluations of a run, and the part of the time that they may take
_WORTH = 0.003  # part of the time below which a correction is not worth a decision
_GRACE = 0.02  # part of the time by which a run that lost time may be late, to let its rate fall
_COOLED = 0.1  # of the steps so far: the length of a fall that was not planned
_PAUSE = 5.0  # a step that takes this many times the usual counts as this much
_CALIBRATED = 0.25  # of the time: the longest calibration


def forwards(clock: Clock) -> Clock:
    """A clock that stands still where `clock` goes back."""
    latest = clock()

    def now() -> float:
        nonlocal latest
        latest = max(latest, clock())
        return latest

    return now


def cool_down(layout: Layout, step: int) -> Decision:
    """The end of a run whose validation loss falls no more: its rate falls over a tenth of the steps so far.

    These are ten steps at least, and no more than were left.
    """
    total = min(layout.total_steps, step + max(10, math.ceil(_COOLED * step)))
    return {
        "step": step, "total_steps": total, "eval_every": layout.eval_every,
        "max_eval_windows": layout.max_eval_windows, "reason": "early stopping",
    }  # fmt: skip


@dataclass
class Measured:
    """What a run has measured, in seconds. Saved with its state."""

    step: float = math.inf
    validation: float | None = None
    save: float | None = None
    check_at: int = 1  # the step after which the plan is checked next


class Pace:
    """Keeps a run within its minutes, with a schedule that is complete at its end.

    The first steps are the calibration: three of them, or fewer if they take a quarter of the time. Then the first
    decision says how many steps the run has. It leaves out the time of validations and saves, and a hundredth of all,
    at most 2 s. The plan is checked after twice as many steps each time, and from the middle on after each eighth of
    the steps that are left, so that errors vanish towards the end. A check makes a decision only if it moves the end by
    more than 0.3% of the time. A decision holds from its step on; the steps before it stay as they were. The rate
    that is not falling yet stays as it is, and one that falls goes in its curve from where it is to the new end.

    A check that is due twice as late as predicted is made at once. A step that takes more than five times the usual is
    a pause: it uses up time, and hardly changes the prediction. If a pause leaves too little time (a suspended process,
    a clock that jumps ahead), the rate still falls over up to a tenth of the steps so far, as far as a fiftieth of the
    time allows. If a single step takes longer than that, the run ends after it. A run has one step at least. A clock
    that goes back is taken to stand still. `time.perf_counter` stands still while Linux and macOS sleep, so such a run
    goes on with the time that it had.

    Validations may take a fifth of the time: there are ten, or fewer. If the settings do not limit the windows of a
    validation, the first decision does, such that one takes about a fiftieth of the time.

    Args:
        layout: the plan of the run.
        seconds: at which the run ends, from the call of `fit` on.
        measured: by the run before it was resumed.
        began: the second at which this part of the run began.
    """

    def __init__(self, layout: Layout, seconds: float, measured: Measured, began: float = 0.0) -> None:
        self._layout = layout
        self._budget = max(0.0, seconds - began)
        self._target = seconds - min(_MARGIN * self._budget, _MOST_MARGIN)
        self.measured = measured
        self._laps: list[float] = []
        self._mark: float | None = None
        self._late_at: float | None = None

    def lap(self, kind: Literal["start", "step", "validation", "save"], used: float) -> None:
        """The time since the last lap, which ended when `used` seconds of the run were over, was of this kind."""
        seconds = used - (used if self._mark is None else self._mark)
        self._mark = used
        if kind == "step":
            self._laps.append(seconds)
        elif kind == "validation":
            self.measured.validation = seconds
        elif kind == "save":
            self.measured.save = seconds

    def decide(self, step: int, used: float) -> Decision | None:
        """The decision after `step` steps, when `used` seconds of the run are over; None if nothing changes."""
        layout = self._layout
        calibrating = layout.total_steps == UNDECIDED
        if calibrating and len(self._laps) < 3 and sum(self._laps) < _CALIBRATED * self._budget:
            return None
        if self._late_at is None:
            self._late_at = used + 2 * (self.measured.check_at - step) * self.measured.step
        if step >= layout.total_steps or (step < self.measured.check_at and used < self._late_at):
            return None
        self._learn(calibrating)
        each = max(self.measured.step, 1e-9)
        windows = self._windows(each) if calibrating else layout.max_eval_windows
        validation, save = self._validation(each, windows), self._save()
        total, every = self._total(step, used, each, validation, save)
        if not calibrating:
            total = max(total, min(layout.total_steps, step + self._least(step, each)))
            if layout.cooling:
                total = min(total, layout.total_steps)
        keep = abs(total - layout.total_steps) * each <= _WORTH * self._budget and total > step
        end = layout.total_steps if keep else total
        wait = max(1, min(step, (end - step) // 8))
        self.measured.check_at, self._late_at = step + wait, used + 2 * wait * each
        if keep:
            return None
        return {
            "step": step, "total_steps": total, "eval_every": every, "max_eval_windows": windows, "reason": "clock"
        }  # fmt: skip

    def _learn(self, calibrating: bool) -> None:
        """Take the steps since the last check into the seconds of a step. The first step of all prepares memory."""
        laps, self._laps = self._laps, []
        if calibrating:
            laps = laps[1:] or laps
            self.measured.step = sum(laps) / len(laps)
        elif laps:
            old = self.measured.step
            usual = statistics.median_low(laps) if len(laps) >= 3 else old  # one or two may be a pause
            mean = sum(min(lap, _PAUSE * max(old, usual)) for lap in laps) / len(laps)
            part = 1.0 if usual > 2 * old else min(0.5, len(laps) / 32)  # a machine that has become slow is believed
            self.measured.step = old + part * (mean - old)

    def _windows(self, each: float) -> int | None:
        """Most windows of a validation. One takes about half the time that it takes in training."""
        layout, most = self._layout, self._layout.max_eval_windows
        if layout.validation is None or most is not None:
            return most
        config = layout.config
        per_window = 0.5 * each / (config.batch_size * config.grad_accumulation)
        most = max(config.batch_size, int(_EVALUATED / _EVALUATIONS * self._budget / per_window))
        return None if most >= len(layout.validation) else most

    def _validation(self, each: float, windows: int | None) -> float:
        if self.measured.validation is not None:
            return self.measured.validation
        if self._layout.validation is None:
            return 0.0
        config, count = self._layout.config, len(self._layout.validation)
        return 0.5 * each * min(count, windows or count) / (config.batch_size * config.grad_accumulation)

    def _save(self) -> float:
        """The seconds of a save. Before the first one: weights twice, two moments and an average at 200 MB/s."""
        if self.measured.save is not None:
            return self.measured.save
        return 0.0 if self._layout.config.checkpoint_dir is None else self._layout.model.num_parameters * 20 / 200e6

    def _total(self, step: int, used: float, each: float, validation: float, save: float) -> tuple[int, int]:
        """The steps that the time that is left allows in all, and the steps between two evaluations."""
        config = self._layout.config
        if config.checkpoint_every is not None:
            each += save / config.checkpoint_every
        elif config.checkpoint_minutes:
            each += each * save / (60 * config.checkpoint_minutes)
        left = max(0.0, self._target - used - validation - save)
        if config.eval_every is not None:
            return step + int(left / (each + validation / config.eval_every)), config.eval_every
        allowed = _EVALUATED * self._budget / validation if validation else math.inf
        evaluations = max(1, int(min(_EVALUATIONS, allowed)))
        every = -(-max(1, step + int(left / each)) // evaluations)
        total = step + int(left / (each + validation / every))
        return total, -(-max(1, total) // evaluations)

    def _least(self, step: int, each: float) -> int:
        """The steps that a rate which has not fallen yet needs, as far as the time allows."""
        schedule = self._layout.schedule
        if schedule.kind == "constant":
            return 0
        part = min(_COOLED, schedule.decay_fraction) if schedule.kind == "wsd" else _COOLED
        return min(math.ceil((1 - schedule.done(step)) * part * step), int(_GRACE * self._budget / each))

    def to_dict(self) -> dict[str, float | None]:
        """What was measured, as JSON can hold it."""
        values = asdict(self.measured)
        return values | {"step": None if math.isinf(self.measured.step) else self.measured.step}

    @staticmethod
    def measured_of(values: dict[str, float | None] | None) -> Measured:
        """The inverse of `to_dict`; what was not measured for None."""
        if values is None:
            return Measured()
        step, check_at = values["step"], values["check_at"]
        return Measured(math.inf if step is None else step, values["validation"], values["save"], int(check_at or 1))
