"""The learning rate of each step, and the checks of the settings of a training run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from soma_native.optim.schedule import Schedule


def nanogpt_lr(step: int, lr: float, warmup: int, decay_steps: int, min_lr: float) -> float:
    """nanoGPT's recipe, from the description in its README: linear warm-up, then a cosine to min_lr."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if step > decay_steps:
        return min_lr
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (decay_steps - warmup))) * (lr - min_lr)


@pytest.mark.parametrize("warmup", [0, 1, 100])
def test_cosine_follows_the_recipe(warmup: int) -> None:
    schedule = Schedule(lr=1e-3, total_steps=2000, warmup_steps=warmup, min_lr=1e-4)
    for step in range(2100):
        assert schedule(step) == pytest.approx(nanogpt_lr(step, 1e-3, warmup, 2000, 1e-4), rel=1e-12)


def test_the_floor_is_a_tenth_unless_given() -> None:
    assert Schedule(lr=0.5, total_steps=10)(10) == pytest.approx(0.05)
    assert Schedule(lr=0.5, total_steps=10, min_lr=0.0)(10) == 0.0


def test_constant_stays_after_the_warm_up() -> None:
    schedule = Schedule(lr=0.5, total_steps=10, warmup_steps=4, kind="constant")
    assert [schedule(step) for step in range(10)] == pytest.approx([0.1, 0.2, 0.3, 0.4] + [0.5] * 6)


def test_linear_falls_to_nothing_after_the_warm_up() -> None:
    schedule = Schedule(lr=0.5, total_steps=9, warmup_steps=4, kind="linear")
    assert [schedule(step) for step in range(11)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]
    )
    assert Schedule(lr=0.5, total_steps=9, kind="linear", min_lr=0.1)(9) == 0.1


@pytest.mark.parametrize(
    ("warmup", "fraction", "rates"),
    [
        (0, 0.4, [1.0] * 7 + [0.75, 0.5, 0.25]),
        (2, 0.2, [1 / 3, 2 / 3] + [1.0] * 7 + [0.5]),
        (2, 1.0, [1 / 3, 2 / 3] + [(10 - step) / 8 for step in range(2, 10)]),  # all that the warm-up leaves
        (9, 0.01, [(step + 1) / 10 for step in range(9)] + [1.0]),  # the last step alone
    ],
)
def test_wsd_is_stable_and_then_falls(warmup: int, fraction: float, rates: list[float]) -> None:
    schedule = Schedule(lr=1.0, total_steps=10, warmup_steps=warmup, kind="wsd", decay_fraction=fraction)
    assert [schedule(step) for step in range(10)] == pytest.approx(rates)
    assert schedule(10) == schedule(99) == 0.0


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5, math.nan])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="decay_fraction must be"):
        Schedule(lr=0.1, total_steps=10, kind="wsd", decay_fraction=fraction)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_warm_up_must_be_shorter_than_the_training(warmup: int) -> None:
    with pytest.raises(ValueError, match="warmup_steps must be at least 0 and below the 10 steps"):
        Schedule(lr=0.1, total_steps=10, warmup_steps=warmup)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule must be one of cosine, wsd, linear, constant, got 'step'"):
        Schedule(lr=0.1, total_steps=10, kind="step")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 2, "steps": 3}, ValueError, "steps and epochs cannot both be given, got 3 and 2"),
        ({"steps": 2.5}, TypeError, "steps must be an integer"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"batch_size": None}, TypeError, "batch_size must be an integer"),
        ({"seq_len": 0}, ValueError, "seq_len must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be from 0 to"),
        ({"seed": 1 << 64}, ValueError, "seed must be from 0 to"),
        ({"sampling": "shuffle"}, ValueError, "sampling must be one of epoch, random, got 'shuffle'"),
        ({"schedule": "step"}, ValueError, "schedule must be one of cosine, wsd, linear, constant, got 'step'"),
        ({"decay_fraction": 0}, ValueError, "decay_fraction must be above 0 and at most 1"),
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of adamw, muon, got 'sgd'"),
        ({"optimizer": None}, ValueError, "optimizer must be one of"),
        ({"cautious_decay": 1}, TypeError, "cautious_decay must be True or False"),
        ({"ema": 1.0}, ValueError, "ema must be at least 0 and below 1"),
        ({"tail_average": 0}, ValueError, "tail_average must be above 0 and at most 1"),
        ({"ema": 0.9, "tail_average": 0.5}, ValueError, "tail_average and ema cannot both be given"),
        ({"lr": 0}, ValueError, "lr must be above 0"),
        ({"lr": math.nan}, ValueError, "lr must be finite"),
        ({"lr": "fast"}, TypeError, "lr must be a number"),
        ({"lr": 0.1, "min_lr": 0.2}, ValueError, "min_lr must not be above lr, got 0.2 and 0.1"),
        ({"betas": 0.9}, TypeError, "betas must be a pair"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0"),
        ({"max_grad_norm": math.inf}, ValueError, "max_grad_norm must be finite"),
        ({"final_weight_decay": -1.0}, ValueError, "final_weight_decay must be at least 0"),
        (
            {"final_weight_decay": 1.0, "schedule": "constant"},
            ValueError,
            "final_weight_decay needs a learning rate that falls, schedule is 'constant'",
        ),
        ({"val_fraction": 1.0}, ValueError, "val_fraction must be at least 0 and below 1"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"keep_best": 1}, TypeError, "keep_best must be True or False"),
        ({"resume": True}, ValueError, "resume needs checkpoint_dir"),
        ({"checkpoint_every": 5}, ValueError, "checkpoint_every needs checkpoint_dir"),
        ({"checkpoint_minutes": -1}, ValueError, "checkpoint_minutes must be at least 0"),
        ({"checkpoint_dir": 5}, TypeError, "checkpoint_dir must be the path of a folder"),
        ({"learning_rate": 0.1}, TypeError, "learning_rate"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        soma.TrainConfig(**settings)


def test_what_is_left_out_is_the_optimizer_s() -> None:
    config, muon = soma.TrainConfig(), soma.TrainConfig(optimizer="muon")
    assert (config.lr, config.betas) == (1e-3, (0.9, 0.95))
    assert (muon.lr, muon.betas) == (3e-3, (0.9, 0.99))
    given = soma.TrainConfig(optimizer="muon", lr=0.5, betas=(0.1, 0.2))
    assert (given.lr, given.betas) == (0.5, (0.1, 0.2))


def test_settings_go_through_json_and_back() -> None:
    config = soma.TrainConfig(
        epochs=np.int64(3), lr=np.float32(0.5), betas=[0.8, 0.9], checkpoint_dir=Path("run")  # type: ignore[arg-type]
    )  # fmt: skip
    again = soma.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert (again.epochs, again.lr, again.betas, again.checkpoint_dir) == (3, 0.5, (0.8, 0.9), "run")
    with pytest.raises(ValueError, match="colour: not a setting of TrainConfig"):
        soma.TrainConfig.from_dict({**config.to_dict(), "colour": "red"})
