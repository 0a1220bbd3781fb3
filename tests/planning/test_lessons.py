"""Plans with teachers: where they pay, how the time is shared out, what is said, and that a run follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import interrupt
from soma_native.cli import new_run
from soma_native.cli.progress import ProgressDisplay
from soma_native.planning import train as module
from soma_native.planning.corpus import Corpus
from soma_native.planning.lessons import lessons
from soma_native.planning.plan import Plan, choose
from soma_native.planning.speed import Speed
from soma_native.training.memory import training_memory
from soma_native.training.phase import TEACHERS

FAST = Speed((8e5, 4.8e6), (2e11, 6e11), (0.002, 0.01), "amx", 2, "bfloat16")
WONDER = Speed((8e5, 4.8e6), (1e15, 1e15), (1e-5, 1e-5), "amx", 2, "float32")  # every time allows many epochs
TEXT = "the cat saw the dog and the dog ran. " * 40


def planned(size: int, minutes: float | None, given: dict[str, Any] | None = None, free: int | None = None) -> Plan:
    return choose(Corpus(1, size, size, 65), FAST, minutes, given, free)


def test_a_tiny_text_has_teachers_and_a_larger_one_none() -> None:
    tiny = planned(20_000, 4)
    assert (tiny.teachers, tiny.training.teachers, tiny.training.distill) == (4, 4, 0.7)
    assert "teachers: 4 models of 30 epochs each first" in tiny.reasons[-1] and "more epochs than" in tiny.reasons[-1]
    for size, minutes in ((20_000, 0.3), (1_000_000, 4), (100_000_000, 20)):
        plan = planned(size, minutes)
        assert plan.teachers == plan.training.teachers == 0
        assert "teachers" not in str(plan)


def test_more_time_gives_no_fewer_teachers() -> None:
    counts = [planned(20_000, minutes / 4).teachers for minutes in range(1, 30)]
    assert counts == sorted(counts) and {0, 2, 3, 4} == {*counts}


@pytest.mark.parametrize("epochs", [134.0, 180.0, 230.0, 1000.0])
def test_the_epochs_are_shared_out_whole(epochs: float) -> None:
    """A teacher's forward pass takes a third of a step."""
    found = lessons(epochs)
    assert found is not None and 25 <= found.each <= 30 and found.epochs >= 2 * found.each
    student = found.epochs * (1 + found.teachers / 3)
    assert found.teachers * found.each + student == pytest.approx(epochs)
    assert found.length == pytest.approx(found.each / student, rel=0.01)


def test_a_plan_says_what_the_model_itself_does() -> None:
    plan, alone = planned(20_000, 4), planned(20_000, 4, {"teachers": 0})
    assert plan.training.batch_size == 8
    assert 60 < plan.epochs < alone.epochs / 2 and plan.steps == pytest.approx(plan.epochs * 9, rel=0.1)
    assert plan.tokens_per_second == pytest.approx((alone.tokens_per_second or 0) / (1 + 4 / 3), rel=0.2)
    assert plan.flops == pytest.approx(alone.flops, rel=0.2)
    assert plan.to_dict()["teachers"] == 4 and plan.training.ema is None


def test_with_nothing_said_there_is_time_for_teachers() -> None:
    tiny = planned(20_000, None)
    assert tiny.teachers == 4 and tiny.minutes is not None and tiny.minutes < 4
    assert planned(1_000_000, None).teachers == 0
    counts = [planned(size, None).teachers for size in range(50_000, 200_000, 10_000)]  # ten minutes are the most
    assert counts == sorted(counts, reverse=True) and {*counts} == {4, 3, 2, 0}


@pytest.mark.parametrize(
    "given",
    [{"preset": "1m"}, {"model": soma.ModelConfig.preset("1m")}, {"distill": 0.5}, {"teachers": 0}, {"steps": 900},
     {"epochs": 300}],
    ids=str,
)  # fmt: skip
def test_where_something_else_is_fixed_there_are_none(given: dict[str, Any]) -> None:
    assert planned(20_000, None if "steps" in given or "epochs" in given else 4, given).teachers == 0


