"""Runs that train their own teachers: phases, time, resuming in each of them, and what is left in the folder."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, interrupt, losses, make_model, weights
from soma_native.training.events import EVENTS_FILE
from soma_native.training.phase import STUDENT, TEACHERS, Phase, teacher_seed
from soma_native.training.state import phase_of

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

COUNT = 3


class Clock:
    """A clock that each step moves."""

    def __init__(self, step: Callable[[soma.Event], float] | float = 1.0) -> None:
        self.now = 1000.0
        self._step = step if callable(step) else lambda event: step

    def __call__(self) -> float:
        return self.now

    def move(self, event: soma.Event) -> None:
        if event.kind == "step":
            self.now += self._step(event)


def trainer_of(folder: Path, clock: Clock, model_seed: int = 0, **settings: Any) -> soma.Trainer:
    config = {
        "minutes": 1.0, "batch_size": 16, "schedule": "wsd", "val_fraction": 0.2, "lr": 1e-2, "teachers": COUNT,
        "teacher_length": 0.5, "distill": 0.7, "checkpoint_dir": folder, "checkpoint_minutes": 1e9,
    }  # fmt: skip
    return soma.Trainer(make_model(model_seed), WORDS, soma.TrainConfig(**{**config, **settings}), clock=clock)


BY_STEPS: dict[str, Any] = {"minutes": None, "steps": 12, "eval_every": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "by time": {"optimizer": "muon", "dropout": 0.1, "ema": 0.9},
    "by steps": {**BY_STEPS, "steps": 24},
    "nothing validated": {"val_fraction": 0.0, "tail_average": 0.3},
}


def at(teacher: int | None, step: int, action: Callable[[], object]) -> Callable[[soma.Event], None]:
    def callback(event: soma.Event) -> None:
        if event.kind == "step" and (event.teacher, event.step) == (teacher, step):
            action()

    return callback


def of_folder(folder: Path) -> soma.Model:
    return soma.load(folder)[0]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_text(encoding="ascii").splitlines()]


def stopped(folder: Path, teacher: int | None, step: int, **settings: Any) -> Clock:
    """A run that Ctrl-C ended there."""
    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        trainer_of(folder, clock, **settings).fit(SENTENCES, callbacks=[clock.move, at(teacher, step, interrupt)])
    return clock


def test_time_is_shared_out_and_what_is_lost_is_lost_to_all() -> None:
    first = Phase(1, 10.0)
    assert first.end(110.0, 2, 0.5) == 10 + 100 * 0.5 / (2 * 0.5 + 1)
    second = first.following(2, 60.0)  # the first took twice its time
    assert (second.teacher, second.end(110.0, 2, 0.5)) == (2, 60 + 50 * 0.5 / 1.5)
    last = second.following(2, 80.0)
    assert (last.teacher, last.end(110.0, 2, 0.5)) == (None, 110.0)


def test_each_model_has_a_seed_of_its_own() -> None:
    seeds = [teacher_seed(seed, number) for seed in (0, 1, 2**64 - 1) for number in (None, 1, 2, 3)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**64 for seed in seeds)


def test_a_run_ends_on_time_and_every_schedule_is_complete(tmp_path: Path) -> None:
    clock = Clock(lambda event: 0.2 if event.teacher else 0.4)
    rates: dict[int | None, list[float]] = {}

    def listen(event: soma.Event) -> None:
        if event.kind == "step":
            rates.setdefault(event.teacher, []).append(event.lr)

    history = trainer_of(tmp_path, clock).fit(SENTENCES, callbacks=[clock.move, listen])
    assert history.stop_reason == "finished" and 57 <= clock.now - 1000 <= 61
    assert [*rates] == [1, 2, 3, None]
    assert len(rates[None]) == history.records[-1]["step"]
    for number in (1, 2, 3):
        assert 0.2 * len(rates[number]) == pytest.approx(0.5 * 0.4 * len(rates[None]), rel=0.1)
    for each in rates.values():
        assert max(each) == pytest.approx(1e-2) and each[-1] < 1e-3
    assert len(history.teachers) == COUNT and not (tmp_path / TEACHERS).exists()


def test_teachers_differ_and_teach_and_the_best_model_is_in_the_folder(tmp_path: Path) -> None:
    """The student has the loss of a run that is given the same teachers."""

    def copy(event: soma.Event) -> None:
        if event.kind == "start" and event.teacher is None:
            shutil.copytree(tmp_path / TEACHERS, tmp_path / "copy")

    clock = Clock()
    trainer = trainer_of(tmp_path, clock, **BY_STEPS)
    history = trainer.fit(SENTENCES, callbacks=[clock.move, copy])
    teachers = [soma.load_model(tmp_path / "copy" / str(number)) for number in (1, 2, 3)]
    assert len({weights(teacher)["wte"] for teacher in teachers}) == COUNT
    own = soma.TrainConfig(**{**trainer.config.to_dict(), "teachers": 0, "checkpoint_dir": None})
    given = soma.Trainer(make_model(), WORDS, own)
    assert losses(given.fit(SENTENCES, teacher=teachers)) == losses(history)
    assert weights(given.model) == weights(trainer.model)
    assert history.best is not None and history.best_teacher is not None
    lowest = min(history.best["val_loss"] or 0.0, history.best_teacher)
    store = soma.TokenStore.encode(SENTENCES, WORDS, "auto").split(0.2)[1]
    assert soma.Trainer(of_folder(tmp_path), WORDS).evaluate(store) == pytest.approx(lowest, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "where"),
    [(by, where) for by in OPTIONS for where in ((1, 4), (2, 5), (3, 10), (None, 12))]
    + [("by steps", where) for where in ((3, 1), (None, 1), (3, 12))],
    ids=str,
)
def test_a_run_resumes_bit_for_bit_in_each_phase(tmp_path: Path, options: str, where: tuple[int | None, int]) -> None:
    settings, one, three = OPTIONS[options], Clock(), Clock()
    whole = trainer_of(tmp_path / "a", one, **settings)
    expected = whole.fit(SENTENCES, callbacks=one.move)
    two = stopped(tmp_path / "b", *where, **settings)
    assert phase_of(tmp_path / "b")[0].teacher == where[0]
    assert (tmp_path / "b" / TEACHERS / STUDENT).is_dir()
    three.now = 5.0  # another boot of the machine
    again = trainer_of(tmp_path / "b", three, model_seed=9, **settings, resume=True)
    history = again.fit(SENTENCES, callbacks=three.move)
    assert losses(history) == losses(expected) and history.decisions == expected.decisions
    assert [record["val_loss"] for record in history.teachers] == [r["val_loss"] for r in expected.teachers]
    assert weights(again.model) == weights(whole.model)
    assert weights(of_folder(tmp_path / "b")) == weights(of_folder(tmp_path / "a"))
    assert (two.now - 1000) + (three.now - 5) == pytest.approx(one.now - 1000)
    assert not (tmp_path / "b" / TEACHERS).exists()


def test_a_resume_needs_no_settings_and_a_finished_run_stays_finished(tmp_path: Path) -> None:
    settings = {**BY_STEPS, "checkpoint_every": 2}
    expected = trainer_of(tmp_path / "a", Clock(), **settings).fit(SENTENCES)
    stopped(tmp_path / "b", 2, 3, **settings)
    assert losses(soma.Trainer.resume(tmp_path / "b").fit(SENTENCES)) == losses(expected)
    assert soma.Trainer.resume(tmp_path / "b").fit(SENTENCES).stop_reason == "finished"
    assert [e["reason"] for e in events(tmp_path / "b") if e["event"] == "end"] == [
        "interrupted",
        "finished",
        "finished",
    ]


def test_ctrl_c_leaves_the_best_model_so_far(tmp_path: Path) -> None:
    """The later teachers have not begun to learn when they are stopped, so the first is the best."""
    stopped(tmp_path / "a", 1, 4, **BY_STEPS)
    assert weights(of_folder(tmp_path / "a"))  # it learns still
    last: list[float | None] = []
    for where in ((2, 1), (3, 1), (None, 1)):
        folder = tmp_path / str(where)
        stopped(folder, *where, **BY_STEPS)
        store = soma.TokenStore.encode(SENTENCES, WORDS, "auto").split(0.2)[1]
        history = soma.History.from_json(folder / "history.json")
        last.append(history.best_teacher)
        assert soma.Trainer(of_folder(folder), WORDS).evaluate(store) == pytest.approx(history.best_teacher, rel=1e-5)
    assert len(last) == 3 and None not in last


def test_a_model_that_lost_its_time_does_not_replace_a_better_teacher(tmp_path: Path) -> None:
    clock = Clock(lambda event: 0.2 if event.teacher else 500.0)  # the machine slept
    heard: list[str] = []

    def listen(event: soma.Event) -> None:
        if event.kind == "warning":
            heard.append(event.message)

    history = trainer_of(tmp_path, clock).fit(SENTENCES, callbacks=[clock.move, listen])
    assert [record["step"] for record in history.records] == [1]
    assert history.warnings == heard and "did not become better than its best teacher" in heard[0]
    store = soma.TokenStore.encode(SENTENCES, WORDS, "auto").split(0.2)[1]
    assert soma.Trainer(of_folder(tmp_path), WORDS).evaluate(store) == pytest.approx(history.best_teacher, rel=1e-5)


def test_events_say_which_teacher_and_one_end_ends_the_run(tmp_path: Path) -> None:
    stopped(tmp_path, 2, 4, **BY_STEPS, log_every=1)
    soma.Trainer.resume(tmp_path).fit(SENTENCES)
    found = events(tmp_path)
    steps = [(event.get("teacher"), event["step"]) for event in found if event["event"] == "step"]
    teaching = [(number, step) for number in (1, 2, 3) for step in range(1, 7)]
    assert steps == teaching + [(None, step) for step in range(1, 13)]
    assert [event.get("teacher") for event in found if event["event"] == "start"] == [1, 2, 2, 3, None]
    ends = [(event.get("teacher"), event["reason"]) for event in found if event["event"] == "end"]
    assert ends == [(2, "interrupted"), (None, "finished")]
    assert len({event["run"] for event in found if event["event"] == "start"}) == 1


@pytest.mark.parametrize("teacher", [2, None])
def test_a_crash_between_two_models_loses_nothing(tmp_path: Path, teacher: int | None) -> None:
    expected = trainer_of(tmp_path / "a", Clock(), **BY_STEPS)
    history = expected.fit(SENTENCES)

    def crash(event: soma.Event) -> None:
        if event.kind == "start" and event.teacher == teacher:
            raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        trainer_of(tmp_path / "b", Clock(), **BY_STEPS).fit(SENTENCES, callbacks=crash)
    again = soma.Trainer.resume(tmp_path / "b")
    assert losses(again.fit(SENTENCES)) == losses(history)
    assert weights(again.model) == weights(expected.model)


def test_ctrl_c_before_the_first_step_of_a_model_says_where_the_run_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def listen(event: soma.Event) -> None:
        if event.kind == "start" and event.teacher == 2:
            interrupt()

    trainer = trainer_of(tmp_path, Clock(), **BY_STEPS)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES, callbacks=listen)
    assert trainer.history.checkpoint == str(tmp_path)
    assert f"interrupted after step 0 of 6 of teacher 2; saved in {tmp_path}" in caplog.text
    assert phase_of(tmp_path)[0].teacher == 1
    assert soma.Trainer.resume(tmp_path).fit(SENTENCES).stop_reason == "finished"


def test_a_new_run_in_the_place_of_another_leaves_none_of_its_teachers(tmp_path: Path) -> None:
    stopped(tmp_path, 3, 2, **BY_STEPS)
    own = soma.TrainConfig(epochs=1, checkpoint_dir=tmp_path)
    soma.Trainer(make_model(), WORDS, own).fit(SENTENCES)
    assert not (tmp_path / TEACHERS).exists()


def test_stop_ends_the_whole_run_and_it_goes_on(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "a", Clock(), **BY_STEPS)
    before = weights(trainer.model)
    history = trainer.fit(SENTENCES, callbacks=at(2, 4, trainer.stop))
    assert (history.stop_reason, history.records[-1]["step"], len(history.teachers)) == ("stopped", 3, 1)
    assert weights(trainer.model) == before
    whole = trainer_of(tmp_path / "b", Clock(), **BY_STEPS).fit(SENTENCES)
    assert losses(soma.Trainer.resume(tmp_path / "a").fit(SENTENCES)) == losses(whole)


@pytest.mark.parametrize("name", [STUDENT, "1", "2"])
@pytest.mark.parametrize("damage", ["missing", "another", "torn"])
@pytest.mark.parametrize("where", [(2, 4), (None, 2)], ids=str)
def test_a_teacher_that_is_gone_or_another_is_named(
    tmp_path: Path, name: str, damage: str, where: tuple[int | None, int]
) -> None:
    stopped(tmp_path, *where, **BY_STEPS)
    place = tmp_path / TEACHERS / name
    if damage == "missing":
        shutil.rmtree(place)
    elif damage == "another":
        soma.save(place, make_model(7), None)
    else:
        file = place / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-40])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if name == STUDENT and where[0] is None:  # which the model has replaced
        assert soma.Trainer.resume(tmp_path).fit(SENTENCES).stop_reason == "finished"
        return
    said = {"missing": "is missing, and the run in", "another": "holds another model", "torn": "model.safetensors"}
    with pytest.raises(soma.CheckpointError, match=said[damage]) as error:
        soma.Trainer.resume(tmp_path).fit(SENTENCES)
    assert str(place) in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_finished_run_whose_teachers_are_gone_cannot_be_made_longer(tmp_path: Path) -> None:
    settings = {**BY_STEPS, "schedule": "constant", "warmup_steps": 2}
    trainer_of(tmp_path, Clock(), **settings).fit(SENTENCES)
    with pytest.raises(soma.CheckpointError, match=r"is gone, for the run was finished"):
        soma.Trainer.resume(tmp_path, steps=20).fit(SENTENCES)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="teachers needs checkpoint_dir"):
        soma.Trainer(make_model(), WORDS, soma.TrainConfig(teachers=2)).fit(SENTENCES)
    with pytest.raises(ValueError, match="teacher and teachers=3"):
        trainer_of(tmp_path, Clock()).fit(SENTENCES, teacher=make_model(5))
    for wrong in ({"teachers": -1}, {"teacher_length": 0.0}, {"teacher_length": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            soma.TrainConfig(**wrong)


def test_a_run_with_another_number_of_teachers_is_named(tmp_path: Path) -> None:
    stopped(tmp_path, 2, 4, **BY_STEPS)
    for teachers in (0, 1, 2):
        with pytest.raises(ValueError, match=f"teachers={teachers}: this run has 3\\. "):
            soma.Trainer.resume(tmp_path, teachers=teachers).fit(SENTENCES)
    with pytest.raises(ValueError, match="cannot resume the run in") as error:
        soma.Trainer.resume(tmp_path, teacher_length=0.25, lr=0.5).fit(SENTENCES)
    for said in ("teacher_length=0.25: this run has 0.5", "lr=0.5: this run has 0.01"):
        assert said in str(error.value)
    assert str(error.value).count(": this run has") == 2


def test_the_plot_shows_the_best_teacher(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    history = trainer_of(tmp_path, Clock(), **BY_STEPS).fit(SENTENCES)
    axes = Figure().subplots()
    history._draw(axes)
    assert any("best teacher" in str(line.get_label()) for line in axes.get_lines())
    assert soma.History.from_json(tmp_path / "history.json").teachers == history.teachers


def test_each_model_gives_back_its_memory_when_its_run_ends(tmp_path: Path) -> None:
    """At once, not when the collector looks for circles: four teachers would lie beside the model."""
    seen: list[weakref.ref[Any]] = []

    def watch(event: soma.Event) -> None:
        if event.kind == "start":
            seen.append(weakref.ref(event.trainer._running))  # type: ignore[attr-defined]

    trainer = trainer_of(tmp_path, Clock(), **BY_STEPS, teachers=2)
    gc.collect()
    gc.disable()
    try:
        trainer.fit(SENTENCES, callbacks=watch)
        assert len(seen) == 3 and [run() for run in seen] == [None] * 3
    finally:
        gc.enable()
