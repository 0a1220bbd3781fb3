"""The characters of a token that plans expect, against the tokens that a text really has."""

from __future__ import annotations

import random

import pytest

import soma_native as soma
from soma_native.data.samplers import EpochSampler
from soma_native.data.windows import Windows
from soma_native.planning.corpus import Corpus, survey
from soma_native.planning.plan import choose
from soma_native.planning.tokens import characters_per_token

RNG = random.Random(0)
SIGNS = [chr(0x4E00 + i) for i in range(2000)]
WORDS = ["".join(RNG.choices(SIGNS, k=RNG.choice([1, 2, 2, 3]))) for _ in range(300)]
TEXTS = {
    "Chinese": "".join(RNG.choices(WORDS, k=30_000)),
    "noise": "".join(RNG.choices(SIGNS, k=40_000)),
    "English": "the cat saw the dog, and the dog saw the mouse. " * 900,
}


@pytest.mark.parametrize("size", [300, 1024, 4096])
@pytest.mark.parametrize("name", TEXTS)
def test_an_epoch_has_the_tokens_of_the_text(name: str, size: int) -> None:
    text = TEXTS[name]
    tok = soma.Tokenizer.train([text], "bpe", size)
    per_token = len(text) / len(tok.encode(text))
    corpus = survey([text])
    assert characters_per_token(corpus, "bpe", size) == pytest.approx(per_token)
    assert characters_per_token(corpus, "bpe", None, tok) == pytest.approx(per_token)
    plan = choose(corpus, None, None, {"steps": 100, "preset": "1m", "tokenizer": "bpe", "vocab_size": size})
    windows = Windows(soma.TokenStore.encode([text], tok, "auto").split(0.1)[0], 256)
    assert 100 / plan.epochs == pytest.approx(EpochSampler(windows, 8, seed=0).steps_per_epoch, rel=0.02, abs=1)


def test_what_is_not_measured_is_expected_from_the_number_of_tokens() -> None:
    corpus = Corpus(1, 3000, 1000, 300)
    assert characters_per_token(corpus, "byte", None) == pytest.approx(1 / 3)
    assert characters_per_token(corpus, "char", 300) == 1
    assert characters_per_token(corpus, "bpe", 300) == 1
    assert 1 < characters_per_token(corpus, "bpe", 1024) < characters_per_token(corpus, "word", 8192) < 6


def test_a_character_that_is_cut_at_the_end_of_the_beginning_is_left_out() -> None:
    corpus = survey(["a" + "\u4e00b" * 300_000])  # a megabyte ends inside a character
    assert corpus.bytes - len(corpus.beginning.encode()) > 0 and set(corpus.beginning) == {"a", "b", "\u4e00"}
