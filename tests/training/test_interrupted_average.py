"""Ctrl-C leaves the average of that moment, and the run goes on as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, at_step, interrupt, losses, make_trainer, weights
from soma_native.files.safetensors_io import TensorFile
from soma_native.training.state import STATE_FILE

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.mark.parametrize("better", [True, False])
def test_ctrl_c_saves_the_average_of_now_unless_an_earlier_one_was_better(
    better: bool, tmp_path: Path, find_losses: Callable[..., None]
) -> None:
    """What was validated as the best goes on with the state, so that the end is that of a whole run."""
    settings: dict[str, Any] = {"ema": 0.9, "val_fraction": 0.2, "eval_every": 6, "checkpoint_minutes": 0}
    given = [3.0, 2.0, 2.5, 2.6] if better else [2.0, 3.0, 3.5, 3.6]
    find_losses(*given)
    whole = make_trainer(**settings, checkpoint_dir=tmp_path / "whole")
    best: list[dict[str, bytes]] = []
    now: list[dict[str, bytes]] = []

    def watch(event: soma.Event) -> None:
        if event.kind == "evaluate" and event.history.best is event.record:
            with event.trainer.averaged() as model:
                best.append(weights(model))
        if event.kind == "step" and event.step == 15:
            with event.trainer.averaged() as model:
                now.append(weights(model))

    expected = losses(whole.fit(SENTENCES, callbacks=watch))
    find_losses(*given)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        make_trainer(**settings, checkpoint_dir=folder).fit(SENTENCES, callbacks=at_step(15, interrupt))
    assert weights(soma.load(folder)[0]) == (now if better else best)[-1]
    find_losses(*given[2:])
    with pytest.raises(KeyboardInterrupt):  # twice: the best is in the state still
        soma.Trainer.resume(folder).fit(SENTENCES, callbacks=at_step(17, interrupt))
    find_losses(*given[2:])
    assert losses(soma.Trainer.resume(folder).fit(SENTENCES)) == expected
    assert weights(soma.load(folder)[0]) == best[-1] == weights(soma.load(tmp_path / "whole")[0])
    with TensorFile(folder / STATE_FILE) as file:
        assert not any(name.startswith("best.") for name in file.entries)


@pytest.mark.parametrize("failing", ["the best", "the average"])
def test_a_save_that_fails_at_ctrl_c_loses_no_run(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find_losses: Callable[..., None]
) -> None:
    """Before any save: the best goes into the folder, then the state, then the average."""
    settings: dict[str, Any] = {"ema": 0.9, "val_fraction": 0.2, "eval_every": 6, "checkpoint_minutes": 0}
    find_losses(3.0, 2.0)
    calls: list[str] = []

    def save(*arguments: Any) -> None:
        calls.append("the best" if not calls else "the average")
        if calls[-1] == failing:
            raise OSError("the disk is full")
        soma.save(*arguments)

    monkeypatch.setattr("soma_native.training.saves.save", save)
    with pytest.raises(OSError, match="the disk is full"):
        make_trainer(**settings, checkpoint_dir=tmp_path).fit(SENTENCES, callbacks=at_step(15, interrupt))
    assert (tmp_path / STATE_FILE).exists() == (tmp_path / "model.safetensors").exists() == (failing == "the average")
    monkeypatch.undo()
    if failing == "the average":
        find_losses(2.5, 2.6)
        assert soma.Trainer.resume(tmp_path).fit(SENTENCES).stop_reason == "finished"


def test_ctrl_c_saves_where_the_model_of_the_folder_is_gone(tmp_path: Path, find_losses: Callable[..., None]) -> None:
    find_losses(3.0, 2.0)
    settings: dict[str, Any] = {"ema": 0.9, "val_fraction": 0.2, "eval_every": 6, "checkpoint_every": 4}
    path = tmp_path / "model.safetensors"
    gone = at_step(15, lambda: (path.unlink(), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        make_trainer(**settings, checkpoint_dir=tmp_path).fit(SENTENCES, callbacks=gone)
    assert soma.load(tmp_path)[0].num_parameters > 0
    find_losses(2.5, 2.6)
    assert soma.Trainer.resume(tmp_path).fit(SENTENCES).stop_reason == "finished"
