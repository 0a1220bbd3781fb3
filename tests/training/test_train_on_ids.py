"""Training from arrays of ids, with a tokenizer and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, losses, make_model, make_trainer

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

END = WORDS.token_to_id("<EOS>")
IDS = [WORDS.encode(text) for text in SENTENCES]
STORE = soma.TokenStore.from_arrays(IDS, end_id=END)


def trainer_of_ids(**settings: Any) -> soma.Trainer:
    return soma.Trainer(make_model(), None, soma.TrainConfig(**{"epochs": 3, "lr": 1e-2, **settings}))


def test_ids_train_as_their_text_does() -> None:
    wanted = losses(make_trainer().fit(SENTENCES, validation=SENTENCES[:9]))
    validation = soma.TokenStore.from_arrays(IDS[:9], end_id=END)
    assert losses(trainer_of_ids().fit(STORE, validation=validation)) == wanted
    assert losses(make_trainer().fit(STORE, validation=SENTENCES[:9])) == wanted


def test_a_run_without_a_tokenizer_saves_and_resumes(tmp_path: Path) -> None:
    whole = trainer_of_ids(val_fraction=0.2).fit(STORE)
    first = trainer_of_ids(val_fraction=0.2, checkpoint_dir=tmp_path)
    first.fit(STORE, callbacks=at_step(5, first.stop))
    again = soma.Trainer.resume(tmp_path)
    assert again.tokenizer is None
    assert losses(again.fit(STORE)) == losses(whole)
    assert not (tmp_path / "tokenizer.json").exists()
    assert soma.load_model(tmp_path).config == again.model.config
    with pytest.raises(soma.CheckpointError, match=r"tokenizer.json: is missing; soma_native.load_model\(folder\)"):
        soma.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == END, "generation ends there"


def test_a_lost_tokenizer_is_an_error_when_its_run_is_resumed(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(soma.CheckpointError, match=r"tokenizer\.json: is missing"):
        soma.Trainer.resume(tmp_path)


def test_texts_need_a_tokenizer() -> None:
    trainer = trainer_of_ids()
    said = "texts must be a soma_native.TokenStore of ids, for there is no tokenizer"
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(TypeError, match=said):
            call(SENTENCES)
    assert trainer.evaluate(STORE) == make_trainer().evaluate(SENTENCES)


def test_ids_that_the_model_does_not_have_are_refused_before_the_first_step() -> None:
    size = WORDS.vocab_size
    bad = soma.TokenStore.from_arrays([np.array([1, 2]), np.array([3, 4, size])])
    steps: list[soma.Event] = []
    said = rf"must have ids from 0 to {size - 1}; document 1 has the id {size} at position 2"
    for trainer in (trainer_of_ids(), make_trainer()):
        with pytest.raises(ValueError, match=f"texts {said}"):
            trainer.fit(bad, callbacks=steps.append)
        with pytest.raises(ValueError, match=f"validation {said}"):
            trainer.fit(STORE, validation=bad, callbacks=steps.append)
        with pytest.raises(ValueError, match=f"texts {said}"):
            trainer.evaluate(bad)
    assert steps == []


def test_the_command_says_that_a_folder_has_no_tokenizer(tmp_path: Path, run: Any) -> None:
    trainer_of_ids(epochs=1, checkpoint_dir=tmp_path / "run").fit(STORE)
    (tmp_path / "text.txt").write_text("the cat saw the dog")
    for command in (
        ("generate", tmp_path / "run", "the"),
        ("evaluate", tmp_path / "run", tmp_path / "text.txt"),
        ("train", tmp_path / "text.txt", "--out", tmp_path / "run", "--resume"),
    ):
        result = run(*command)
        assert result.status == 1
        assert len(result.err.splitlines()) == 1 and "tokenizer" in result.err
