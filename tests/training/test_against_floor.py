"""The floor beside a training: the same bytes, where it is said, and where there is none."""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, interrupt, losses, make_model
from soma_native.analysis.window_floor import WindowFloor
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.training import against_floor
from soma_native.training.against_floor import AgainstFloor
from soma_native.training.evaluate import predicted_bytes

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

CHARS = soma.Tokenizer.train(SENTENCES, kind="char")
STORE = TokenStore.encode(SENTENCES, CHARS, "auto")
TRAIN, VALIDATION = STORE.split(0.2)


def make_trainer(tok: soma.Tokenizer | None = CHARS, **settings: Any) -> soma.Trainer:
    size = CHARS.vocab_size if tok is None else tok.vocab_size
    return soma.Trainer(make_model(vocab_size=size), tok, soma.TrainConfig(steps=2, val_fraction=0.2, **settings))


def text_of(store: TokenStore) -> list[str]:
    return [CHARS.decode(store.tokens[a:b]) for a, b in zip(store.starts, store.stops, strict=True)]


def test_a_run_has_the_floor_of_its_own_split(tmp_path: Path) -> None:
    callbacks = [AgainstFloor(TRAIN, VALIDATION)]
    history = make_trainer(checkpoint_dir=tmp_path).fit(STORE, callbacks=callbacks)
    floor = soma.text_floor(text_of(TRAIN), text_of(VALIDATION), CHARS)
    assert history.floor is not None and history.best is not None
    assert history.floor.ngram == pytest.approx(floor.ngram, rel=1e-12)
    assert (history.floor.bytes, history.floor.xz) == (floor.bytes, floor.xz)
    assert history.compared == history.floor.sentence(history.best["val_bits_per_byte"] or 0.0)
    assert losses(history) == losses(make_trainer().fit(STORE)), "the training is the same"
    end = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (end["floor"]["ngram"], end["compared"]) == (history.floor.ngram, history.compared)
    again = soma.History.from_json(tmp_path / "history.json")
    assert (again.floor, again.compared) == (history.floor, history.compared)


def test_a_resumed_run_has_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_trainer(checkpoint_dir=tmp_path)
    floor = first.fit(
        STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION), lambda event: event.step == 1 and first.stop()]
    ).floor
    monkeypatch.setattr(against_floor, "WindowFloor", lambda *arguments, **named: pytest.fail("measured again"))
    history = soma.Trainer.resume(tmp_path).fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION)])
    assert history.floor == floor is not None


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_the_windows_of_a_floor_are_those_of_the_validation(kind: str) -> None:
    texts = [f"{text}: für {i} €, 漢字 {text[::-1]} 🙂" for i, text in enumerate(SENTENCES)]
    tok = soma.Tokenizer.train(texts, kind=kind, **({"vocab_size": 300} if kind == "bpe" else {}))
    train, validation = TokenStore.encode(texts, tok, "auto").split(0.4)
    windows = Windows(validation, 7)
    found, whole = WindowFloor(train, windows, tok), soma.text_floor(train, validation, tok)
    everything = found.measure()
    for name in ("ngram", "characters", "tokens"):
        assert getattr(everything, name) == pytest.approx(getattr(whole, name), rel=1e-9)
    assert (everything.bytes, everything.xz, everything.training_bytes) == (whole.bytes, whole.xz, whole.training_bytes)
    some = found.measure(9)
    pairs = predicted_bytes(windows, tok, 9)
    assert pairs is not None and abs(some.bytes - pairs[1]) <= 3 * 9, "a cut character counts where it begins"
    assert some.bytes < everything.bytes and some.ngram != everything.ngram


def test_where_the_clock_limits_the_windows_all_figures_are_of_those() -> None:
    clock = itertools.count(step=1)
    settings: dict[str, Any] = {"minutes": 2.0, "steps": None, "batch_size": 1, "val_fraction": 0.2}
    trainer = soma.Trainer(
        make_model(vocab_size=CHARS.vocab_size), CHARS, soma.TrainConfig(**settings), clock=lambda: float(next(clock))
    )
    history = trainer.fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION)])
    limit = history.decisions[0]["max_eval_windows"]
    windows = Windows(VALIDATION, 16)
    assert limit is not None and limit < len(windows)
    predicted = predicted_bytes(windows, CHARS, limit)
    assert predicted is not None and history.floor is not None
    assert history.floor == WindowFloor(TRAIN, windows, CHARS).measure(limit)
    pairs, size = predicted
    assert history.floor.bytes == size
    for record in history.records:
        assert record["val_loss"] is not None
        assert record["val_bits_per_byte"] == pytest.approx(record["val_loss"] * pairs / size / math.log(2))


