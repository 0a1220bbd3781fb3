"""Dropout and masked tokens in a training run: resumed bit for bit, other noise in each micro-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, interrupt, losses, make_model, make_trainer, weights
from soma_native._core import _ops as ops

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk", "settings_restored")

NOISY: dict[str, Any] = {"dropout": 0.2, "token_mask": 0.1, "seed": 5}
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 6, "grad_accumulation": 2, "val_fraction": 0.2, "eval_every": 5, "ema": 0.9, "lr": 1e-2,
}  # fmt: skip


def trainer_of(block: str, model_seed: int = 0, **settings: Any) -> soma.Trainer:
    """With a model of which six sentences are work for three threads."""
    model = make_model(model_seed, block, d_model=64, d_ff=128, n_layers=2)
    return soma.Trainer(model, WORDS, soma.TrainConfig(**SETTINGS, **settings))


def test_resuming_goes_on_bit_for_bit_on_any_number_of_threads(block: str, tmp_path: Path, precision: str) -> None:
    soma.set_num_threads(1)
    whole = trainer_of(block, **NOISY)
    expected = losses(whole.fit(SENTENCES))
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        ops.widest_job()
        run = {**NOISY, "checkpoint_dir": tmp_path / str(threads), "checkpoint_every": 3}
        with pytest.raises(KeyboardInterrupt):
            trainer_of(block, **run).fit(SENTENCES, callbacks=at_step(4, interrupt))
        again = trainer_of(block, 99, **run, resume=True)
        assert losses(again.fit(SENTENCES)) == expected, threads
        assert ops.widest_job() == threads
        assert weights(again.model) == weights(whole.model), threads


def test_every_option_at_once_goes_on_bit_for_bit_on_any_number_of_threads(tmp_path: Path) -> None:
    everything: dict[str, Any] = {
        **NOISY, "optimizer": "muon", "schedule": "wsd", "cautious_decay": True, "weight_decay": 0.1,
        "final_weight_decay": 0.5, "fresh_windows": True, "distill": 0.4, "patience": 9, "seq_len": 12,
    }  # fmt: skip
    teachers = [make_model(seed, "llama", d_model=32) for seed in (7, 8)]
    soma.set_num_threads(1)
    whole = trainer_of("llama", **everything, checkpoint_dir=tmp_path / "whole")
    expected = losses(whole.fit(SENTENCES, teacher=teachers))
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        run = {**everything, "checkpoint_dir": tmp_path / str(threads)}
        with pytest.raises(KeyboardInterrupt):
            trainer_of("llama", **run).fit(SENTENCES, teacher=teachers, callbacks=at_step(7, interrupt))
        again = trainer_of("llama", 99, **run, resume=True)
        assert losses(again.fit(SENTENCES, teacher=teachers)) == expected, threads
        assert weights(again.model) == weights(whole.model), threads
        saved, one = (weights(soma.load(tmp_path / name)[0]) for name in (str(threads), "whole"))
        assert saved == one, threads


def test_each_micro_batch_has_noise_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("llama", **NOISY)
    seen: list[dict[str, Any]] = []
    compute = trainer.model.loss_and_grad

    def watch(*arguments: Any, **options: Any) -> float:
        seen.append(options)
        return compute(*arguments, **options)

    monkeypatch.setattr(trainer.model, "loss_and_grad", watch)
    trainer.fit(SENTENCES)
    assert all((options["dropout"], options["token_mask"]) == (0.2, 0.1) for options in seen)
    named = [options["noise"] for options in seen]
    assert len(named) == len(set(named)) > 10
    assert named[:3] == [(5, 0, 0), (5, 0, 1), (5, 1, 0)]


@pytest.mark.parametrize("name", ["dropout", "token_mask"])
def test_each_rate_changes_the_training(name: str) -> None:
    plain = losses(make_trainer(val_fraction=0.2).fit(SENTENCES))
    assert losses(make_trainer(val_fraction=0.2, **{name: 0.3}).fit(SENTENCES)) != plain
    assert losses(make_trainer(val_fraction=0.2, **{name: 0.0}).fit(SENTENCES)) == plain


@pytest.mark.parametrize("name", ["dropout", "token_mask"])
@pytest.mark.parametrize("value", [1, 1.5, -0.1, float("nan")])
def test_a_rate_that_cannot_be_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be (at least 0 and below 1, got|finite)"):
        soma.TrainConfig(**{name: value})
