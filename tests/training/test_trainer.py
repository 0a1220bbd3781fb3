"""The Trainer: learning, records, validation, callbacks, and refused arguments."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, losses, make_model, make_trainer, weights
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.training.evaluate import mean_loss

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

# --- learning and records


@pytest.mark.usefixtures("precision")
def test_training_learns_the_sentences(block: str) -> None:
    model = make_model(block=block)
    history = soma.Trainer(model, WORDS, soma.TrainConfig(epochs=15, lr=1e-2)).fit(SENTENCES)
    first, last = history.records[0], history.records[-1]
    assert len(history.records) == 15
    assert math.log(WORDS.vocab_size) + 0.1 > first["train_loss"] > 2 * last["train_loss"]
    assert history.stop_reason == "finished"
    assert history.data["train"]["pairs"] == sum(len(text.split()) for text in SENTENCES), "the last pair ends in <EOS>"


def test_train_loss_of_an_epoch_is_the_mean_over_its_pairs(precision: str) -> None:
    """Training and evaluation have the same precision here, so that their losses compare."""
    texts = ["the cat", *SENTENCES, "the owl and the fox ran " * 3]  # lengths differ, so a mean of means is wrong
    rates = {"lr": 1e-30, "weight_decay": 0.0}  # the weights stay the same
    trainer = make_trainer(**rates, batch_size=3, epochs=1, fresh_windows=False)
    trainer.model._evaluate_in(precision)
    history = trainer.fit(texts)
    total = pairs = 0.0
    for text in texts:
        ids = np.array([[*WORDS.encode(text), WORDS.token_to_id("<EOS>")]], np.int32)
        for at in range(0, ids.shape[1] - 1, 16):
            window = ids[:, at : at + 17]
            count = window.shape[1] - 1
            total += (
                trainer.model.loss(np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])) * count
            )
            pairs += count
    assert history.records[0]["train_loss"] == pytest.approx(total / pairs, rel=1e-5)
    assert trainer.evaluate(texts) == pytest.approx(total / pairs, rel=1e-5)


def test_accumulated_micro_batches_are_one_large_batch() -> None:
    whole = make_trainer(batch_size=64, epochs=8).fit(SENTENCES)
    for size, parts in ((16, 4), (24, 3)):  # 24 + 24 + 16: parts need not be equal
        split = make_trainer(batch_size=size, grad_accumulation=parts, epochs=8).fit(SENTENCES)
        assert [r["step"] for r in split.records] == list(range(1, 9))
        np.testing.assert_allclose(
            [r["train_loss"] for r in split.records], [r["train_loss"] for r in whole.records], rtol=1e-4
        )


def test_records_say_where_and_how_fast() -> None:
    trainer = make_trainer(epochs=2, schedule="constant", warmup_steps=0, batch_size=8)
    history = trainer.fit(SENTENCES)
    assert [(r["epoch"], r["step"], r["val_loss"], r["lr"]) for r in history.records] == [
        (1, 8, None, 1e-2),
        (2, 16, None, 1e-2),
    ]
    assert all(r["tokens_per_second"] > 0 for r in history.records)
    assert 0 < history.records[0]["seconds"] < history.records[1]["seconds"]
    assert trainer.history is history


def test_steps_and_eval_every_decide_the_records() -> None:
    assert [r["step"] for r in make_trainer(epochs=None, steps=25).fit(SENTENCES).records] == [*range(3, 25, 3), 25]
    by_five = make_trainer(epochs=2, eval_every=5).fit(SENTENCES)
    assert [(r["epoch"], r["step"]) for r in by_five.records] == [(1, 5), (2, 10), (2, 15), (2, 16)]


def test_random_sampling_draws_full_windows_of_a_long_text() -> None:
    seen: list[tuple[int, int]] = []
    trainer = make_trainer(epochs=None, steps=6, sampling="random", batch_size=4, seq_len=12)
    real = trainer.model.loss_and_grad

    def watched(ids: Any, targets: Any, normalizer: int | None = None, **options: Any) -> float:
        seen.append(ids.shape)
        assert (targets >= 0).all()
        assert normalizer == ids.size
        return real(ids, targets, normalizer, **options)

    trainer.model.loss_and_grad = watched  # type: ignore[method-assign]
    trainer.fit([" ".join(SENTENCES)])
    assert seen == [(4, 12)] * 6


def test_the_same_settings_give_the_same_bits() -> None:
    trainers = [make_trainer(seed=seed) for seed in (0, 0, 1)]
    results = [(losses(trainer.fit(SENTENCES)), weights(trainer.model)) for trainer in trainers]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_a_second_fit_goes_on_from_the_weights() -> None:
    trainer = make_trainer(epochs=5)
    first = trainer.fit(SENTENCES)
    second = trainer.fit(SENTENCES)
    assert second.records[0]["train_loss"] < first.records[0]["train_loss"]
    assert trainer.history is second is not first


# --- validation


def test_validation_loss_is_that_of_the_validation_texts() -> None:
    trainer = make_trainer(epochs=2, batch_size=4)
    history = trainer.fit(SENTENCES[8:], validation=SENTENCES[:8])
    assert history.records[-1]["val_loss"] == pytest.approx(trainer.evaluate(SENTENCES[:8]), rel=1e-6)
    assert history.data["validation"]["documents"] == 8


def test_val_fraction_holds_documents_out() -> None:
    history = make_trainer(val_fraction=0.25).fit(SENTENCES)
    assert history.data["train"]["documents"] == 48
    assert history.data["validation"]["documents"] == 16
    assert all(record["val_loss"] is not None for record in history.records)


def test_validation_can_be_limited() -> None:
    store = TokenStore.encode(SENTENCES, WORDS)
    windows = Windows(store, 16)
    model = make_model()
    forward = model.loss
    shapes: list[int] = []
    model.loss = lambda ids, targets: (shapes.append(len(ids)), forward(ids, targets))[1]  # type: ignore[method-assign]
    mean_loss(model, windows, batch_size=8, limit=12)
    assert shapes == [8, 4]


def test_overfitting_is_warned_of(find_losses: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    find_losses(3.0, 2.0, 2.5, 2.6, 2.7)

    def listen(event: soma.Event) -> None:
        if event.kind == "warning":
            heard.append(event.message)

    with caplog.at_level(logging.WARNING, "soma_native"):
        history = make_trainer(epochs=5).fit(SENTENCES, validation=SENTENCES, callbacks=listen)
    turn = history.overfit_from
    assert turn is history.records[1]
    assert history.warnings == heard
    assert len(heard) == 1 and f"over-fitting from step {turn['step']} " in heard[0]
    assert caplog.text.count("over-fitting") == 1


def test_overfitting_is_taken_back_when_validation_falls_again(
    find_losses: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    find_losses(3.0, 3.5, 3.6, 3.4, 2.9)
    warnings: list[int] = []

    def listen(event: soma.Event) -> None:
        if event.kind == "epoch":
            warnings.append(len(event.history.warnings))

    with caplog.at_level(logging.WARNING, "soma_native"):
        history = make_trainer(epochs=5).fit(SENTENCES, validation=SENTENCES, callbacks=listen)
    assert warnings == [0, 0, 1, 1, 0]
    assert history.overfit_from is None and history.warnings == []
    assert caplog.text.count("over-fitting from step") == caplog.text.count("no over-fitting after all") == 1


def test_early_stopping_ends_the_training_and_the_folder_has_the_best(
    find_losses: Callable[..., None], tmp_path: Path
) -> None:
    find_losses(3.0, 2.0, 2.5, 2.0, 2.1, *[2.2] * 9)
    at: dict[int, dict[str, bytes]] = {}

    def keep(event: soma.Event) -> None:
        if event.kind == "evaluate":
            at[event.step] = weights(trainer.model)

    folder = tmp_path / "run"
    trainer = make_trainer(epochs=60, patience=3, checkpoint_dir=folder)
    history = trainer.fit(SENTENCES, validation=SENTENCES, callbacks=keep)
    assert history.stop_reason == "early stopping"
    assert [r["val_loss"] for r in history.records] == [3.0, 2.0, 2.5, 2.0, 2.1, 2.2, 2.2], "its rate falls first"
    assert history.best is history.records[1]
    assert history.checkpoint == str(folder)
    model, tok = soma.load(folder)
    assert weights(model) == at[history.best["step"]] != weights(trainer.model)
    assert tok.kind == "word"
    assert soma.History.from_json(folder / "history.json").to_dict() == history.to_dict()
    assert len((folder / "history.csv").read_text().splitlines()) == len(history.records) + 1


def test_the_latest_model_is_kept_when_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(val_fraction=0.2, keep_best=False, checkpoint_dir=tmp_path)
    trainer.fit(SENTENCES)
    assert weights(soma.load(tmp_path)[0]) == weights(trainer.model)


# --- arguments


def test_texts_without_a_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no next-token pair in texts: all 2 document\(s\)"):
        make_trainer(end_of_document=None).fit(["cat", "dog"])
    with pytest.raises(ValueError, match="no document in validation"):
        make_trainer().fit(SENTENCES, validation=[])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"validation and val_fraction cannot both be given"):
        make_trainer(val_fraction=0.1).fit(SENTENCES, validation=SENTENCES[:2])
    with pytest.raises(ValueError, match="patience needs validation data"):
        make_trainer(patience=2).fit(SENTENCES)
    with pytest.raises(ValueError, match="warmup_steps must be at least 0 and below the 24 steps"):
        make_trainer(warmup_steps=50).fit(SENTENCES)


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the model only 10: make the model with vocab_size="):
        soma.Trainer(make_model(vocab_size=10), WORDS)
    with pytest.raises(ValueError, match="seq_len must be from 1 to 16"):
        make_trainer(seq_len=17)
    with pytest.raises(TypeError, match=r"config must be a soma_native\.TrainConfig, got dict"):
        soma.Trainer(make_model(), WORDS, {"epochs": 3})  # type: ignore[arg-type]


def test_a_vocabulary_that_is_too_small_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "soma_native"):
        history = make_trainer(epochs=1).fit([*SENTENCES, "zebras and lions and other beasts"])
    assert history.data["train"]["unknown_tokens"] == 4
    assert "<UNK>" not in caplog.text  # below a hundredth of the tokens
    with caplog.at_level(logging.WARNING, "soma_native"):
        make_trainer(epochs=1, end_of_document=None).fit(["zebras and lions and other beasts"])
    assert "66.7% of the tokens of the train data are <UNK>" in caplog.text


def test_events_come_in_order(tmp_path: Path) -> None:
    kinds: list[str] = []
    calls: list[tuple[str, int]] = []

    class Listener(soma.Callback):
        def on_step(self, event: soma.Event) -> None:
            calls.append(("step", event.step))

        def on_epoch(self, event: soma.Event) -> None:
            calls.append(("epoch", event.epoch))

    class Duck:
        def on_end(self, event: soma.Event) -> None:
            calls.append((event.message, event.step))

    trainer = make_trainer(epochs=2, batch_size=32, checkpoint_dir=tmp_path, checkpoint_every=2)
    trainer.fit(SENTENCES, callbacks=[lambda event: kinds.append(event.kind), Listener(), Duck()])
    assert kinds == [
        "start", "step", "step", "evaluate", "epoch", "checkpoint", "step", "step", "evaluate", "epoch", "checkpoint",
        "end",
    ]  # fmt: skip
    assert calls == [
        ("step", 1), ("step", 2), ("epoch", 1), ("step", 3), ("step", 4), ("epoch", 2), ("finished", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, [1, 2, 3, 4]), (1e9, [4]), (0, [4]), (None, [4])])
def test_checkpoints_by_time_come_within_an_epoch_too(tmp_path: Path, minutes: float | None, saved: list[int]) -> None:
    """Each minute is over after every step, or none is before the end."""
    steps: list[int] = []
    trainer = make_trainer(epochs=2, batch_size=32, checkpoint_dir=tmp_path, checkpoint_minutes=minutes)
    trainer.fit(SENTENCES, callbacks=lambda event: steps.append(event.step) if event.kind == "checkpoint" else None)
    assert steps == saved
    assert {"model.safetensors", "training_state.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_events_carry_what_happened() -> None:
    events: list[soma.Event] = []
    trainer = make_trainer(epochs=1, batch_size=32)
    trainer.fit(SENTENCES, callbacks=events.append)
    start, step = events[0], events[1]
    assert math.isnan(start.loss)
    assert (step.step, step.total_steps, step.epoch, step.epochs, step.trainer) == (1, 2, 1, 1, trainer)
    assert step.loss > 0
    assert step.grad_norm > 0
    assert step.tokens_per_second > 0
    assert [event.record for event in events if event.kind == "evaluate"] == trainer.history.records


@pytest.mark.parametrize("callback", [3, "step", object(), soma.Callback])
def test_what_is_no_callback_is_refused(callback: object) -> None:
    with pytest.raises(TypeError, match="callbacks must be functions of an Event"):
        make_trainer().fit(SENTENCES, callbacks=[callback])
