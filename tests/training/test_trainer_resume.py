"""Training that ends early: resuming bit for bit after every kind of end, Ctrl-C, and errors that name the step."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.interrupts import needs_timers
from helpers.training import SENTENCES, at_step, interrupt, losses, make_trainer, weights
from soma_native import _core
from soma_native.files.held_folder import LOCK
from soma_native.files.safetensors_io import TensorFile
from soma_native.training.events import EVENTS_FILE
from soma_native.training.interrupt import InterruptGuard
from soma_native.training.interrupt import interrupt as raise_as_ctrl_c
from soma_native.training.state import STATE_FILE

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

# --- stopping and resuming


@pytest.fixture(scope="module", params=["epoch", "random"])
def uninterrupted(request: pytest.FixtureRequest) -> tuple[dict[str, Any], soma.History, dict[str, bytes]]:
    settings = {
        "epochs": 4, "batch_size": 3, "grad_accumulation": 2, "seq_len": 7, "sampling": request.param, "seed": 5,
        "val_fraction": 0.2, "eval_every": 6,
    }  # fmt: skip
    trainer = make_trainer(**settings)
    history = trainer.fit(SENTENCES)
    return settings, history, weights(trainer.model)


ENDS: dict[str, Callable[[soma.Trainer], object]] = {
    "stop": lambda trainer: trainer.stop(),
    "ctrl-c": lambda trainer: interrupt(),
    "crash": lambda trainer: 1 / 0,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", [1, 12, 17])
def test_resuming_goes_on_bit_for_bit(
    uninterrupted: tuple[dict[str, Any], soma.History, dict[str, bytes]], tmp_path: Path, end: str, step: int
) -> None:
    settings, expected, expected_weights = uninterrupted
    settings = {**settings, "checkpoint_dir": tmp_path, "checkpoint_every": 1 if step == 1 else 5}
    first = make_trainer(**settings)
    callback = at_step(step, lambda: ENDS[end](first))
    if end == "stop":
        assert first.fit(SENTENCES, callbacks=callback).stop_reason == "stopped"
    else:
        if end == "crash" and step == 1:
            callback = at_step(2, lambda: ENDS[end](first))
        with pytest.raises(KeyboardInterrupt if end == "ctrl-c" else ZeroDivisionError):
            first.fit(SENTENCES, callbacks=callback)
    assert first.history.checkpoint == str(tmp_path)

    second = make_trainer(model_seed=99, **settings, resume=True)  # weights and moments come from the checkpoint
    history = second.fit(SENTENCES)
    assert losses(history) == losses(expected)
    assert weights(second.model) == expected_weights
    assert history.stop_reason == "finished"


def test_resume_from_the_folder_alone(
    uninterrupted: tuple[dict[str, Any], soma.History, dict[str, bytes]], tmp_path: Path
) -> None:
    settings, expected, expected_weights = uninterrupted
    first = make_trainer(**settings, checkpoint_dir=tmp_path / "run")
    first.fit(SENTENCES, callbacks=at_step(9, first.stop))
    (tmp_path / "run").rename(tmp_path / "moved")
    again = soma.Trainer.resume(tmp_path / "moved", checkpoint_every=50)
    assert losses(again.fit(SENTENCES)) == losses(expected)
    assert weights(again.model) == expected_weights
    assert again.history.checkpoint == str(tmp_path / "moved")


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    first = make_trainer(checkpoint_dir=tmp_path)
    expected = losses(first.fit(SENTENCES))
    again = soma.Trainer.resume(tmp_path)
    steps: list[int] = []
    assert losses(again.fit(SENTENCES, callbacks=at_step(25, lambda: steps.append(1)))) == expected
    assert not steps
    assert weights(again.model) == weights(first.model)


def test_a_constant_rate_can_be_trained_for_longer(tmp_path: Path) -> None:
    settings = {"schedule": "constant", "warmup_steps": 2}
    long = make_trainer(epochs=4, **settings)
    expected = losses(long.fit(SENTENCES))
    make_trainer(epochs=2, checkpoint_dir=tmp_path, **settings).fit(SENTENCES)
    longer = make_trainer(epochs=4, checkpoint_dir=tmp_path, resume=True, **settings)
    assert losses(longer.fit(SENTENCES)) == expected
    assert weights(longer.model) == weights(long.model)


@pytest.mark.usefixtures("settings_restored")
def test_another_isa_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES, callbacks=lambda event: event.trainer.stop())
    before = soma.active_isa()
    _core.set_isa("scalar")
    with caplog.at_level(logging.WARNING, "soma_native"):
        history = soma.Trainer.resume(tmp_path).fit(SENTENCES)
    assert history.stop_reason == "finished"
    assert (f"the run was saved on {before}; on scalar it rounds differently" in caplog.text) == (before != "scalar")


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        make_trainer(checkpoint_dir=tmp_path, resume=True).fit(SENTENCES)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        soma.Trainer.resume(tmp_path / "none")


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.99])
def test_a_damaged_state_is_found_and_changes_nothing(tmp_path: Path, where: float) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    path = tmp_path / STATE_FILE
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)
    trainer = make_trainer(checkpoint_dir=tmp_path, resume=True)
    untouched = weights(trainer.model)
    with pytest.raises(soma.CheckpointError, match=STATE_FILE):
        trainer.fit(SENTENCES)
    assert weights(trainer.model) == untouched


def test_a_truncated_state_is_found(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(soma.CheckpointError, match=STATE_FILE):
        soma.Trainer.resume(tmp_path)


KILLED = """
    import os, signal, sys
    sys.path[:0] = {tests!r}, {tests!r} + "/training"
    import test_trainer_resume as t
    left, armed = int(sys.argv[2]), False
    def arm(event):
        global armed
        armed = armed or event.kind == "checkpoint"  # from the second save on
    def dying(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            global left
            left -= armed
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, call)
    os.fsync = lambda descriptor: None
    for name in ("rename", "replace", "unlink"):
        dying(name)
    t.make_trainer(checkpoint_dir=sys.argv[1], checkpoint_every=2, **t.KILL_SETTINGS).fit(t.SENTENCES, callbacks=arm)
