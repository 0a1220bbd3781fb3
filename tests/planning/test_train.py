"""`soma.train`: the whole way in one call."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import at_step, interrupt
from soma_native.data.token_store import TokenStore
from soma_native.planning import train as module
from soma_native.planning.speed import Speed

TEXT = "the cat saw the dog and the dog ran. " * 60


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "measure_speed", lambda *_, **__: Speed((8e5, 4.8e6), (2e10, 4e10), (0.02, 0.1), "sse", 1, "float32")
    )


def test_texts_become_a_model_with_a_history_and_a_folder(tmp_path: Path) -> None:
    events: list[str] = []
    out = tmp_path / "m"
    model, tok, history = soma.train(
        iter([TEXT]), minutes=0.02, out=out, callbacks=lambda event: events.append(event.kind)
    )
    assert tok.encode(TEXT) and model.config.vocab_size == tok.vocab_size
    assert history.stop_reason == "finished" and history.floor is not None and history.compared
    assert events[0] == "start" and "plan" in events and events[-1] == "end"
    ids = tok.encode(TEXT)[:20]
    assert soma.load(out)[0].loss(ids[:-1], ids[1:]) == model.loss(ids[:-1], ids[1:])
    assert (out / "events.jsonl").exists()


def test_a_model_that_is_there_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    soma.train([TEXT], minutes=0.02, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"out holds .*overwrite=True"):
        soma.train([TEXT], minutes=0.02, out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    soma.train([TEXT], minutes=0.02, out=tmp_path, seed=1, overwrite=True)


@pytest.mark.parametrize("name", ["training_state.safetensors", "history.json", "model.safetensors", "a.gguf"])
def test_whatever_training_made_is_in_the_way_of_both(tmp_path: Path, run: Any, name: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    out = tmp_path / "m"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"out holds .*: give another folder, or overwrite=True"):
        soma.train([TEXT], minutes=0.02, out=out)
    refused = run("train", tmp_path / "text.txt", "--out", out, "--steps", 1)
    assert refused.status == 1 and f"{out}: holds " in refused.err and "--overwrite" in refused.err
    assert [(path.name, path.read_bytes()) for path in out.iterdir() if path.is_file()] == [(name, b"mine")]


def test_a_text_too_short_to_hold_out_a_part_is_trained_on(tmp_path: Path) -> None:
    model, tok, history = soma.train(["ab"], minutes=0.02)
    assert tok.token_to_id("a") is not None and model.num_parameters > 0
    assert history.records[-1]["val_loss"] is None and history.floor is None


def test_what_ctrl_c_ends_without_a_folder_is_kept_in_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert soma.train([TEXT], minutes=0.02)[2].checkpoint is None
    assert list(tmp_path.iterdir()) == [], "a run that ends leaves nothing"
    with caplog.at_level(logging.WARNING, "soma_native"), pytest.raises(KeyboardInterrupt):
        soma.train([TEXT], minutes=1, callbacks=at_step(4, interrupt))
    (folder,) = tmp_path.iterdir()
    assert f"saved in {folder}" in caplog.text
    assert soma.load(folder)[1].decode(soma.load(folder)[1].encode("the cat")) == "the cat"
    with pytest.raises(KeyboardInterrupt):
        soma.train([TEXT], minutes=1, callbacks=lambda event: interrupt() if event.kind == "start" else None)
    assert list(tmp_path.iterdir()) == [folder], "before the first step there is nothing to keep"


@pytest.mark.parametrize(("size", "held"), [(100, 0.0), (400, 0.1)])
def test_a_validation_of_a_few_pairs_is_left_out(size: int, held: float) -> None:
    tok = soma.Tokenizer.train([TEXT], kind="char")
    assert module.held_out(TokenStore.encode([TEXT[:size]], tok, "auto")) == held
