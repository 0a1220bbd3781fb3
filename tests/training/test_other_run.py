"""A run that is resumed with other arguments than it was begun with: the error names each of them, nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, losses, make_model, make_trainer, weights
from soma_native.training import ranks
from soma_native.training.config import FREE_TO_CHANGE

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

# What each setting is given otherwise, and what the error says the run has.
SETTINGS: dict[str, tuple[Any, str]] = {
    "epochs": (4, "3"),
    "steps": (9, "3 epochs"),
    "minutes": (0.5, "3 epochs"),
    "batch_size": (4, "8"),
    "seq_len": (7, "none"),
    "sampling": ("random", "epoch"),
    "fresh_windows": (False, "True"),
    "optimizer": ("muon", "adamw"),
    "lr": (0.5, "0.01"),
    "min_lr": (0.001, "none"),
    "warmup_steps": (5, "none"),
    "schedule": ("constant", "cosine"),
    "decay_fraction": (0.25, "0.5"),
    "cautious_decay": (True, "False"),
    "dropout": (0.1, "0.0"),
    "token_mask": (0.1, "0.0"),
    "ema": (0.9, "none"),
    "tail_average": (0.25, "none"),
    "distill": (0.25, "0.5"),
    "teachers": (2, "0"),
    "teacher_length": (0.25, "0.5"),
    "betas": ([0.8, 0.9], "[0.9, 0.95]"),
    "eps": (1e-6, "1e-08"),
    "weight_decay": (0.2, "0.1"),
    "final_weight_decay": (1.0, "none"),
    "max_grad_norm": (2.0, "1.0"),
    "grad_accumulation": (2, "1"),
    "sync_every": (2, "none"),
    "seed": (1, "0"),
    "val_fraction": (0.5, "0.2"),
    "eval_every": (5, "none"),
    "max_eval_windows": (2, "none"),
    "patience": (2, "none"),
    "min_delta": (0.5, "0.0"),
    "end_of_document": ("<END>", "auto"),
}
SHAPE: dict[str, tuple[Any, str]] = {
    "vocab_size": (40, str(WORDS.vocab_size)),
    "d_model": (32, "16"),
    "n_layers": (2, "1"),
    "n_heads": (4, "2"),
    "d_ff": (64, "32"),
    "max_seq_len": (20, "16"),
    "tied_head": (True, "False"),
}

# Fields that one block alone has: the block, another value, and what the error says the run has.
OF_ONE_BLOCK: dict[str, tuple[str, Any, str]] = {
    "activation": ("gpt2", "relu", "gelu_tanh"),
    "scale_attn_weights": ("gpt2", False, "True"),
    "scale_attn_by_inverse_layer_idx": ("gpt2", True, "False"),
    "n_kv_heads": ("llama", 1, "2"),
    "head_dim": ("llama", 4, "8"),
    "qk_norm": ("llama", True, "False"),
    "rope_theta": ("llama", 100.0, "10000.0"),
    "norm_eps": ("llama", 1e-5, "1e-06"),
}


def refused(trainer: soma.Trainer, folder: Path, texts: list[str] = SENTENCES, **data: Any) -> str:
    """What the error says differs; model and folder are as before."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    untouched = weights(trainer.model)
    with pytest.raises(ValueError, match="cannot resume the run in") as error:
        trainer.fit(texts, **data)
    assert weights(trainer.model) == untouched
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    named, mend = str(error.value).removeprefix(f"cannot resume the run in {folder}: ").split(". Trainer.resume takes ")
    assert "another checkpoint_dir, or resume=False" in mend
    return named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(checkpoint_dir=folder, val_fraction=0.2).fit(SENTENCES)
    return folder


def test_every_argument_is_tested_here() -> None:
    assert {field.name for field in dataclasses.fields(soma.TrainConfig)} - FREE_TO_CHANGE == SETTINGS.keys()
    assert {field.name for field in dataclasses.fields(soma.ModelConfig)} - {
        "block"
    } == SHAPE.keys() | OF_ONE_BLOCK.keys()


def has(there: object) -> str:
    return "was begun without it" if there == "none" else f"has {there}"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_given_otherwise_is_named(folder: Path, name: str) -> None:
    value, there = SETTINGS[name]
    beside = {
        "steps": {"epochs": None},
        "minutes": {"epochs": None},
        "optimizer": {"betas": (0.9, 0.95)},
    }  # which differ with it where left out
    settings = {"val_fraction": 0.2, **beside.get(name, {}), name: value}
    trainer = make_trainer(checkpoint_dir=folder, resume=True, **settings)
    assert refused(trainer, folder) == f"{name}={value!r}: this run {has(there)}"
    assert refused(soma.Trainer.resume(folder, **{name: value}), folder) == f"{name}={value!r}: this run {has(there)}"


@pytest.mark.parametrize("name", SHAPE)
def test_another_shape_of_the_model_is_named(folder: Path, name: str) -> None:
    value, there = SHAPE[name]
    config = soma.TrainConfig(epochs=3, lr=1e-2, val_fraction=0.2, checkpoint_dir=folder, resume=True)
    trainer = soma.Trainer(make_model(**{name: value}), WORDS, config)
    assert refused(trainer, folder) == f"{name}={value!r}: this run {has(there)}"


