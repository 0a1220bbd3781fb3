"""events.jsonl: what a run writes, when it begins a new file, what it cuts, and what cannot stop it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, interrupt, losses, make_model, make_trainer
from soma_native.cli.progress import ProgressDisplay
from soma_native.training.events import EVENTS_FILE, EventLog

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def events(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (folder / EVENTS_FILE).read_text(encoding="ascii").splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    return [json.loads(line, parse_constant=refuse) for line in lines]


def steps_of(found: list[dict[str, Any]], kind: str) -> list[int]:
    return [event["step"] for event in found if event["event"] == kind]


def test_a_run_writes_its_events_in_order(tmp_path: Path) -> None:
    def tell(event: soma.Event) -> None:
        if event.kind == "start":
            event.trainer.tell("plan", preset="tiny", because=["short", float("inf")])
        if event.kind == "evaluate" and event.step == 8:
            event.trainer.tell("sample", prompt="the", text="cat\n\ud800")

    trainer = make_trainer(checkpoint_dir=tmp_path, log_every=4, epochs=2)
    history = trainer.fit(SENTENCES, validation=SENTENCES[:9], callbacks=tell)
    found = events(tmp_path)
    kinds = [event["event"] for event in found]
    assert kinds == ["start", "plan", "step", "step", "eval", "sample", "step", "step", "eval", "save", "end"]
    start = found[0]
    assert (start["version"], start["isa"], start["threads"]) == (
        soma.__version__, soma.active_isa(), soma.get_num_threads(),
    )  # fmt: skip
    assert (start["precision"], start["parameters"]) == (trainer.model.precision, trainer.model.num_parameters)
    assert (start["data"], start["settings"]["batch_size"], start["total_steps"]) == (history.data, 8, 16)
    assert found[1] == {"event": "plan", "step": 0, "preset": "tiny", "because": ["short", None]}
    assert steps_of(found, "step") == [4, 8, 12, 16]
    assert found[2].keys() == {"event", "step", "epoch", "loss", "lr", "grad_norm", "seconds", "tokens_per_second"}
    assert [{"event": "eval", **record} for record in history.records] == [e for e in found if e["event"] == "eval"]
    assert found[5] == {"event": "sample", "step": 8, "prompt": "the", "text": "cat\n\ud800"}
    assert (found[-2]["folder"], found[-1]["reason"]) == (str(tmp_path), "finished")


def test_steps_are_written_about_once_a_second_and_rarer_in_a_long_run(tmp_path: Path) -> None:
    trainer = make_trainer()

    def event(kind: Any, step: int, seconds: float) -> soma.Event:
        return soma.Event(kind, trainer, trainer.history, step, 99, 1, 3, 1.5, 1e-3, float("nan"), seconds, 8.0, None)

    with EventLog(tmp_path) as log:
        log.on_start(event("start", 0, 0.0))
        for step, seconds in enumerate((0.1, 0.5, 1.0, 1.2, 2.3, 5000.0, 5002.0, 5006.0), start=1):
            log.on_step(event("step", step, seconds))
    found = events(tmp_path)
    assert steps_of(found, "step") == [1, 4, 5, 6, 8]
    assert found[1]["grad_norm"] is None


def test_a_resumed_run_goes_on_in_the_file_without_what_it_does_again(tmp_path: Path) -> None:
    settings = {"checkpoint_dir": tmp_path, "log_every": 1, "eval_every": 4, "val_fraction": 0.2}
    whole = make_trainer(val_fraction=0.2, eval_every=4).fit(SENTENCES)
    crash = RuntimeError("no power")

    def fail() -> None:
        raise crash

    with pytest.raises(RuntimeError, match="no power"):
        make_trainer(**settings, checkpoint_every=5).fit(SENTENCES, callbacks=at_step(9, fail))
    last = events(tmp_path)[-1]
    assert (last["event"], last["step"], last["reason"]) == ("end", 9, "RuntimeError: no power")
    with open(tmp_path / EVENTS_FILE, "a") as file:
        file.write('{"event": "step", "step": 10, "lo')  # a crash within a line
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == losses(whole)
    found = events(tmp_path)
    count = found[-1]["step"]
    assert steps_of(found, "step") == [*range(1, count + 1)]
    assert steps_of(found, "start") == [0, 5]
    assert steps_of(found, "eval") == [record["step"] for record in whole.records]
    assert steps_of(found, "end") == [count]


def test_a_run_by_time_has_no_number_of_steps_until_the_clock_decides(tmp_path: Path) -> None:
    stream, heard = io.StringIO(), []
    trainer = make_trainer(checkpoint_dir=tmp_path, epochs=None, minutes=0.005, log_every=1)
    with ProgressDisplay(stream, live=True) as display:
        trainer.fit(SENTENCES, callbacks=[display, lambda event: heard.append((event.total_steps, event.epochs))])
    start = events(tmp_path)[0]
    assert (start["event"], start["total_steps"], start["epochs"]) == ("start", None, None)
    assert heard[0] == (None, None) and None not in heard[-1]
    plan = next(event for event in events(tmp_path) if event["event"] == "plan")
    assert plan["total_steps"] > plan["step"]
    assert "None" not in stream.getvalue()


def test_ctrl_c_is_an_end_too(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES, callbacks=at_step(3, interrupt))
    assert [(event["event"], event["step"]) for event in events(tmp_path)[-2:]] == [("save", 3), ("end", 3)]
    assert events(tmp_path)[-1]["reason"] == "interrupted"
    soma.Trainer.resume(tmp_path).fit(SENTENCES)
    assert [e["reason"] for e in events(tmp_path) if e["event"] == "end"] == ["interrupted", "finished"]


def test_a_new_run_begins_a_new_file_only_when_it_has_begun(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    before = (tmp_path / EVENTS_FILE).read_bytes()
    trainer = make_trainer(checkpoint_dir=tmp_path, seed=5)
    trainer.stop()
    trainer.fit(SENTENCES)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(SENTENCES, callbacks=lambda event: 1 / 0)
    with pytest.raises(ValueError, match="no next-token pair"):
        trainer.fit([""])
    assert (tmp_path / EVENTS_FILE).read_bytes() == before
    trainer.fit(SENTENCES)
    found = events(tmp_path)
    assert steps_of(found, "start") == [0] and found[0]["settings"]["seed"] == 5


def test_events_of_another_run_are_not_continued(tmp_path: Path) -> None:
    """A run that replaces another and crashes before its first save leaves its events beside the other's state."""
    first = make_trainer(checkpoint_dir=tmp_path)
    first.fit(SENTENCES, callbacks=at_step(6, first.stop))
    with pytest.raises(ZeroDivisionError):
        make_trainer(checkpoint_dir=tmp_path, seed=5).fit(SENTENCES, callbacks=at_step(4, lambda: 1 / 0))
    soma.Trainer.resume(tmp_path).fit(SENTENCES)
    found = events(tmp_path)
    assert steps_of(found, "start") == [6] and found[0]["settings"]["seed"] == 0


