"""Runs by time: they end on time with a complete schedule, whatever the clock does, and resume bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, interrupt, losses, make_model, make_trainer, weights
from soma_native.files.atomic_folder import replace_files
from soma_native.files.safetensors_io import TensorFile
from soma_native.training.layout import UNDECIDED, Layout
from soma_native.training.pace import Pace, forwards
from soma_native.training.state import STATE_FILE, read_state, write_state

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

MINUTE: dict[str, Any] = {"epochs": None, "minutes": 1.0, "batch_size": 16, "schedule": "wsd", "val_fraction": 0.2}


class Clock:
    """A clock that steps, validations and saves move, each by its seconds."""

    def __init__(self, step: Callable[[int], float] | float = 0.25, evaluate: float = 0.0, save: float = 0.0) -> None:
        self.now = 1000.0
        self.rates: list[float] = []
        self._step = step if callable(step) else lambda number: step
        self._costs = {"evaluate": evaluate, "checkpoint": save}

    def __call__(self) -> float:
        return self.now

    def move(self, event: soma.Event) -> None:
        self.now += self._costs.get(event.kind, 0.0)
        if event.kind == "step":
            self.now += self._step(event.step)
            self.rates.append(event.lr)


def by_time(clock: Clock, model_seed: int = 0, **settings: Any) -> soma.Trainer:
    config = soma.TrainConfig(**{**MINUTE, "lr": 1e-2, **settings})
    return soma.Trainer(make_model(model_seed), WORDS, config, clock=clock)


SPEEDS: dict[str, Callable[[int], float] | float] = {
    "steady": 0.25,
    "one step a second": 1.0,
    "slower": lambda step: 0.1 if step < 100 else 0.3,
    "faster": lambda step: 0.4 if step < 60 else 0.1,
    "much slower": lambda step: 0.1 if step < 100 else 2.0,
    "uneven": lambda step: (0.1, 0.7, 0.2)[step % 3],
    "slow at first": lambda step: 8.0 if step == 1 else 0.2,
    "a pause": lambda step: 20.0 if step == 50 else 0.2,
}


@pytest.mark.parametrize("schedule", ["wsd", "linear", "cosine"])
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_run_ends_on_time_and_its_schedule_is_complete(speed: str, schedule: str) -> None:
    clock = Clock(SPEEDS[speed])
    history = by_time(clock, schedule=schedule).fit(SENTENCES, callbacks=clock.move)
    assert history.stop_reason == "finished"
    assert 57 <= clock.now - 1000 <= 61.2
    assert history.decisions[-1]["total_steps"] == history.records[-1]["step"] == len(clock.rates)
    assert max(clock.rates) == pytest.approx(1e-2)
    floor = 1e-3 if schedule == "cosine" else 0.0
    assert clock.rates[-1] - floor < (0.2 if speed == "much slower" else 0.1) * 1e-2
    top = clock.rates.index(max(clock.rates))
    assert all(one >= other for one, other in itertools.pairwise(clock.rates[top:])), "no rate rises again"
    assert len(history.decisions) < 60


LOST: dict[str, tuple[Callable[[int], float], int]] = {
    "a pause": (lambda step: 40.0 if step == 20 else 0.25, 1),
    "two pauses": (lambda step: 25.0 if step in (20, 40) else 0.25, 1),
    "a short pause": (lambda step: 2.0 if step == 20 else 0.25, 0),
    "uneven": (lambda step: (0.7, 2.0, 1.1)[step % 3], 0),
    "a late step": (lambda step: 4.0 if step == 54 else 1.0, 0),
}


@pytest.mark.parametrize("clock", LOST)
def test_a_run_that_lost_half_of_its_steps_says_so_once(clock: str) -> None:
    seconds, warnings = LOST[clock]
    clock_ = Clock(seconds, evaluate=1.5 if clock == "uneven" else 0.0)
    history = by_time(clock_).fit(SENTENCES, callbacks=clock_.move)
    assert history.stop_reason == "finished"
    found = [warning for warning in history.warnings if "a clock that jumped" in warning]
    assert len(found) == warnings and all("give more minutes" in warning for warning in found)


def test_a_run_that_an_older_version_ended_by_patience_stays_as_it_is(
    tmp_path: Path, find_losses: Callable[..., None]
) -> None:
    """It ended at once, without a decision."""
    find_losses(1.0, 2.0)
    settings: dict[str, Any] = {
        "minutes": None, "steps": 100, "eval_every": 10, "patience": 1, "schedule": "cosine", "checkpoint_dir": tmp_path
    }  # fmt: skip
    first = by_time(Clock(), **settings)
    first.fit(SENTENCES, callbacks=at_step(20, first.stop))
    before = weights(soma.load(tmp_path)[0])
    state, steps = read_state(tmp_path)
    state.history |= {"stop_reason": "early stopping", "decisions": []}
    with TensorFile(tmp_path / STATE_FILE) as file:
        arrays = {name: file.read(name) for name in file.entries}
    with replace_files(tmp_path) as staging:
        write_state(staging.path / STATE_FILE, state, steps, arrays)
    again = by_time(Clock(), **settings, resume=True).fit(SENTENCES)
    assert (again.records[-1]["step"], again.stop_reason, again.decisions) == (20, "early stopping", [])
    assert weights(soma.load(tmp_path)[0]) == before


def test_a_steady_clock_needs_one_decision() -> None:
    clock = Clock()
    history = by_time(clock).fit(SENTENCES, callbacks=clock.move)
    first = history.decisions[0]
    assert (first["step"], first["reason"]) == (3, "clock")
    assert len({decision["total_steps"] for decision in history.decisions}) <= 3  # validations took no time after all
    falling = [step for step, rate in enumerate(clock.rates) if rate < 1e-2 * 0.999 and step > 100]
    assert falling[0] == pytest.approx(len(clock.rates) / 2, abs=6), "wsd falls over the last half"
    assert len(history.records) in (9, 10, 11)


@pytest.mark.parametrize("costs", [(2.0, 0.0), (1.0, 3.0), (15.0, 0.0)])
def test_validations_and_saves_are_part_of_the_time(costs: tuple[float, float], tmp_path: Path) -> None:
    clock = Clock(0.1, *costs)
    settings = {"checkpoint_dir": tmp_path, "checkpoint_minutes": 0.25} if costs[1] else {}
    history = by_time(clock, **settings).fit(SENTENCES, callbacks=clock.move)
    assert 57 <= clock.now - 1000 <= 60
    assert len(history.records) <= max(1, 0.2 * 60 / costs[0]) + 3
    assert history.records[-1]["step"] == len(clock.rates)


def test_the_windows_of_a_validation_are_limited_where_it_would_take_too_long() -> None:
    slow, fast = Clock(2.0), Clock(0.05)
    long = {"batch_size": 1}
    history = by_time(slow, **long).fit(SENTENCES, callbacks=slow.move)
    limited = history.decisions[0]["max_eval_windows"]
    assert limited is not None and limited < round(0.2 * len(SENTENCES))
    assert by_time(fast, **long).fit(SENTENCES, callbacks=fast.move).decisions[0]["max_eval_windows"] is None
    slow = Clock(2.0)
    given = by_time(slow, **long, max_eval_windows=7).fit(SENTENCES, callbacks=slow.move)
    assert given.decisions[0]["max_eval_windows"] == 7


OPTIONS: dict[str, dict[str, Any]] = {
    "wsd": {},
    "muon, tail": {"optimizer": "muon", "tail_average": 0.3, "final_weight_decay": 0.5},
    "cosine, ema": {"schedule": "cosine", "ema": 0.9},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("step", [10, 40, 70])
def test_a_resumed_run_is_the_same_run_and_the_time_used_counts(tmp_path: Path, options: str, step: int) -> None:
    settings = {**OPTIONS[options], "checkpoint_minutes": 1e9, "checkpoint_dir": tmp_path / "a"}
    one, two, three = (Clock(0.5) for _ in range(3))
    whole = by_time(one, **settings)
    expected = whole.fit(SENTENCES, callbacks=one.move)
    settings["checkpoint_dir"] = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        by_time(two, **settings).fit(SENTENCES, callbacks=[two.move, at_step(step, interrupt)])
    three.now = 5.0  # another boot of the machine
    again = by_time(three, model_seed=9, **settings, resume=True)
    history = again.fit(SENTENCES, callbacks=three.move)
    assert (two.now - 1000) + (three.now - 5) == pytest.approx(one.now - 1000)
    assert history.decisions == expected.decisions and len(expected.decisions) > 1
    assert losses(history) == losses(expected)
    assert weights(again.model) == weights(whole.model)
    assert soma.History.from_json(tmp_path / "b" / "history.json").decisions == expected.decisions


@pytest.mark.parametrize("step", [1, 2, 100])
def test_a_resumed_run_keeps_the_past_and_goes_on_with_the_time_that_is_left(tmp_path: Path, step: int) -> None:
    clock = Clock(0.2)
    first = by_time(clock, checkpoint_dir=tmp_path)
    first.fit(SENTENCES, callbacks=[clock.move, at_step(step, first.stop)])
    slow = Clock(1.0)
    again = soma.Trainer.resume(tmp_path)
    again = soma.Trainer(again.model, again.tokenizer, again.config, clock=slow)
    history = again.fit(SENTENCES, callbacks=slow.move)
    assert history.decisions[: len(first.history.decisions)] == first.history.decisions
    assert 57 <= (clock.now - 1000) + (slow.now - 1000) <= 60
    assert soma.Trainer.resume(tmp_path).fit(SENTENCES).records == history.records, "a finished run stays finished"


def test_a_step_longer_than_the_time_is_the_only_one() -> None:
    clock = Clock(500.0)
    history = by_time(clock).fit(SENTENCES, callbacks=clock.move)
    assert (history.stop_reason, [record["step"] for record in history.records]) == ("finished", [1])


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear"])
def test_a_clock_that_jumps_ahead_leaves_a_short_fall(schedule: str) -> None:
    clock = Clock(lambda step: 300.0 if step == 100 else 0.1)
    history = by_time(clock, schedule=schedule).fit(SENTENCES, callbacks=clock.move)
    assert history.stop_reason == "finished"
    assert 105 <= len(clock.rates) <= 112, "a tenth of the steps so far, at most a fiftieth of the time"
    floor = 1e-3 if schedule == "cosine" else 0.0
    assert clock.rates[99] > 0.7e-2 and clock.rates[-1] - floor < 2e-3


def test_a_clock_that_goes_back_stands_still() -> None:
    clock = Clock(lambda step: -40.0 if step == 50 else 0.2)
    history = by_time(clock).fit(SENTENCES, callbacks=clock.move)
    assert history.stop_reason == "finished"
    assert len(clock.rates) == pytest.approx(59 / 0.2 + 40 / 0.2, rel=0.03)  # until the clock has caught up
    times = iter([3.0, 5.0, 4.0, 6.0])
    now = forwards(lambda: next(times))
    assert [now(), now(), now()] == [5.0, 5.0, 6.0]


def test_a_constant_rate_runs_by_time_too() -> None:
    clock = Clock()
    history = by_time(clock, schedule="constant", warmup_steps=3).fit(SENTENCES, callbacks=clock.move)
    assert 57 <= clock.now - 1000 <= 60 and set(clock.rates[3:]) == {1e-2}
    assert history.stop_reason == "finished"


def test_warm_up_momentum_and_tail_have_the_steps_of_the_decisions() -> None:
    config = soma.TrainConfig(**{**MINUTE, "optimizer": "muon", "tail_average": 0.25, "lr": 1.0})
    layout = Layout(make_model(), WORDS, config, SENTENCES, None)
    assert layout.total_steps == UNDECIDED and layout.schedule(0) == pytest.approx(1 / 101)
    decision: Any = {"step": 3, "total_steps": 400, "eval_every": 40, "max_eval_windows": None, "reason": "clock"}
    layout.decide(decision)
    assert (layout.schedule.warmup_steps, layout.momentum_steps, layout.averaged_from) == (40, 40, 300)
    layout.decide({**decision, "step": 100, "total_steps": 200})
    assert (layout.schedule.warmup_steps, layout.momentum_steps, layout.averaged_from) == (40, 40, 150)
    layout.decide({**decision, "step": 160, "total_steps": 1000})
    assert layout.averaged_from == 150, "a tail that has begun goes on"
    given = dataclasses.replace(config, warmup_steps=300)
    layout = Layout(make_model(), WORDS, given, SENTENCES, None)
    layout.decide(decision)
    assert layout.schedule.warmup_steps == 200


def test_what_was_measured_goes_through_json() -> None:
    layout = Layout(make_model(), WORDS, soma.TrainConfig(**MINUTE), SENTENCES, None)
    for values in ({"step": None, "validation": None, "save": 2.0, "check_at": 1},
                   {"step": 0.5, "validation": 1.0, "save": None, "check_at": 9}):  # fmt: skip
        assert Pace(layout, 60.0, Pace.measured_of(values)).to_dict() == values
    assert math.isinf(Pace.measured_of(None).step)


def test_minutes_are_checked() -> None:
    for wrong, message in ((0, "minutes must be above 0"), (math.nan, "minutes must be finite")):
        with pytest.raises(ValueError, match=message):
            soma.TrainConfig(minutes=wrong)
    with pytest.raises(ValueError, match="minutes and epochs cannot both be given, got 2 and 3"):
        soma.TrainConfig(minutes=2, epochs=3)


def test_other_minutes_are_another_run(tmp_path: Path) -> None:
    clock = Clock(5.0)
    by_time(clock, checkpoint_dir=tmp_path).fit(SENTENCES, callbacks=clock.move)
    with pytest.raises(ValueError, match=r"minutes=2.0: this run has 1.0\."):
        soma.Trainer.resume(tmp_path, minutes=2).fit(SENTENCES)
    with pytest.raises(ValueError, match=r"epochs=3: this run has 1.0 minutes\."):
        make_trainer(**{**MINUTE, "minutes": None, "epochs": 3}, checkpoint_dir=tmp_path, resume=True).fit(SENTENCES)


# --- early stopping


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_patience_lets_the_rate_fall_before_the_end(
    schedule: str, tmp_path: Path, find_losses: Callable[..., None]
) -> None:
    settings: dict[str, Any] = {
        "epochs": None, "steps": 1000, "schedule": schedule, "eval_every": 40, "patience": 2, "warmup_steps": 4,
        "checkpoint_dir": tmp_path / "whole",
    }  # fmt: skip
    given = [3.0, 2.0, 2.5, 2.5, 1.5]
    find_losses(*given)
    clock = Clock()
    whole = by_time(clock, **{**settings, "minutes": None})
    history = whole.fit(SENTENCES, callbacks=clock.move)
    assert history.stop_reason == "early stopping"
    assert [(d["step"], d["total_steps"], d["reason"]) for d in history.decisions] == [(160, 176, "early stopping")]
    assert [record["step"] for record in history.records] == [40, 80, 120, 160, 176]
    assert clock.rates[160:] == pytest.approx([1e-2 * (1 - step / 16) for step in range(16)])
    assert weights(soma.load(tmp_path / "whole")[0]) == weights(whole.model), "the fall made the best model"

    find_losses(*given)
    settings |= {"minutes": None, "checkpoint_dir": tmp_path / "parts"}
    with pytest.raises(KeyboardInterrupt):
        by_time(Clock(), **settings).fit(SENTENCES, callbacks=at_step(165, interrupt))
    again = by_time(Clock(), model_seed=9, **settings, resume=True)
    assert losses(again.fit(SENTENCES)) == losses(history)
    assert again.history.stop_reason == "early stopping"
    assert weights(again.model) == weights(whole.model)
    finished = by_time(Clock(), **settings, resume=True).fit(SENTENCES)
    assert finished.stop_reason == "early stopping" and finished.decisions == history.decisions


def test_a_fall_that_has_begun_is_cut_short_and_the_end_of_the_run_stays(find_losses: Callable[..., None]) -> None:
    settings: dict[str, Any] = {"minutes": None, "eval_every": 10, "patience": 1, "warmup_steps": 0, "steps": 100}
    find_losses(*[1.0] * 6, *[2.0] * 9)
    clock = Clock()
    by_time(clock, **settings, min_delta=0.0, decay_fraction=0.9).fit(SENTENCES, callbacks=clock.move)
    before = 1e-2 * (1 - 10 / 90)
    assert clock.rates[20:] == pytest.approx([before * (1 - step / 10) for step in range(10)])
    find_losses(1.0, 2.0, 2.0)
    clock = Clock()
    late = by_time(clock, **{**settings, "steps": 24}).fit(SENTENCES, callbacks=clock.move)
    assert late.records[-1]["step"] == 24 and late.stop_reason == "early stopping"


def test_cosine_and_line_go_on_in_their_curve_to_an_earlier_end(find_losses: Callable[..., None]) -> None:
    for schedule, end in (("cosine", 1e-3), ("linear", 0.0)):
        find_losses(1.0, *[2.0] * 9)
        settings = {"minutes": None, "steps": 100, "eval_every": 10, "patience": 1, "schedule": schedule}
        clock = Clock()
        history = by_time(clock, **settings).fit(SENTENCES, callbacks=clock.move)
        assert (history.records[-1]["step"], history.stop_reason) == (30, "early stopping")
        falls = [one - other for one, other in itertools.pairwise(clock.rates[20:])]
        assert min(falls) > 0, "it falls in every step"
        assert clock.rates[-1] - end < 0.11 * (clock.rates[20] - end)


def test_patience_in_a_run_by_time_stays_within_the_time(find_losses: Callable[..., None]) -> None:
    find_losses(*[1.0] * 99)
    clock = Clock(0.25)
    history = by_time(clock, patience=2, schedule="wsd").fit(SENTENCES, callbacks=clock.move)
    assert history.stop_reason == "early stopping" and history.decisions[-1]["reason"] == "early stopping"
    stopped = history.decisions[-1]["step"]
    assert len(clock.rates) == stopped + max(10, math.ceil(stopped / 10)) and clock.rates[-1] <= 1e-2 / 9
    find_losses(*[1.0] * 99)
    clock = Clock(lambda step: 4.0 if step > 72 else 0.25)  # slow from the decision on
    history = by_time(clock, patience=2, schedule="wsd").fit(SENTENCES, callbacks=clock.move)
    assert history.stop_reason == "early stopping" and clock.now - 1000 <= 63