@pytest.mark.parametrize("name", OF_ONE_BLOCK)
def test_another_shape_of_one_block_is_named(tmp_path: Path, name: str) -> None:
    block, value, there = OF_ONE_BLOCK[name]
    config = soma.TrainConfig(epochs=1, checkpoint_dir=tmp_path)
    soma.Trainer(make_model(block=block), WORDS, config).fit(SENTENCES)
    trainer = soma.Trainer(make_model(block=block, **{name: value}), WORDS, dataclasses.replace(config, resume=True))
    assert refused(trainer, tmp_path) == f"{name}={value!r}: this run {has(there)}"


def test_another_block_is_named(folder: Path, block: str) -> None:
    config = soma.TrainConfig(epochs=3, lr=1e-2, val_fraction=0.2, checkpoint_dir=folder, resume=True)
    trainer = soma.Trainer(make_model(block=block), WORDS, config)
    if block == "soma":
        assert losses(trainer.fit(SENTENCES)) == losses(make_trainer(val_fraction=0.2).fit(SENTENCES))
    else:
        assert f"block='{block}': this run has soma" in refused(trainer, folder)


def test_another_precision_is_named(folder: Path, precision: str) -> None:
    other = "float32" if precision == "bfloat16" else "bfloat16"
    run = folder.parent / f"run-{precision}"
    shape, config = make_model().config, soma.TrainConfig(epochs=1, checkpoint_dir=run)
    soma.Trainer(soma.Model(shape, precision=precision), WORDS, config).fit(SENTENCES)
    trainer = soma.Trainer(soma.Model(shape, precision=other), WORDS, dataclasses.replace(config, resume=True))
    assert refused(trainer, run) == f"precision='{other}': this run has {precision}"


def test_a_length_that_decides_how_momentum_rises_is_named(tmp_path: Path) -> None:
    """At a constant rate a run can be longer, but not once its first steps are others."""
    settings = {"schedule": "constant", "optimizer": "muon", "checkpoint_dir": tmp_path}
    make_trainer(epochs=3, **settings).fit(SENTENCES)
    trainer = make_trainer(epochs=20, **settings, resume=True)
    assert refused(trainer, tmp_path) == "epochs=20: this run has 3"


def test_other_data_is_named(folder: Path, tmp_path: Path) -> None:
    again = {"checkpoint_dir": folder, "val_fraction": 0.2, "resume": True}
    assert refused(make_trainer(**again), folder, [*SENTENCES[1:], SENTENCES[0]]) == "texts: this run has other texts"
    both = refused(make_trainer(**{**again, "val_fraction": 0.5}), folder, SENTENCES[1:])
    assert both == "val_fraction=0.5: this run has 0.2; texts: this run has other texts"

    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES[9:], validation=SENTENCES[:9])
    trainer = make_trainer(checkpoint_dir=tmp_path, resume=True)
    assert refused(trainer, tmp_path, SENTENCES[9:]) == "validation: this run has other texts"
    assert refused(trainer, tmp_path, SENTENCES[9:], validation=SENTENCES[:8]) == "validation: this run has other texts"
    names = refused(trainer, tmp_path, SENTENCES[8:], validation=SENTENCES[:8])
    assert names == "texts: this run has other texts; validation: this run has other texts"


def test_another_tokenizer_is_named_and_not_the_texts(folder: Path) -> None:
    tok = soma.Tokenizer.train([*SENTENCES, "ant ant ant " * 99], kind="word", vocab_size=WORDS.vocab_size)
    config = soma.TrainConfig(epochs=3, lr=1e-2, val_fraction=0.2, checkpoint_dir=folder, resume=True)
    assert refused(soma.Trainer(make_model(), tok, config), folder) == "tokenizer: this run has another"


def test_a_run_cannot_become_shorter_than_it_is(tmp_path: Path) -> None:
    settings = {"schedule": "constant", "warmup_steps": 2, "checkpoint_dir": tmp_path}
    make_trainer(epochs=2, **settings).fit(SENTENCES)
    trainer = make_trainer(epochs=1, **settings, resume=True)
    assert refused(trainer, tmp_path) == "epochs=1: this run has done 16 steps"


def test_a_setting_that_a_run_has_not_heard_of_has_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that an earlier version began goes on with a version that has more settings."""
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    real = ranks.read_state

    def read_state(folder: Path) -> Any:
        state, steps = real(folder)
        state = dataclasses.replace(state, identity=json.loads(json.dumps(state.identity)), config=dict(state.config))
        for missing in ("min_delta", "grad_accumulation", "evaluation_precision"):
            state.identity.pop(missing)
            state.config.pop(missing, None)
        state.identity["model"].pop("tied_head")
        return state, steps

    monkeypatch.setattr(ranks, "read_state", read_state)
    trainer = make_trainer(checkpoint_dir=tmp_path, resume=True)
    trainer.model._evaluate_in(trainer.model.precision)
    assert trainer.fit(SENTENCES).stop_reason == "finished"
    other = make_trainer(checkpoint_dir=tmp_path, resume=True, grad_accumulation=2)
    other.model._evaluate_in(other.model.precision)
    assert refused(other, tmp_path) == "grad_accumulation=2: this run has 1"
