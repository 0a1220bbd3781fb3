"""Trainings with device="cuda", in the emulation or on a GPU: runs that change device, teachers and noise, averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, losses, weights
from soma_native import _core
from soma_native.optim.average import WeightAverage

SHAPE = {"vocab_size": WORDS.vocab_size, "d_model": 12, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 8}
SETTINGS: dict[str, Any] = {
    "steps": 12, "batch_size": 2, "seq_len": 8, "lr": 0.01, "seed": 5, "optimizer": "muon", "ema": 0.9,
    "schedule": "linear", "dropout": 0.1, "token_mask": 0.1, "log_every": 1,
}  # fmt: skip
TEXTS = SENTENCES[:12]


@pytest.fixture(autouse=True)
def usual(no_waiting_for_the_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_PRECISION", "float32")


def trainer(device: str, **settings: Any) -> soma.Trainer:
    model = soma.Model(soma.ModelConfig(**SHAPE), seed=1, device=device)
    return soma.Trainer(model, WORDS, soma.TrainConfig(**{**SETTINGS, **settings}))


def test_a_run_goes_on_bit_for_bit_on_the_gpu(tmp_path: Path) -> None:
    whole = trainer("cuda")
    history = whole.fit(TEXTS)
    part = trainer("cuda", checkpoint_dir=tmp_path)
    part.fit(TEXTS, callbacks=at_step(5, part.stop))
    rest = soma.Trainer.resume(tmp_path, device="cuda")
    assert losses(rest.fit(TEXTS)) == losses(history)
    assert weights(rest.model) == weights(whole.model)


def test_a_run_goes_from_the_processor_to_the_gpu_and_back(tmp_path: Path) -> None:
    """What is saved has the same bits on both, so only the steps themselves are rounded otherwise."""
    whole = trainer("cpu")
    history = whole.fit(TEXTS)
    part = trainer("cpu", checkpoint_dir=tmp_path)
    part.fit(TEXTS, callbacks=at_step(4, part.stop))
    middle = soma.Trainer.resume(tmp_path, device="cuda")
    assert middle.model.device == "cuda" and weights(middle.model) == weights(soma.load(tmp_path)[0])
    middle.fit(TEXTS, callbacks=at_step(8, middle.stop))
    rest = soma.Trainer.resume(tmp_path)
    assert rest.model.device == "cpu" and weights(rest.model) == weights(soma.load(tmp_path, device="cuda")[0])
    got, want = (np.array([record[2] for record in losses(h)]) for h in (rest.fit(TEXTS), history))
    assert len(got) == len(want) and got == pytest.approx(want, rel=1e-3)
    for name, array in whole.model.parameters().items():
        assert rest.model.read(name) == pytest.approx(array, abs=0.05 * float(np.abs(array).max())), name


def test_a_lesson_with_noise_follows_that_on_the_processor() -> None:
    ids, targets = np.arange(16).reshape(2, 8) % 11, np.arange(3, 19).reshape(2, 8) % 11
    results = []
    for device in ("cpu", "cuda"):
        pupil, *teachers = (
            soma.Model(soma.ModelConfig(**{**SHAPE, "d_model": width}), seed=width, device=device)
            for width in (12, 8, 16)
        )
        noise = _core.Noise(0.3, 0.2, [1, 2])
        loss = pupil._core.loss_and_grad(
            ids.astype(np.int32),
            targets.astype(np.int32),
            noise=noise,
            teachers=[t._core for t in teachers],
            distill=0.4,
        )
        results.append((loss, {name: array.copy() for name, array in pupil.gradients().items()}))
    (loss, grads), (gpu_loss, gpu_grads) = results
    assert gpu_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in grads.items():
        assert np.linalg.norm(gpu_grads[name] - gradient) < 1e-4 * np.linalg.norm(gradient), name


def test_averages_are_kept_and_exchanged_on_the_gpu() -> None:
    averages = []
    for device in ("cpu", "cuda"):
        model = soma.Model(soma.ModelConfig(**SHAPE), seed=2, device=device)
        average = WeightAverage(model)
        for name, array in model.parameters().items():
            model.write(name, 2 * array)
        before = weights(model)
        average.update()
        with average.applied():
            averages.append(weights(model))
            assert averages[-1] != before
        assert weights(model) == before
    assert averages[0] == averages[1]