"""
KILL_SETTINGS: dict[str, Any] = {"val_fraction": 0.2, "eval_every": 3, "batch_size": 16}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_run_killed_while_saving_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = make_trainer(**KILL_SETTINGS)
    expected = losses(whole.fit(SENTENCES))
    script = textwrap.dedent(KILLED.format(tests=str(Path(__file__).parents[1])))
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / str(calls)), str(calls)])
        for calls in (8, 10, 15, 18)  # killed with: model in force, model but no state, half the state, all of it
    ]
    for process in processes:
        assert process.wait() == -signal.SIGKILL
    for folder in tmp_path.iterdir():
        again = soma.Trainer.resume(folder)
        assert losses(again.fit(SENTENCES)) == expected
        assert weights(again.model) == weights(whole.model)


# --- Ctrl-C, stop, errors


def test_ctrl_c_inside_the_update_is_put_off_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = soma.AdamW.step

    def step(self: soma.AdamW, *rates: float) -> float:
        norm = real(self, *rates)
        if self.step_count == 5:
            interrupt()
        return norm

    monkeypatch.setattr(soma.AdamW, "step", step)
    trainer = make_trainer(checkpoint_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES)
    monkeypatch.undo()
    assert trainer.history.stop_reason == "interrupted"
    whole = make_trainer()
    expected = losses(whole.fit(SENTENCES))
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == expected
    assert weights(again.model) == weights(whole.model)


def test_ctrl_c_says_where_it_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "soma_native"), pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES, callbacks=at_step(3, interrupt))
    assert f"interrupted after step 3 of 24; saved in {tmp_path}" in caplog.text
    assert weights(soma.load(tmp_path)[0]) == weights(trainer.model)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_validation_saves_the_steps_before_it(tmp_path: Path) -> None:
    whole = make_trainer(val_fraction=0.2, eval_every=5)
    expected = losses(whole.fit(SENTENCES))
    trainer = make_trainer(val_fraction=0.2, eval_every=5, checkpoint_dir=tmp_path)
    forward = trainer.model.loss
    calls: list[int] = []

    def loss(ids: Any, targets: Any) -> float:
        calls.append(1)
        if len(calls) == 4:  # each validation has two batches
            interrupt()
        return forward(ids, targets)

    trainer.model.loss = loss  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES)
    assert len(calls) == 4
    assert [record["step"] for record in trainer.history.records] == [5]
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == expected
    assert weights(again.model) == weights(whole.model)


@needs_timers
@pytest.mark.parametrize("average", [{"ema": 0.9}, {"tail_average": 0.9}, {}], ids=str)
def test_ctrl_c_inside_a_long_step_saves_the_averaged_model_and_the_exact_state(
    average: dict[str, Any], tmp_path: Path
) -> None:
    """The core hears it between two ops. The state keeps the weights, so that the run goes on bit for bit."""
    settings = {**average, "val_fraction": 0.2, "eval_every": 6, "checkpoint_minutes": 0, "keep_best": False}
    whole = make_trainer(**settings)
    kept: list[dict[str, bytes]] = []
    expected = losses(whole.fit(SENTENCES, callbacks=at_step(9, lambda: kept.append(weights(whole.model)))))
    trainer = make_trainer(**settings, checkpoint_dir=tmp_path)
    real, evaluated = trainer.model.loss_and_grad, trainer.model.loss
    after: list[int] = []

    def train(ids: Any, targets: Any, normalizer: int | None = None, **options: Any) -> float:
        if reached:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            while True:  # a step that never ends by itself
                real(ids, targets, normalizer=normalizer)
        return real(ids, targets, normalizer=normalizer)

    def validate(ids: Any, targets: Any) -> float:
        after.extend(reached)
        return evaluated(ids, targets)

    reached: list[int] = []
    trainer.model.loss_and_grad = train  # type: ignore[method-assign, assignment]
    trainer.model.loss = validate  # type: ignore[method-assign, assignment]
    before = signal.signal(signal.SIGALRM, lambda number, frame: raise_as_ctrl_c())
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(SENTENCES, callbacks=at_step(9, lambda: reached.append(9)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert after == [], "nothing is validated on the way out"
    assert weights(soma.load(tmp_path)[0]) == weights(trainer.model)
    with TensorFile(tmp_path / STATE_FILE) as file:
        state = {name: file.read(f"parameter.{name}").tobytes() for name in kept[0]}
    assert state == kept[0]
    assert (weights(trainer.model) != kept[0]) == bool(average)
    again = make_trainer(model_seed=9, **settings, checkpoint_dir=tmp_path, resume=True)
    assert losses(again.fit(SENTENCES)) == expected
    assert weights(again.model) == weights(whole.model)


def test_ctrl_c_between_two_micro_batches_leaves_no_part_of_a_gradient(tmp_path: Path) -> None:
    settings = {"grad_accumulation": 2, "batch_size": 4}
    whole = make_trainer(**settings)
    whole.fit(SENTENCES)
    trainer = make_trainer(**settings, checkpoint_dir=tmp_path)
    real = trainer.model.loss_and_grad
    calls: list[int] = []

    def train(ids: Any, targets: Any, normalizer: int | None = None, **options: Any) -> float:
        loss = real(ids, targets, normalizer=normalizer)
        calls.append(1)
        if len(calls) == 7:  # the first of the two of step 4
            interrupt()
        return loss

    trainer.model.loss_and_grad = train  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES)
    again = soma.Trainer.resume(tmp_path)
    again.fit(SENTENCES)
    assert weights(again.model) == weights(whole.model)


def test_ctrl_c_before_the_first_step_leaves_the_folder_alone(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(model_seed=1, checkpoint_dir=tmp_path).fit(
            SENTENCES, callbacks=lambda event: interrupt() if event.kind == "start" else None
        )
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_ctrl_c_without_a_folder_says_that_nothing_was_saved(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer()
    with caplog.at_level(logging.WARNING, "soma_native"), pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES, callbacks=at_step(3, interrupt))
    assert "nothing was saved" in caplog.text
    assert trainer.history.checkpoint is None


def test_a_program_that_handles_ctrl_c_keeps_doing_so() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with InterruptGuard():
            interrupt()
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_stop_from_another_thread() -> None:
    trainer = make_trainer(epochs=100_000)
    reached = threading.Event()
    thread = threading.Thread(target=lambda: (reached.wait(), trainer.stop()))
    thread.start()
    history = trainer.fit(SENTENCES, callbacks=at_step(20, reached.set))
    thread.join()
    assert history.stop_reason == "stopped"


def test_fit_works_in_a_thread_of_its_own() -> None:
    histories: list[soma.History] = []
    thread = threading.Thread(target=lambda: histories.append(make_trainer().fit(SENTENCES)))
    thread.start()
    thread.join()
    assert losses(histories[0]) == losses(make_trainer().fit(SENTENCES))


def poison(model: soma.Model) -> None:
    next(iter(model.parameters().values()))[...] = np.nan


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path, checkpoint_every=4)
    files: dict[str, bytes] = {}

    def saved() -> dict[str, bytes]:
        names = [path.name for path in tmp_path.iterdir() if path.is_file()]
        return {name: (tmp_path / name).read_bytes() for name in names if name not in (LOCK, EVENTS_FILE)}

    def break_it() -> None:
        files.update(saved())
        poison(trainer.model)

    with pytest.raises(FloatingPointError, match=r"step 7: the loss is nan; the last good .* lower learning rate"):
        trainer.fit(SENTENCES, callbacks=at_step(6, break_it))
    assert STATE_FILE in files
    assert files == saved()
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == losses(make_trainer().fit(SENTENCES))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(FloatingPointError, match=r"step 6: .* not finite"):
        trainer.fit(SENTENCES, callbacks=at_step(6, lambda: poison(trainer.model)))
    assert all(np.isfinite(array).all() for array in soma.load(tmp_path)[0].parameters().values())


def test_a_gradient_that_is_not_finite_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    real = trainer.model.loss_and_grad
    calls: list[int] = []

    def broken(*arguments: Any, **options: Any) -> float:
        loss = real(*arguments, **options)
        calls.append(1)
        if len(calls) == 4:
            next(iter(trainer.model.gradients().values()))[...] = np.inf
        return loss

    monkeypatch.setattr(trainer.model, "loss_and_grad", broken)
    with pytest.raises(FloatingPointError, match="training stopped in step 4"):
        trainer.fit(SENTENCES)
    assert all(np.isfinite(array).all() for array in trainer.model.parameters().values())
    assert not any(array.any() for array in trainer.model.gradients().values())


def test_another_run_in_the_folder_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    with caplog.at_level(logging.WARNING, "soma_native"):
        make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    assert "holds another training run" in caplog.text


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(soma.CheckpointError, match="/proc/nowhere"):
        make_trainer(checkpoint_dir="/proc/nowhere").fit(SENTENCES)
