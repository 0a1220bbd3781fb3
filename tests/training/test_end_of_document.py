"""The end of a document: a token that training puts there, and at which generation stops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from helpers.training import WORDS, make_model, make_trainer

TEXTS = ["the cat", "the owl and the fox", ""]


@pytest.mark.parametrize(("token", "end"), [("auto", "<EOS>"), ("<END>", "<END>"), (None, None)])
def test_the_token_follows_each_document(token: str | None, end: str | None) -> None:
    store = soma.TokenStore.encode(TEXTS, WORDS, token)
    end_id = None if end is None else WORDS.token_to_id(end)
    ends = [] if end_id is None else [end_id]
    documents = [store.tokens[a:b].tolist() for a, b in zip(store.starts, store.stops, strict=True)]
    assert documents == [[*WORDS.encode(text), *ends] for text in TEXTS[:2]]
    assert store.end_id == end_id
    assert (store.dropped_documents, store.dropped_tokens) == (1, len(ends))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_long_file_ends_too(tmp_path: Path, kind: str) -> None:
    """A file of several pieces is one document."""
    path = tmp_path / "text.txt"
    path.write_text("ab cd\n" * 400_000, encoding="utf-8")
    tok = soma.Tokenizer.train(["ab cd\n"], kind=kind)
    store = soma.TokenStore.encode([path, "ab"], tok, "auto")
    found = np.flatnonzero(store.tokens == tok.token_to_id("<|endoftext|>"))
    assert found.tolist() == (store.stops - 1).tolist() and len(found) == 2


def test_both_parts_of_a_split_know_the_end() -> None:
    parts = soma.TokenStore.encode(["the cat and the owl"] * 30, WORDS, "auto").split(0.2)
    assert [part.end_id for part in parts] == [WORDS.token_to_id("<EOS>")] * 2


@pytest.mark.parametrize("how", ["in memory", "saved by fit", "saved by save"])
def test_generation_stops_at_the_end(tmp_path: Path, how: str) -> None:
    """Also from a folder that `fit` or `save` wrote."""
    trainer = make_trainer(epochs=1, checkpoint_dir=tmp_path, end_of_document="<END>")
    trainer.fit(TEXTS)
    model, tok = trainer.model, WORDS
    if how == "saved by save":
        soma.save(tmp_path, model, tok)
    if how != "in memory":
        model, tok = soma.load(tmp_path)
    sequence = soma.Generator(model, tok)
    assert sequence._end_ids == {WORDS.token_to_id("<END>")}


def test_without_an_end_nothing_is_promised() -> None:
    trainer = make_trainer(epochs=1, end_of_document=None)
    trainer.fit(TEXTS)
    assert soma.Generator(trainer.model, WORDS)._end_ids == frozenset()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("the", ValueError, r"end_of_document must be a special token of the vocabulary \(<PAD>, .*\), got 'the'"),
        (3, TypeError, "end_of_document must be a token or None, got 3"),
    ],
)
def test_a_token_that_cannot_end_is_refused(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_trainer(end_of_document=value).fit(TEXTS)


def test_a_model_learns_where_documents_end() -> None:
    names = ["anna", "ben", "carla", "dora", "emil", "fred"] * 4
    tok = soma.Tokenizer.train(names, kind="char")
    model = make_model(vocab_size=tok.vocab_size)
    soma.Trainer(model, tok, soma.TrainConfig(epochs=60, batch_size=8, lr=1e-2)).fit(names)
    made = soma.Generator(model, tok).generate_batch([name[:2] for name in names[:6]], 12, temperature=0)
    assert sum(text in names for text in made) >= 4, made
