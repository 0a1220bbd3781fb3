"""Samples while a model is trained: when they are made, what they say, and that they change nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, losses, make_model, make_trainer, weights
from soma_native.cli.progress import ProgressDisplay
from soma_native.data.token_store import TokenStore
from soma_native.training.samples import Samples

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

STORE = TokenStore.encode(SENTENCES, WORDS, "auto")


class Heard(soma.Callback):
    def __init__(self) -> None:
        self.samples: list[tuple[int, str, str]] = []

    def on_sample(self, event: soma.Event) -> None:
        self.samples.append((event.step, event.details["prompt"], event.details["text"]))


class Clock:
    """Gives these times, then the last of them for ever."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self) -> float:
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"optimizer": "muon", "tail_average": 0.5}], ids=str)
def test_samples_change_nothing_of_the_training(settings: dict[str, Any]) -> None:
    plain, watched = (make_trainer(eval_every=2, val_fraction=0.2, **settings) for _ in range(2))
    heard = Heard()
    wanted = losses(plain.fit(SENTENCES))
    assert losses(watched.fit(SENTENCES, callbacks=[Samples(STORE, every=0.0, clock=lambda: 0.0), heard])) == wanted
    assert weights(watched.model) == weights(plain.model)
    assert [step for step, *_ in heard.samples] == [record[1] for record in wanted]


def test_a_sample_goes_on_from_the_beginning_of_a_document_with_the_weights_that_are_saved(tmp_path: Path) -> None:
    trainer, heard = make_trainer(ema=0.9, checkpoint_dir=tmp_path, keep_best=False), Heard()
    trainer.fit(SENTENCES, callbacks=[Samples(STORE, every=0.0, seed=3, clock=lambda: 0.0), heard])
    assert [prompt for _, prompt, _ in heard.samples] == [" ".join(text.split()[:4]) for text in SENTENCES[:3]]
    saved = soma.Generator(*soma.load(tmp_path))
    _, prompt, text = heard.samples[-1]
    assert text == saved.generate(prompt, max_tokens=20, temperature=0.8, seed=3)
    written = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(e["step"], e["prompt"], e["text"]) for e in written if e["event"] == "sample"] == heard.samples


@pytest.mark.parametrize(
    ("times", "steps"),
    [
        ((0, 0, 10, 29, 30, 30, 59, 61), [2, 8, 12]),  # two for a sample, one where it is not time
        ((0, 2, 99, 101.5), [2]),  # a sample of two seconds waits for a hundred
        ((0, 2, 99, 102, 103), [2, 6]),
    ],
)
def test_samples_keep_their_distance(times: tuple[float, ...], steps: list[int]) -> None:
    heard = Heard()
    samples = Samples(STORE, clock=Clock(*times))
    make_trainer(eval_every=2, steps=12, epochs=None).fit(SENTENCES, callbacks=[samples, heard])
    assert [step for step, *_ in heard.samples] == steps


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_a_prompt_has_no_part_of_a_character(kind: str) -> None:
    texts = ["東京は大きい町です。" * 4, "é"]
    tok = soma.Tokenizer.train(texts, kind=kind)
    store = TokenStore.encode(texts, tok)
    heard = Heard()
    trainer = soma.Trainer(make_model(vocab_size=tok.vocab_size), tok, soma.TrainConfig(steps=2, eval_every=1))
    trainer.fit(texts, callbacks=[Samples(store, every=0.0, clock=lambda: 0.0), heard])
    first = heard.samples[0][1]
    assert first and texts[0].startswith(first)
    assert heard.samples[0][2].startswith(first)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("the first line of many\nthe second line of this text\nand the last of all the lines that it has", "\n"),
        ("one long line of words that has no second line at all, and goes on and on until its very end", " "),
        ("東京は大きい町です。" * 8, ""),
    ],
    ids=["lines", "words", "neither"],
)
def test_a_prompt_from_within_a_text_begins_with_a_line_or_a_word(kind: str, text: str, before: str) -> None:
    tok = soma.Tokenizer.train([text], kind=kind, vocab_size=270 if kind == "bpe" else None)
    whole = TokenStore.encode([text], tok)
    part = TokenStore(whole.tokens, [1], [len(whole.tokens)])
    heard = Heard()
    trainer = soma.Trainer(make_model(vocab_size=tok.vocab_size), tok, soma.TrainConfig(steps=1, eval_every=1))
    trainer.fit([text], callbacks=[Samples(part, every=0.0, clock=lambda: 0.0), heard])
    ((_, prompt, sample),) = heard.samples
    assert prompt and f"{before}{prompt}" in text
    assert sample.startswith(prompt) and "\ufffd" not in sample


def test_without_a_tokenizer_there_are_none() -> None:
    heard = Heard()
    trainer = soma.Trainer(make_model(), None, soma.TrainConfig(steps=2))
    trainer.fit(STORE, callbacks=[Samples(STORE), heard])
    assert heard.samples == []


@pytest.mark.parametrize("live", [False, True])
def test_the_display_shows_a_sample_in_one_line_without_control_characters(live: bool) -> None:
    trainer, stream = make_trainer(), io.StringIO()

    def tell(event: soma.Event) -> None:
        if event.kind == "start":
            event.trainer.tell("sample", prompt="a", text="a\nb\x1b[31m\u202e東京 [bold]\\n")

    with ProgressDisplay(stream, live=live) as display:
        trainer.fit(SENTENCES, callbacks=[display, tell])
    assert "sample  a\\nb\\x1b[31m\\u202e東京 [bold]\\n\n" in stream.getvalue().replace("\r", "")


def test_the_command_shows_samples_but_not_with_json(tmp_path: Path, run: Any) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    command = ("train", tmp_path / "text.txt", "--split", "line", "--preset", "nano-cpu", "--steps", 2, "--out")
    assert run(*command, tmp_path / "a").err.count("\nsample  ") == 1, "half a minute lies between two"
    assert '"event": "sample"' in (tmp_path / "a" / "events.jsonl").read_text()
    assert "sample" not in run(*command, tmp_path / "b", "--json").err
    assert '"event": "sample"' not in (tmp_path / "b" / "events.jsonl").read_text()
