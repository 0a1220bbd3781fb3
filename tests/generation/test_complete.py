"""Completions are the texts of `generate`, with the probabilities that the model gives their tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import soma_native
from soma_native import Completion, Generator

TEXTS = ["the cat sat on the mat, a dog ate the cat's food: no!", "Grüße, 世界 🌍!"]


def make(
    kind: str = "char", block: str = "gpt2", max_seq_len: int = 24, end: str | None = None, **special: Any
) -> Generator:
    """Of a random model with large weights, so that some tokens are much likelier than others."""
    tok = soma_native.Tokenizer.train(TEXTS, kind=kind, **special)
    config = soma_native.ModelConfig(
        tok.vocab_size, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=max_seq_len, block=block
    )
    model = soma_native.Model(config, seed=3, precision="float32")
    for name, array in model.parameters().items():
        model.write(name, 8 * array)
    return Generator(model, tok, end_token=end)


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_texts_are_those_of_generate(kind: str) -> None:
    """The first has the seed, the others the numbers after it; the last number is followed by 0."""
    generator = make(kind, max_seq_len=9)
    for prompt in ("the cat", "the cat ate the dog's food: no! the dog", ""):
        for seed in (7, (1 << 64) - 2):
            ask: dict[str, Any] = {"max_tokens": 20, "temperature": 1.3, "top_k": 0}
            done = generator.complete(prompt, n=4, seed=seed, **ask)
            wanted = [generator.generate(prompt, seed=(seed + i) % (1 << 64), **ask) for i in range(4)]
            assert [prompt + each.text for each in done] == wanted
            assert len(set(wanted)) == 4
            assert generator.complete(prompt, seed=seed, **ask) == done[:1]
    greedy = generator.complete("the cat", n=2, temperature=0, max_tokens=5)
    assert greedy[0] == greedy[1] and "the cat" + greedy[0].text == generator.generate("the cat", 5, temperature=0)


def test_probabilities_are_the_model_s_own(block: str) -> None:
    generator = make(block=block)
    model, tok = generator._model, generator._tok
    rules: dict[str, Any] = {"temperature": 2.0, "top_k": 3, "presence_penalty": 1.0, "no_repeat_ngram_size": 2}
    for one in generator.complete("the cat", n=3, logprobs=4, max_tokens=12, seed=1, **rules):
        ids = np.array([*tok.encode("the cat"), *one.tokens])
        logits = model.forward(ids)[-len(one.tokens) - 1 : -1].astype(np.float64)
        shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert len(one.tokens) == len(one.logprobs) == len(one.top) == 12 and one.finish_reason == "length"
        np.testing.assert_allclose(one.logprobs, shares[np.arange(12), one.tokens], atol=1e-4)
        assert tok.decode(one.tokens) == one.text
        for place, top in zip(shares, one.top, strict=True):
            assert [i for i, _ in top] == np.argsort(-place, kind="stable")[:4].tolist()
            np.testing.assert_allclose([share for _, share in top], np.sort(place)[:-5:-1], atol=1e-4)
    assert generator.complete("the cat", max_tokens=2)[0].top == [[], []]
    every = generator.complete("the cat", max_tokens=1, logprobs=tok.vocab_size)[0].top[0]
    assert sum(np.exp(share) for _, share in every) == pytest.approx(1)


def test_of_equal_logits_the_smaller_id_comes_first() -> None:
    score, top = soma_native._core.score_token(np.array([1, 3, 3, 1], np.float32), 2, 9)
    assert [i for i, _ in top] == [1, 2, 0, 3] and score == top[0][1] == top[1][1]
    with pytest.raises(ValueError, match="id must be from 0 to 3, got 4"):
        soma_native._core.score_token(np.zeros(4, np.float32), 4, 0)


def test_reasons_to_finish() -> None:
    generator = make("word", end="auto", special_tokens=("<UNK>", "<|endoftext|>"))
    end = generator._tok.token_to_id("<|endoftext|>")
    ask: dict[str, Any] = {"max_tokens": 3, "temperature": 0}
    (plain,) = generator.complete("the", **ask, logit_bias={end: -np.inf})
    assert plain.finish_reason == "length" and len(plain.tokens) == 3
    word = plain.text.split()[0]
    (stopped,) = generator.complete("the", **ask, logit_bias={end: -np.inf}, stop=word)
    assert stopped == Completion(" ", plain.tokens[:1], "stop", plain.logprobs[:1], [[]])
    ended = generator.complete("the", **ask, n=2, logprobs=1, logit_bias={end: 100.0})
    assert ended[0] == ended[1] == Completion("", [], "stop", [], []), "the end itself is no part of the text"
    assert generator.complete("the", n=2, max_tokens=0) == [Completion("", [], "length", [], [])] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        ({"n": 0}, ValueError, "n must be from 1 to 65536, got 0"),
        ({"n": 1.5}, TypeError, "n must be an integer"),
        ({"n": None}, TypeError, "n must be an integer"),
        ({"logprobs": -1}, ValueError, "logprobs must be from 0 to"),
        ({"logprobs": 10**6}, ValueError, "logprobs must be from 0 to"),
        ({"logprobs": True}, TypeError, "logprobs must be an integer"),
        ({"max_length": 5}, TypeError, "max_length.*max_tokens"),
        ({"min_p": 2}, ValueError, "min_p must be"),
        ({"logit_bias": {-5: 1}}, ValueError, "logit_bias has the id -5"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], wanted: str) -> None:
    with pytest.raises(error, match=wanted):
        make().complete("the", **arguments)
    with pytest.raises(TypeError, match="prompt must be a text"):
        make().complete(5)  # type: ignore[arg-type]
