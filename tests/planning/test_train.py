"""`soma.train`: the whole way in one call."""

from __future__ import annotations

from pathlib import Path

import pytest

import soma_native as soma
from soma_native.planning import train as module
from soma_native.planning.speed import Speed

TEXT = "the cat saw the dog and the dog ran. " * 60


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "measure_speed", lambda *_: Speed((8e5, 4.8e6), (2e10, 4e10), (0.02, 0.1), "sse", 1, "float32")
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


def test_a_text_too_short_to_hold_out_a_part_is_trained_on(tmp_path: Path) -> None:
    model, tok, history = soma.train(["ab"], minutes=0.02)
    assert tok.token_to_id("a") is not None and model.num_parameters > 0
    assert history.records[-1]["val_loss"] is None and history.floor is None
