"""What a training makes of optimizer, schedule and averages: resumed bit for bit, validated and saved as they say."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, interrupt, losses, make_model, make_trainer, weights
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.files.safetensors_io import TensorFile, write_tensors
from soma_native.parallel.world import World
from soma_native.training.config import TrainConfig
from soma_native.training.evaluate import mean_loss
from soma_native.training.layout import Layout
from soma_native.training.optimize import make_optimizer
from soma_native.training.state import STATE_FILE

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk", "settings_restored")

SETTINGS: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": "muon"},
    "muon, ema, wsd": {"optimizer": "muon", "ema": 0.9, "schedule": "wsd", "decay_fraction": 0.3},
    "adamw, ema, linear": {"ema": 0.8, "schedule": "linear", "cautious_decay": True, "weight_decay": 1.0},
    "muon, tail, cautious": {"optimizer": "muon", "tail_average": 0.4, "cautious_decay": True, "weight_decay": 1.0},
    "muon, wsd, more decay": {"optimizer": "muon", "schedule": "wsd", "final_weight_decay": 1.5},
}
COMMON: dict[str, Any] = {"epochs": 4, "batch_size": 8, "seed": 5, "val_fraction": 0.2, "eval_every": 5}


@pytest.mark.parametrize("name", SETTINGS)
def test_resuming_goes_on_bit_for_bit_on_any_number_of_threads(name: str, tmp_path: Path, precision: str) -> None:
    settings = {**COMMON, **SETTINGS[name]}
    soma.set_num_threads(1)
    whole = make_trainer(**settings)
    expected = losses(whole.fit(SENTENCES))
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        for step in (3, 18):
            run = {**settings, "checkpoint_dir": tmp_path / f"{threads}-{step}", "checkpoint_every": 7}
            with pytest.raises(KeyboardInterrupt):
                make_trainer(**run).fit(SENTENCES, callbacks=at_step(step, interrupt))
            again = make_trainer(model_seed=99, **run, resume=True)
            assert losses(again.fit(SENTENCES)) == expected, (threads, step)
            assert weights(again.model) == weights(whole.model), (threads, step)


@pytest.mark.parametrize("average", [{"ema": 0.9}, {"tail_average": 0.5}], ids=str)
def test_the_average_is_validated_and_saved_and_left_in_the_model(average: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(**COMMON, **average, checkpoint_dir=tmp_path, keep_best=False)
    trained: list[dict[str, Any]] = []

    def keep(event: soma.Event) -> None:
        if event.kind == "step":
            trained.append({name: array.copy() for name, array in trainer.model.parameters().items()})

    history = trainer.fit(SENTENCES, callbacks=keep)
    want = {name: array.astype(np.float64) for name, array in make_model().parameters().items()}
    total = len(trained)
    begin = 0 if "ema" in average else total - round(total * average["tail_average"])
    for t, step in enumerate(trained[begin:]):
        kept = min(average["ema"], (1 + t) / (10 + t)) if "ema" in average else t / (1 + t)
        want = {name: kept * want[name] + (1 - kept) * step[name] for name in want}
    for name, array in trainer.model.parameters().items():
        assert np.allclose(array, want[name], rtol=1e-4, atol=1e-6), name
        assert not np.array_equal(array, trained[-1][name]), name
    assert weights(soma.load(tmp_path)[0]) == weights(trainer.model)
    held_out = TokenStore.encode(SENTENCES, WORDS, "auto").split(COMMON["val_fraction"])[1]
    loss = mean_loss(trainer.model, Windows(held_out, 16), COMMON["batch_size"])
    assert loss == history.records[-1]["val_loss"]


def test_before_a_tail_begins_the_weights_themselves_are_validated() -> None:
    settings = {**COMMON, "epochs": 2}
    plain = losses(make_trainer(**settings).fit(SENTENCES))
    tail = losses(make_trainer(**settings, tail_average=0.3).fit(SENTENCES))
    assert tail[0] == plain[0]
    assert [record[2] for record in tail] == [record[2] for record in plain], "training itself is the same"
    assert tail[-1][3] != plain[-1][3]


def test_the_best_model_kept_is_an_average(tmp_path: Path, find_losses: Any) -> None:
    find_losses(*[3.0, 1.0, *[2.0] * 20])
    stopped = make_trainer(**COMMON, ema=0.9)
    stopped.fit(SENTENCES, callbacks=at_step(10, stopped.stop))
    find_losses(*[3.0, 1.0, *[2.0] * 20])
    make_trainer(**COMMON, ema=0.9, checkpoint_dir=tmp_path).fit(SENTENCES)
    assert weights(soma.load(tmp_path)[0]) == weights(stopped.model)


def test_muon_warms_its_momentum_up() -> None:
    texts = SENTENCES * 4
    config = TrainConfig(optimizer="muon", steps=100, batch_size=8)
    layout = Layout(make_model(), WORDS, config, texts, None)
    assert [layout.momentum(step) for step in (0, 5, 10, 99)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    long = Layout(make_model(), WORDS, TrainConfig(optimizer="muon", steps=10_000, batch_size=8), texts, None)
    assert [long.momentum(step) for step in (0, 100, 200)] == pytest.approx([0.85, 0.9, 0.95])
    short = Layout(make_model(), WORDS, TrainConfig(optimizer="muon", steps=3, batch_size=8), texts, None)
    assert short.momentum(0) == 0.95


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ({"schedule": "wsd", "decay_fraction": 0.4, "final_weight_decay": 0.5}, [0.1] * 7 + [0.2, 0.3, 0.4]),
        ({"schedule": "cosine", "final_weight_decay": 0.0}, [0.1, 0.1, *(0.1 - 0.0125 * i for i in range(8))]),
        ({"schedule": "linear"}, [0.1] * 10),
    ],
    ids=str,
)
def test_weight_decay_goes_to_its_end_while_the_rate_falls(
    settings: dict[str, Any], decays: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    real = soma.Muon.step

    def step(self: soma.Muon, lr: float, weight_decay: float) -> float:
        found.append(weight_decay)
        return real(self, lr, weight_decay)

    monkeypatch.setattr(soma.Muon, "step", step)
    make_trainer(optimizer="muon", steps=10, epochs=None, warmup_steps=2, **settings).fit(SENTENCES)
    assert found == pytest.approx(decays)


def test_settings_reach_the_optimizer() -> None:
    config = TrainConfig(optimizer="muon", lr=0.5, weight_decay=0.25, cautious_decay=True)
    optimizer, _ = make_optimizer(make_model(), config, World())
    assert isinstance(optimizer, soma.Muon) and (optimizer.lr, optimizer.weight_decay) == (0.5, 0.25)
    assert isinstance(make_optimizer(make_model(), TrainConfig(), World())[0], soma.AdamW)


def test_a_state_from_before_these_settings_goes_on(tmp_path: Path) -> None:
    """It names none of them, and means what was done then."""
    expected = make_trainer()
    expected.fit(SENTENCES)
    first = make_trainer(checkpoint_dir=tmp_path)
    first.fit(SENTENCES, callbacks=at_step(5, first.stop))
    path = tmp_path / STATE_FILE
    with TensorFile(path) as file:
        arrays, metadata = {name: file.read(name).copy() for name in file.entries}, dict(file.metadata)
    state = json.loads(metadata["state"])
    for part in (state["config"], state["identity"]):
        for new in ("optimizer", "decay_fraction", "cautious_decay", "ema", "tail_average", "fresh_windows",
                    "final_weight_decay", "dropout", "token_mask"):  # fmt: skip
            del part[new]
    metadata["state"] = json.dumps(state)
    metadata["state_crc32"] = str(zlib.crc32(metadata["state"].encode()))
    path.unlink()
    write_tensors(path, arrays, metadata)
    again = soma.Trainer.resume(tmp_path)
    again.fit(SENTENCES)
    assert weights(again.model) == weights(expected.model)


def test_a_damaged_average_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path, ema=0.9)
    trainer.fit(SENTENCES, callbacks=at_step(5, trainer.stop))
    path = tmp_path / STATE_FILE
    with TensorFile(path) as file:
        arrays, metadata = {name: file.read(name).copy() for name in file.entries}, dict(file.metadata)
    path.unlink()
    write_tensors(path, {name: array for name, array in arrays.items() if name != "average.wte"}, metadata)
    with pytest.raises(soma.CheckpointError, match=r"average\.wte.*is missing"):
        make_trainer(checkpoint_dir=tmp_path, ema=0.9, resume=True).fit(SENTENCES)