def test_as_many_as_were_asked_for() -> None:
    by_time = planned(1_000_000, 4, {"teachers": 2})
    assert by_time.teachers == 2 and by_time.reasons[-1].endswith(", as asked")
    by_steps = choose(Corpus(1, 20_000, 20_000, 65), None, None, {"teachers": 3, "steps": 100})
    assert (by_steps.teachers, by_steps.training.teacher_length, by_steps.training.distill) == (3, 0.5, 0.7)


def test_the_memory_of_teachers_counts() -> None:
    plan, alone = planned(20_000, 4), planned(20_000, 4, {"teachers": 0, "batch_size": 8})
    taught = training_memory(plan.model, 8, 256, "bfloat16", average=True, teachers=[plan.model] * 4)
    assert plan.memory == taught > alone.memory
    fewer = planned(20_000, 4, free=round((taught - 1) / 0.8))
    assert 2 <= fewer.teachers < 4 and fewer.memory < taught
    assert planned(20_000, 4, free=round(alone.memory / 0.79)).teachers == 0


def test_the_command_trains_teachers_and_says_so(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_run, "measure_speed", lambda *_, **__: WONDER)
    text, out = tmp_path / "text.txt", tmp_path / "m"
    text.write_text(TEXT, encoding="utf-8")
    result = run("train", text, "--out", out, "--minutes", 0.05)
    assert result.status == 0, result.err
    for said in ("teachers: 4 models of 30 epochs each first", "teacher 1/4", "teacher 4/4", "the model, taught by 4"):
        assert said in result.err
    assert result.err.count("train: 1 document") == 1
    assert "the best of its 4 teachers: validation " in result.out
    found = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event.get("teacher") for event in found if event["event"] == "start"] == [1, 2, 3, 4, None]
    assert [event["teachers"] for event in found if event.get("preset")] == [4]
    assert [event["event"] for event in found].count("end") == 1
    history = soma.History.from_json(out / "history.json")
    assert len(history.teachers) == 4 and history.floor is not None
    assert not (out / TEACHERS).exists() and soma.load(out)[0].num_parameters > 0
    assert len(run("train", text, "--out", out, "--resume", "--json").json["teachers"]) == 4
    refused = run("train", text, "--out", tmp_path / "n", "--from", out, "--teachers", 2, "--steps", 2)
    assert refused.status == 2 and "--teachers cannot be given with --from" in refused.err


def test_the_command_is_stopped_within_a_teacher_and_goes_on(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_run, "measure_speed", lambda *_, **__: WONDER)
    text, out = tmp_path / "text.txt", tmp_path / "m"
    text.write_text(TEXT, encoding="utf-8")

    def on_step(self: ProgressDisplay, event: soma.Event) -> None:
        if (event.teacher, event.step) == (2, 1):
            interrupt()

    with monkeypatch.context() as patched:
        patched.setattr(ProgressDisplay, "on_step", on_step)
        result = run("train", text, "--out", out, "--minutes", 0.05)
    assert result.status == 130 and f"interrupted; saved in {out}; --resume goes on from there" in result.err
    assert soma.load(out)[0].num_parameters > 0
    assert "holds a training run" in run("train", text, "--out", out, "--minutes", 0.05).err
    teacher = out / TEACHERS / "1"
    teacher.rename(tmp_path / "kept")
    refused = run("train", text, "--out", out, "--resume")
    assert refused.status == 1 and refused.err.count("\n") == 1 and f"{teacher}: is missing" in refused.err
    (tmp_path / "kept").rename(teacher)
    result = run("train", text, "--out", out, "--resume")
    assert result.status == 0, result.err
    assert "teacher 1/4" not in result.err and "continuing after step 1" in result.err and "teacher 3/4" in result.err
    assert not (out / TEACHERS).exists()


def test_texts_become_a_taught_model_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_speed", lambda *_, **__: WONDER)
    heard: list[int | None] = []
    model, tok, history = soma.train([TEXT], minutes=0.05, callbacks=lambda event: heard.append(event.teacher))
    assert [*dict.fromkeys(heard)] == [1, 2, 3, 4, None]
    assert history.stop_reason == "finished" and len(history.teachers) == 4
    assert model.config.vocab_size == tok.vocab_size