def test_saves_leave_the_file_alone(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    before = (tmp_path / EVENTS_FILE).read_bytes()
    soma.save(tmp_path, make_model(), WORDS)
    assert (tmp_path / EVENTS_FILE).read_bytes() == before


@pytest.mark.parametrize("short", [False, True])
def test_a_full_disk_is_warned_of_once_and_stops_nothing(
    short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if not data.startswith(b'{"event": "step"'):
            return real(descriptor, data)
        if short:
            return real(descriptor, data[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    trainer = make_trainer(checkpoint_dir=tmp_path, log_every=1, epochs=1)
    with caplog.at_level(logging.WARNING, "soma_native"):
        assert trainer.fit(SENTENCES).stop_reason == "finished"
    warned = [record.message for record in caplog.records if EVENTS_FILE in record.message]
    assert len(warned) == 1 and "the training goes on" in warned[0]
    assert [event["event"] for event in events(tmp_path)] == ["start", "eval", "save", "end"]


def test_a_file_that_cannot_be_made_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / EVENTS_FILE).mkdir()
    trainer = make_trainer(checkpoint_dir=tmp_path, log_every=1)
    first = trainer.fit(SENTENCES, callbacks=at_step(5, trainer.stop))
    assert first.checkpoint == str(tmp_path)
    assert soma.Trainer.resume(tmp_path).fit(SENTENCES).stop_reason == "finished"
    assert caplog.text.count("events of this run are missing") == 2, "one for each run"
    assert list((tmp_path / EVENTS_FILE).iterdir()) == []
    assert not list(tmp_path.glob("*.tmp"))


def test_tell_is_for_callbacks_of_a_run(tmp_path: Path) -> None:
    trainer = make_trainer()
    with pytest.raises(RuntimeError, match="no fit of this trainer runs now"):
        trainer.tell("plan")
    with pytest.raises(ValueError, match="kind must be one of plan, sample, got 'end'"):
        trainer.tell("end")  # type: ignore[arg-type]
    heard: list[soma.Event] = []

    class Listener(soma.Callback):
        def on_start(self, event: soma.Event) -> None:
            event.trainer.tell("plan", minutes=3)

        def on_plan(self, event: soma.Event) -> None:
            heard.append(event)

    trainer.fit(SENTENCES, callbacks=Listener())
    assert [event.details for event in heard] == [{"minutes": 3}]