def test_there_is_none_where_bytes_do_not_compare(caplog: pytest.LogCaptureFixture) -> None:
    words = TokenStore.encode(SENTENCES, WORDS, "auto")
    unknown = TokenStore.encode([*SENTENCES, "Q"], CHARS, "auto")
    for tok, store in ((WORDS, words), (None, STORE), (CHARS, unknown)):
        history = make_trainer(tok).fit(store, callbacks=[AgainstFloor(*store.split(0.2))])
        assert history.floor is history.compared is None
    with caplog.at_level(logging.WARNING, "soma_native"):
        history = make_trainer().fit(unknown, callbacks=[AgainstFloor(*unknown.split(0.2))])
    assert "no floor is measured: 1 token of the texts stand" in caplog.text
    assert history.records[-1]["val_bits_per_byte"] is not None, "the validation has none"
    both = TokenStore.encode([f"{text}Q" for text in SENTENCES], CHARS, "auto")
    with caplog.at_level(logging.WARNING, "soma_native"):
        history = make_trainer().fit(both, callbacks=[AgainstFloor(*both.split(0.2))])
    assert "no floor is measured, and there are no bits per byte: 64 tokens" in caplog.text
    assert history.records[-1]["val_bits_per_byte"] is None


def test_a_run_that_goes_on_before_the_clock_decides_has_the_floor_of_its_windows(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"minutes": 2.0, "steps": None, "batch_size": 1, "val_fraction": 0.2}

    def trainer(**more: Any) -> soma.Trainer:
        clock, model = itertools.count(), make_model(vocab_size=CHARS.vocab_size)
        config = soma.TrainConfig(**settings, checkpoint_dir=tmp_path, **more)
        return soma.Trainer(model, CHARS, config, clock=lambda: float(next(clock)))

    with pytest.raises(KeyboardInterrupt):
        trainer().fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION), at_step(1, interrupt)])
    history = trainer(resume=True).fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION)])
    limit = history.decisions[-1]["max_eval_windows"]
    assert limit is not None and history.floor == WindowFloor(TRAIN, Windows(VALIDATION, 16), CHARS).measure(limit)


def test_a_text_of_noise_is_not_counted_far(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its 5-grams never come again, so that each takes memory."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghijklmnop"), 400)) for _ in range(90)]
    tok = soma.Tokenizer.train(texts, kind="char")
    store = TokenStore.encode(texts, tok, "auto")
    monkeypatch.setattr(against_floor, "_MOST_BYTES", {True: 10**9, False: 1000})
    with caplog.at_level(logging.WARNING, "soma_native"):
        assert make_trainer(tok).fit(store, callbacks=[AgainstFloor(*store.split(0.2))]).floor is None
    assert "no floor is measured: the training part has some" in caplog.text


def test_parts_of_ends_alone_have_none() -> None:
    texts = ["t"] * 40
    store = TokenStore.encode(texts, CHARS, "auto")
    assert make_trainer().fit(store, callbacks=[AgainstFloor(*store.split(0.2))]).floor is None


def test_large_texts_are_not_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    size = sum(len(text) for text in text_of(TRAIN))
    monkeypatch.setattr(against_floor, "_MOST_BYTES_OF_XZ", size)
    floor = make_trainer().fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION)]).floor
    assert floor is not None and floor.xz is None and floor.ngram > 0
    monkeypatch.setattr(against_floor, "_MOST_BYTES", {True: 0.9 * size, False: 0.9 * size})
    with caplog.at_level(logging.WARNING, "soma_native"):
        assert make_trainer().fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION)]).floor is None
    assert "no floor is measured" in caplog.text


def test_train_compares_the_model(tmp_path: Path, run: Any) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    command = ("train", tmp_path / "text.txt", "--preset", "nano-cpu", "--steps", 2, "--seq-len", 16, "--out")
    result = run(*command, tmp_path / "a")
    history = soma.History.from_json(tmp_path / "a" / "history.json")
    assert history.floor is not None and history.compared is not None
    assert f"floor: {history.floor}\n" in result.err
    assert f"beside what needs no training: {history.compared}\n" in result.out
    assert "character 5-gram" in result.err and "single tokens" in result.err and "xz -9e" in result.err
    floor = run(*command, tmp_path / "b", "--json").json["floor"]
    assert (floor["ngram"], floor["sentence"]) == (history.floor.ngram, history.compared)
    assert run(*command, tmp_path / "c", "--val-fraction", 0, "--json").json["floor"] is None


def test_the_plot_has_averages_and_the_floor_in_the_unit_of_its_axis(tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    trainer = make_trainer(tail_average=0.5, eval_every=1)
    history = trainer.fit(STORE, callbacks=[AgainstFloor(TRAIN, VALIDATION)])
    axes = figures.Figure().subplots()
    history._draw(axes)
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    bits = [record["val_bits_per_byte"] for record in history.records]
    assert axes.get_ylabel() == "loss (bits a byte)"
    assert lines["validation"] == pytest.approx(bits[:1])
    assert lines["validation, averaged weights"] == pytest.approx(bits[1:])
    assert history.floor is not None
    assert lines[f"character 5-gram, {history.floor.ngram:.3f}"] == [history.floor.ngram] * 2
    for record in history.records:
        record["val_bits_per_byte"] = None
    axes = figures.Figure().subplots()
    history._draw(axes)
    assert axes.get_ylabel() == "loss (nats a token)"
    assert len(axes.get_lines()) == 3, "bits a byte have no place on an axis of nats a token"
