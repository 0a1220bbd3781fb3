"""Training with teachers: what a student learns, resuming, and what is refused."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.interrupts import needs_timers
from helpers.training import SENTENCES, WORDS, at_step, interrupt, losses, make_model, make_trainer, weights
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.training.state import read_state

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def divergence(teacher: soma.Model, student: soma.Model) -> float:
    """Mean KL(teacher || student) over the sentences."""
    ids, targets = next(iter(Windows(TokenStore.encode(SENTENCES, WORDS), 16).in_order(len(SENTENCES))))
    kept = targets >= 0
    log_p, log_q = (
        z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
        for z in (student.forward(ids)[kept].astype(np.float64), teacher.forward(ids)[kept].astype(np.float64))
    )
    return float((np.exp(log_q) * (log_q - log_p)).sum(-1).mean())


def test_a_student_approaches_its_teacher_and_not_the_texts() -> None:
    """The teacher is untrained with large weights, so its distribution is not that of the texts."""
    teacher = make_model(seed=5)
    for name, array in teacher.parameters().items():
        teacher.write(name, 8 * array)
    trainer = make_trainer(epochs=60, distill=1.0)
    before = divergence(teacher, trainer.model)
    kept = weights(teacher)
    history = trainer.fit(SENTENCES, teacher=teacher)
    assert divergence(teacher, trainer.model) < before / 4
    plain = make_trainer(epochs=60)
    plain.fit(SENTENCES)
    assert divergence(teacher, trainer.model) < divergence(teacher, plain.model) / 4
    assert history.records[-1]["train_loss"] < history.records[0]["train_loss"]
    assert weights(teacher) == kept


def test_the_training_loss_is_the_mixed_one_and_validation_is_not() -> None:
    trainer, teacher = make_trainer(distill=1.0, lr=1e-12, val_fraction=0.2), make_model(seed=0)
    history = trainer.fit(SENTENCES, teacher=teacher)  # the student begins as its teacher
    assert abs(history.records[0]["train_loss"]) < 1e-3
    assert history.records[0]["val_loss"] > 2


def test_a_share_of_0_trains_as_without_a_teacher() -> None:
    plain, taught = make_trainer(distill=0.0), make_trainer(distill=0.0)
    assert losses(plain.fit(SENTENCES)) == losses(taught.fit(SENTENCES, teacher=make_model(seed=5)))
    assert weights(plain.model) == weights(taught.model)


@pytest.mark.usefixtures("settings_restored")
def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    teachers = [make_model(seed=5, block="gpt2"), make_model(seed=6, d_model=24)]
    whole = make_trainer()
    history = whole.fit(SENTENCES, teacher=teachers)
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        folder = tmp_path / str(threads)
        part = make_trainer(checkpoint_dir=folder)
        part.fit(SENTENCES, callbacks=at_step(5, part.stop), teacher=teachers)
        rest = soma.Trainer.resume(folder)
        assert losses(rest.fit(SENTENCES, teacher=teachers)) == losses(history)
        assert weights(rest.model) == weights(whole.model)


@needs_timers
def test_ctrl_c_while_a_teacher_computes_loses_no_step_and_the_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    teacher = make_model(seed=5, d_model=256, n_layers=4, d_ff=1024)  # nearly all of a step is its forward pass
    whole = make_trainer(epochs=None, steps=4)
    history = whole.fit(SENTENCES, teacher=teacher)
    part = make_trainer(epochs=None, steps=4, checkpoint_dir=tmp_path)
    compute = part.model.loss_and_grad
    calls: list[int] = []

    def loss_and_grad(*arguments: Any, **named: Any) -> float:
        calls.append(1)
        if len(calls) == 3:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        return compute(*arguments, **named)

    part.model.loss_and_grad = loss_and_grad  # type: ignore[method-assign, assignment]
    before = signal.signal(signal.SIGALRM, lambda *_: interrupt())
    try:
        with pytest.raises(KeyboardInterrupt):
            part.fit(SENTENCES, teacher=teacher)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert part.history.checkpoint == str(tmp_path) and read_state(tmp_path)[0].step >= 2
    rest = soma.Trainer.resume(tmp_path)
    assert losses(rest.fit(SENTENCES, teacher=teacher)) == losses(history)
    assert weights(rest.model) == weights(whole.model)


@pytest.mark.parametrize(
    ("begun", "given", "said"),
    [
        (None, [5], "was begun without it"),
        ([5], None, "has one"),
        ([5], [6], "has another"),
        ([5], [5, 6], "has one"),
        ([5, 6], [6, 5], "has others"),
        ([5, 6], None, "has 2"),
    ],
)
def test_a_resume_with_other_teachers_is_refused(tmp_path: Path, begun: Any, given: Any, said: str) -> None:
    def models(seeds: list[int] | None) -> list[soma.Model] | None:
        return None if seeds is None else [make_model(seed=seed) for seed in seeds]

    make_trainer(epochs=1, checkpoint_dir=tmp_path).fit(SENTENCES, teacher=models(begun))
    with pytest.raises(ValueError, match=f": teacher: this run {said}\\. Trainer.resume"):
        soma.Trainer.resume(tmp_path).fit(SENTENCES, teacher=models(given))
    soma.Trainer.resume(tmp_path).fit(SENTENCES, teacher=models(begun))


def test_teachers_that_do_not_fit_are_refused_by_name() -> None:
    trainer = make_trainer()
    for teacher, said in (
        (make_model(vocab_size=40), "teacher has a vocabulary of 40"),
        ([make_model(max_seq_len=15)], r"teacher\[0\] reads 15 tokens at most, and sequences have 16: give seq_len=15"),
        (trainer.model, "teacher is the model that is trained"),
        ([], "teacher has no model: give one or several, or None"),
        ("model", r"teacher\[0\] must be a soma_native.Model, got str"),
        (7, "teacher must be a soma_native.Model or several, got int"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            trainer.fit(SENTENCES, teacher=teacher)
    short = soma.Trainer(make_model(), WORDS, soma.TrainConfig(seq_len=15, epochs=1))
    assert short.fit(SENTENCES, teacher=make_model(max_seq_len=15, seed=3)).stop_reason == "finished"
    with pytest.raises(ValueError, match=r"distill must be from 0 to 1, got 1\.5"):
        soma.TrainConfig(distill=1.5)
