"""Scores and vectors of texts: against the model's logits window by window, places, bytes, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import math
import pickle
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.training.evaluate import document_bytes, document_losses, mean_loss, predicted_bytes

TEXT = "Näher, \U0001f600 ging's nicht — 東京!\nThe cat sat on the mat; the cat said no. " * 2
TEXTS = [TEXT, "the cat sat", "A dog ate the cat's food, and the cat said: no!"]
KINDS = ("word", "char", "byte", "bpe")


def make(kind: str = "char", max_seq_len: int = 16, block: str = "gpt2", **more: Any) -> soma.Generator:
    """A generator of a random model with large weights, so that some tokens are much likelier than others."""
    size = {"vocab_size": 280} if kind == "bpe" else {}
    tok = soma.Tokenizer.train(TEXTS, kind=kind, **size, **more)
    config = soma.ModelConfig(
        vocab_size=tok.vocab_size, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=max_seq_len, block=block
    )
    model = soma.Model(config, seed=3, precision="float32")
    for name, array in model.parameters().items():
        model.write(name, 8 * array if array.ndim == 2 else array)
    return soma.Generator(model, tok)


def expected(gen: soma.Generator, text: str, stride: int) -> tuple[list[float], list[int], list[list[int]]]:
    """(log-probabilities, ranks, ids in order) of every token but the first, window by window, in float64."""
    model, ids, done = gen._model, gen._tok.encode(text), 0
    logprobs, ranks, orders = [], [], []
    for begin in range(0, len(ids), stride):
        end = min(begin + model.config.max_seq_len, len(ids) - 1)
        logits = model.forward(ids[begin:end]).astype(np.float64)
        for place in range(max(begin, done), end):
            row, target = logits[place - begin], ids[place + 1]
            order = np.argsort(-row, kind="stable").tolist()
            logprobs.append(float(row[target] - row.max() - np.log(np.exp(row - row.max()).sum())))
            ranks.append(1 + order.index(target))
            orders.append(order)
        done = end
        if end == len(ids) - 1:
            return logprobs, ranks, orders
    raise AssertionError


def ranks_of(scores: soma.Scores) -> list[int]:
    """Ranks, with that of the first token beyond all others."""
    return [len(scores.tokens) * 1000 if rank is None else rank for rank in scores.ranks]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [None, 1, 5, 16])
def test_scores_are_those_of_the_logits_in_windows(kind: str, stride: int | None) -> None:
    gen = make(kind)
    scores = gen.score(TEXT, top=3, stride=stride)
    logprobs, ranks, orders = expected(gen, TEXT, stride or 8)
    assert scores.tokens == gen._tok.encode(TEXT)
    assert scores.logprobs[0] is None and scores.ranks[0] is None and scores.top[0] == []
    assert scores.logprobs[1:] == pytest.approx(logprobs, abs=1e-5)
    assert scores.ranks[1:] == ranks
    assert [[i for i, _ in top] for top in scores.top[1:]] == [order[:3] for order in orders]
    for token, logprob, rank, top in zip(scores.tokens, scores.logprobs, ranks_of(scores), scores.top, strict=True):
        assert rank > 3 or top[rank - 1] == (token, logprob), "one number for one token"
    assert scores.total == pytest.approx(sum(logprobs))
    assert scores.loss == pytest.approx(-np.mean(logprobs))
    assert scores.perplexity == pytest.approx(np.exp(-np.mean(logprobs)))


def test_every_block_scores(block: str) -> None:
    gen = make(block=block)
    assert gen.score(TEXT).logprobs[1:] == pytest.approx(expected(gen, TEXT, 8)[0], abs=1e-5)


def test_a_text_of_several_forward_passes() -> None:
    gen, text = make(), TEXT * 20
    assert len(text) > 2 * 1024
    assert gen.score(text).logprobs[1:] == pytest.approx(expected(gen, text, 8)[0], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_places_cut_the_text_into_its_tokens(kind: str) -> None:
    gen = make(kind)
    scores = gen.score(TEXT)
    pieces = [TEXT[begin:end] for begin, end in scores.offsets]
    if kind == "byte":  # each byte of a character has the place of the character
        assert pieces == [character for character in TEXT for _ in character.encode()]
    elif kind == "word":
        assert [piece.lower() for piece in pieces] == [gen._tok.id_to_token(i) for i in scores.tokens]
    elif kind == "char":
        assert "".join(pieces) == TEXT
    else:
        assert scores.offsets == gen._tok.encode_with_offsets(TEXT)[1]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_bits_per_byte_are_those_of_evaluate_in_the_same_windows(kind: str) -> None:
    """A stride of the whole context gives the windows of evaluate. Bytes are those of all tokens but the first."""
    gen = make(kind)
    scores = gen.score(TEXT, stride=16)
    windows = Windows(TokenStore.encode([TEXT], gen._tok), 16)
    predicted = predicted_bytes(windows, gen._tok)
    assert predicted == (len(scores.tokens) - 1, scores.bytes)
    assert scores.bytes == len(TEXT.encode()) - len(gen._tok.decode_bytes(scores.tokens[:1]))
    loss = mean_loss(gen._model, windows)
    assert scores.loss == pytest.approx(loss, rel=1e-6)
    assert scores.bits_per_byte == pytest.approx(loss * predicted[0] / math.log(2) / predicted[1], rel=1e-6)


def test_losses_of_documents_add_up_to_the_mean_loss() -> None:
    gen = make("bpe")
    store = TokenStore.encode([*TEXTS, "a", *TEXTS[1:]], gen._tok)
    windows = Windows(store, 16)
    losses, sizes = document_losses(gen._model, windows, batch_size=3), document_bytes(store, gen._tok)
    assert losses.shape == (5,) and sizes is not None
    assert losses.sum() / windows.pairs == pytest.approx(mean_loss(gen._model, windows), rel=1e-6)
    assert losses[1] == losses[3] and losses[2] == pytest.approx(losses[4], rel=1e-6)
    for text, loss, size in zip(TEXTS, losses[:3], sizes[:3], strict=True):
        scores = gen.score(text, stride=16)
        assert (-scores.total, scores.bytes) == (pytest.approx(loss, rel=1e-6), size)
    assert document_bytes(TokenStore.encode(TEXTS, make("word")._tok), make("word")._tok) is None


@pytest.mark.parametrize("kind", KINDS)
def test_texts_together_are_scored_as_each_alone(kind: str) -> None:
    gen = make(kind)
    together = gen.score_batch(TEXTS, top=2, stride=5)
    assert [scores.text for scores in together] == TEXTS
    for text, scores in zip(TEXTS, together, strict=True):
        assert scores == gen.score(text, top=2, stride=5)
    assert gen.score_batch([]) == []


def test_words_and_unknown_tokens_have_no_bytes(caplog: pytest.LogCaptureFixture) -> None:
    assert make("word").score("the cat sat").bits_per_byte is None
    gen = make("char")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="soma_native"):
        assert gen.score("the cat").bits_per_byte is not None and not caplog.records
        scores = gen.score("the cat %§%")
    assert scores.bytes is None and scores.bits_per_byte is None and math.isfinite(scores.total)
    assert "not in the vocabulary, read as <UNK>: %, §" in caplog.text
    gen.score("the\t\rcat")
    assert r"read as <UNK>: '\t', '\r'" in caplog.text, "a message is one line"


def test_scores_print_in_a_line_and_can_be_pickled() -> None:
    scores = make().score("the cat sat", top=1)
    assert repr(scores).startswith("Scores(11 tokens, total=-")
    assert pickle.loads(pickle.dumps(scores)) == scores
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.text = ""  # type: ignore[misc]


def test_a_generator_with_packed_weights_scores_with_those_of_the_model() -> None:
    gen = make()
    packed = soma.Generator(gen._model, gen._tok, weights="int8")
    assert packed.score(TEXT) == gen.score(TEXT)


# embed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["t", "the cat sat", TEXT, TEXT * 20])
@pytest.mark.parametrize("stride", [None, 3, 16])
def test_a_vector_is_the_mean_of_the_hidden_states(text: str, stride: int | None, block: str) -> None:
    gen = make(block=block)
    model, ids, rows, done = gen._model, gen._tok.encode(text), [], 0
    for begin in range(0, len(ids), stride or 8):
        end = min(begin + 16, len(ids))
        rows.append(model.hidden(ids[begin:end])[max(0, done - begin) :])
        done = end
        if end == len(ids):
            break
    states = np.concatenate(rows).astype(np.float64)
    vector = gen.embed(text, stride=stride)
    assert len(states) == len(ids)
    assert vector.dtype == np.float32 and vector.shape == (16,)
    assert np.allclose(vector, states.mean(axis=0), rtol=1e-5, atol=1e-5)


def test_vectors_of_several_texts_are_those_of_each(block: str) -> None:
    gen = make(block=block)
    texts = ["the cat", "a", "the cat sat on the mat the cat sat on the mat", "the cat", "sat"]
    vectors = gen.embed_batch(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (5, 16)
    for text, vector in zip(texts, vectors, strict=True):
        assert np.allclose(vector, gen.embed(text), rtol=1e-6, atol=1e-7), text
    assert gen.embed_batch([]).shape == (0, 16)
    with pytest.raises(ValueError, match=r"texts\[1\] has no token of the vocabulary: ''"):
        gen.embed_batch(["a", ""])
    with pytest.raises(TypeError, match="texts"):
        gen.embed_batch("the cat")


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("",), ValueError, "text has no token of the vocabulary: a score needs two or more, got ''"),
        (("a",), ValueError, "text has only one token: a score needs two or more, got 'a'"),
        ((b"the cat",), TypeError, "text must be a text, got b'the cat'"),
        (("the cat", 9999), ValueError, r"top must be from 0 to \d+, got 9999"),
        (("the cat", -1), ValueError, r"top must be from 0 to \d+, got -1"),
        (("the cat", 1.5), TypeError, "top must be an integer"),
        (("the cat", 0, 0), ValueError, "stride must be from 1 to 16, got 0"),
        (("the cat", 0, 17), ValueError, "stride must be from 1 to 16, got 17"),
    ],
)
def test_what_cannot_be_scored(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make().score(*arguments)


def test_texts_and_vectors_that_are_refused() -> None:
    gen = make()
    for texts, error, message in (
        ("the cat", TypeError, "texts must be a list of texts; for one text there is score"),
        (7, TypeError, "texts must be a list of texts"),
        (["the cat", 7], TypeError, r"texts\[1\] must be a text, got 7"),
        (["the cat", "t"], ValueError, r"texts\[1\] has only one token"),
    ):
        with pytest.raises(error, match=message):
            gen.score_batch(texts)  # type: ignore[arg-type]
    for text, error, message in (
        ("", ValueError, "text has no token of the vocabulary: ''"),
        (None, TypeError, "text must be a text, got None"),
    ):
        with pytest.raises(error, match=message):
            gen.embed(text)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no token of the vocabulary"):
        make("word").embed("?!")
    with pytest.raises(ValueError, match="stride must be from 1 to 16"):
        gen.embed("the cat", stride=17)


def test_a_character_that_is_not_in_a_vocabulary_without_unknown_tokens() -> None:
    gen = make(special_tokens=())
    with pytest.raises(ValueError, match="%"):
        gen.score("the cat %")
    with pytest.raises(ValueError, match="%"):
        gen.embed("%")


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="they do not belong together"):
        soma.Generator(make("char")._model, make("bpe")._tok)


def test_weights_that_are_broken_are_an_error() -> None:
    gen = make()
    name, array = next(iter(gen._model.parameters().items()))
    gen._model.write(name, np.full(array.shape, np.inf))
    with pytest.raises(ValueError, match="a logit is not finite: the model's weights are broken"):
        gen.score("the cat")
