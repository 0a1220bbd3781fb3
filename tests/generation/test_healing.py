"""A prompt that ends inside a token goes on as its author means, and every other prompt as it did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import soma_native
from soma_native import Generator
from soma_native.generation.sampling import Sampling
from soma_native.generation.sequence import Sequence

ADJECTIVES = ["red", "green", "old", "little", "silent"]
NOUNS = ["lord", "horse", "kingdom", "cart", "car", "hammer", "ham", "größe", "世界", "island"]
VERBS = ["saw", "met", "followed", "painted"]


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    pick = rng.choice
    return [
        f"the {pick(ADJECTIVES)} {pick(NOUNS)} {pick(VERBS)} the {pick(ADJECTIVES)} {pick(NOUNS)}.\n  and "
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def trained() -> Generator:
    """Of a model that has learned sentences of ten nouns, most of which are a token with the space before them."""
    texts = ["".join(sentences(800))]
    tok = soma_native.Tokenizer.train(texts, kind="bpe", vocab_size=340, special_tokens=())
    config = soma_native.ModelConfig(
        tok.vocab_size, d_model=48, n_layers=2, n_heads=2, d_ff=96, max_seq_len=48, block="llama"
    )
    model = soma_native.Model(config, seed=1)
    training = soma_native.TrainConfig(steps=150, batch_size=8, lr=6e-3, seed=0, seq_len=48)
    soma_native.Trainer(model, tok, training).fit(texts)
    return Generator(model, tok)


def read(generator: Generator, prompt: str, heal: bool = True) -> tuple[Sequence, np.ndarray]:
    """How the prompt is read, and the logarithms of the probabilities of the next token."""
    sequence = generator._sequence(prompt, Sampling.of(heal_prompt=heal))
    while True:
        logits = generator._model.forward(np.array(sequence.context))[-1].astype(np.float64)
        if sequence.read(logits.astype(np.float32)):
            break
    if sequence.rest:
        allowed = generator._tok._token_table().extending(sequence.rest)
        logits[np.setdiff1d(np.arange(len(logits)), allowed)] = -np.inf
    return sequence, logits - np.log(np.exp(logits).sum())


def cost(generator: Generator, prompt: str, text: str, heal: bool = True) -> float:
    """The nats of a text after a prompt."""
    sequence, shares = read(generator, prompt, heal)
    first, *more = generator._tok.encode(sequence.rest.decode() + text)
    ids = np.array([*sequence.context, first, *more])
    logits = generator._model.forward(ids)[len(sequence.context) : -1].astype(np.float64)
    rest = logits[np.arange(len(more)), more] - np.log(np.exp(logits).sum(1))
    return float(-shares[first] - rest.sum())


PROMPT = "the red horse saw the old"


def test_the_next_word_costs_no_more_after_a_space(trained: Generator) -> None:
    for noun in NOUNS:
        without = cost(trained, PROMPT, f" {noun}")
        assert cost(trained, PROMPT + " ", noun) <= without + 0.3, noun
        assert cost(trained, PROMPT + " ", noun, heal=False) > without + 1, "the model has never seen such tokens"


def test_white_space_of_several_characters(trained: Generator) -> None:
    """The last space of an indentation begins the token of the word."""
    text = "the old car met the red lord.\n "
    without = cost(trained, text, " and")
    assert cost(trained, text + " ", "and") <= without + 0.3


@pytest.mark.parametrize("noun", NOUNS)
def test_half_words_and_half_characters(trained: Generator, noun: str) -> None:
    for size in range(1, len(noun)):
        half = noun[:size]
        meant = [other for other in NOUNS if other.startswith(half)]
        if half in meant:
            continue  # a word of its own
        text = trained.generate(f"{PROMPT} {half}", max_tokens=8, temperature=0)
        assert text.startswith(f"{PROMPT} {half}") and text[len(PROMPT) + 1 :].startswith(tuple(meant)), half


def test_whole_words_and_other_ends_stay_as_they_are(trained: Generator) -> None:
    for end in (*NOUNS, "lord met the", "lord.\n  and the"):
        prompt = f"{PROMPT} {end}"
        assert read(trained, prompt)[0].context == trained._tok.encode(prompt)
        for weights in ("auto", "bfloat16", "int8"):
            generator = trained if weights == "auto" else Generator(trained._model, trained._tok, weights=weights)
            for ask in ({"temperature": 0}, {"seed": 1}, {"seed": 2, "temperature": 1.5}):
                settings: dict[str, Any] = {"max_tokens": 12, **ask}
                assert generator.generate(prompt, **settings) == generator.generate(
                    prompt, heal_prompt=False, **settings
                )


ENDS = (" ", " lo", " lord", " kin", " hamm", " hor", " the old" * 9 + " gr")
PROMPTS = [*(PROMPT + end for end in ENDS), "the", " ", "th", "", "\n"]


@pytest.mark.parametrize("weights", ["auto", "bfloat16"])
def test_every_way_to_generate_heals_alike(trained: Generator, weights: str) -> None:
    model, tok = trained._model, trained._tok
    generator = Generator(model, tok, weights=weights)
    ask: dict[str, Any] = {"max_tokens": 10, "temperature": 0.9, "seed": 5}
    texts = generator.generate_batch(PROMPTS, **ask)
    with soma_native.Engine(model, tok, 3, weights=weights, prefill_piece=16) as engine:
        handles = [engine.submit(prompt, **ask) for prompt in PROMPTS]
        assert [p + handle.result().text for p, handle in zip(PROMPTS, handles, strict=True)] == texts
    changed = 0
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert text.startswith(prompt)
        assert generator.generate(prompt, **ask) == text
        assert prompt + "".join(generator.stream(prompt, **ask)) == text
        one, two = generator.complete(prompt, n=2, **ask)
        assert prompt + one.text == text and len(one.tokens) == 10 == len(one.logprobs)
        assert prompt + two.text == generator.generate(prompt, **{**ask, "seed": 6})
        changed += text != generator.generate(prompt, heal_prompt=False, **ask)
    assert changed >= 4


def test_the_token_that_heals_adds_text(trained: Generator) -> None:
    for prompt in PROMPTS:
        assert len(trained.complete(prompt, max_tokens=1, seed=0)[0].tokens) == 1
        assert len(trained.generate(prompt, max_tokens=1, seed=0)) > len(prompt)
        assert trained.generate(prompt, max_tokens=0) == prompt


@pytest.mark.parametrize("window", [1, 2, 3, 5, 17])
def test_small_windows(window: int) -> None:
    tok = soma_native.Tokenizer.train(sentences(20), kind="bpe", vocab_size=300)
    config = soma_native.ModelConfig(tok.vocab_size, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=window)
    generator = Generator(soma_native.Model(config, seed=0), tok, end_token=None)
    for prompt in PROMPTS:
        text = generator.generate(prompt, max_tokens=9, seed=0, temperature=2.0)
        assert text.startswith(prompt) and len(text) > len(prompt)


def test_the_end_of_a_special_token_is_not_healed() -> None:
    tok = soma_native.Tokenizer.train(sentences(20), kind="bpe", vocab_size=300)
    assert "<|endoftext|>" in tok.special_tokens
    table = tok._token_table()
    assert not any(len(table.extending(b"<|endoftext|>"[:n])) for n in range(1, 13))


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_characters_and_bytes_are_whole(kind: str) -> None:
    tok = soma_native.Tokenizer.train(sentences(20), kind=kind)
    config = soma_native.ModelConfig(tok.vocab_size, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=30)
    generator = Generator(soma_native.Model(config, seed=0), tok)
    for prompt in PROMPTS:
        ask: dict[str, Any] = {"max_tokens": 20, "seed": 3}
        assert generator.generate(prompt, **ask) == generator.generate(prompt, heal_prompt=False, **ask)


@pytest.mark.parametrize("unknown", [True, False])
def test_half_words_of_a_vocabulary_of_words(unknown: bool) -> None:
    special = ("<UNK>",) if unknown else ()
    tok = soma_native.Tokenizer.train(sentences(50), kind="word", special_tokens=special)
    config = soma_native.ModelConfig(tok.vocab_size, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=30)
    generator = Generator(soma_native.Model(config, seed=0), tok)
    ask: dict[str, Any] = {"max_tokens": 3, "seed": 0}
    for prompt, wanted in {
        "the kin": ["the kingdom "],
        "The HO": ["The HOrse "],
        "the old h": ["the old horse ", "the old hammer ", "the old ham "],
        "gr": ["größe ", "green "],
        "the old, gRÖ": ["the old, gRÖße "],
    }.items():
        text = generator.generate(prompt, **ask)
        assert text.startswith(tuple(wanted)) and len(text.split()) == len(prompt.split()) + 2, text
        assert prompt + "".join(generator.stream(prompt, **ask)) == text
    for whole in ("the ham", "the car", "The Old.", "the ham ", "the"):  # "hammer" and "cart" are words too
        assert generator.generate(whole, **ask) == generator.generate(whole, heal_prompt=False, **ask)
    for strange in ("the xyz", "the ho ", "the ho!"):
        if unknown:
            assert generator.generate(strange, **ask) == generator.generate(strange, heal_prompt=False, **ask)
        else:
            with pytest.raises(ValueError, match="is not in the vocabulary"):
                generator.generate(strange, **ask)
