"""The hand-written splitters give the chunks of the regular expressions, as two regex engines find them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from oracles.bpe_patterns import ALL_CHARACTERS, ASSIGNED_CHARACTERS, CHARACTERS, PATTERNS, PIECES, random_text
from soma_native import _core

NAMES = list(PATTERNS)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4) | st.just("a word of text"), max_size=40).map("".join)
CLASSES = [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\s"]


def ours(pattern: str, text: str) -> list[str]:
    raw = text.encode()
    ends = _core.bpe_chunk_ends(pattern, text)
    return [raw[begin:end].decode() for begin, end in itertools.pairwise([0, *ends])]


class Oniguruma:
    """The engine of Hugging Face `tokenizers`. In it, `$` is the end of a line and `{1,3}+` repeats `{1,3}`."""

    def __init__(self, pattern: str) -> None:
        expression = PATTERNS[pattern].replace("$", r"\z").replace("{1,3}+", "{1,3}")
        self.split = pre_tokenizers.Split(Regex(expression), "isolated")

    def __call__(self, text: str) -> list[str]:
        return [text[begin:end] for _, (begin, end) in self.split.pre_tokenize_str(text)]


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest) -> tuple[str, Oniguruma]:
    return request.param, Oniguruma(request.param)


@given(text=TEXTS)
def test_any_text(both: tuple[str, Oniguruma], text: str) -> None:
    pattern, theirs = both
    assert ours(pattern, text) == theirs(text)


def test_ten_thousand_random_texts(both: tuple[str, Oniguruma]) -> None:
    pattern, theirs = both
    source = random.Random(7)
    for _ in range(10_000):
        text = random_text(source)
        assert ours(pattern, text) == theirs(text), text


def test_all_triples_of_characters_that_rules_tell_apart(both: tuple[str, Oniguruma]) -> None:
    pattern, theirs = both
    for letters in itertools.product(CHARACTERS, repeat=3):
        text = "".join(letters)
        assert ours(pattern, text) == theirs(text), text


def test_every_code_point_alone_and_between_others(both: tuple[str, Oniguruma]) -> None:
    pattern, theirs = both
    for before, after in (("", ""), ("a", "b"), (" ", "A"), ("!", " ")):
        for start in range(0, len(ASSIGNED_CHARACTERS), 512):
            text = "".join(before + c + after for c in ASSIGNED_CHARACTERS[start : start + 512])
            assert ours(pattern, text) == theirs(text)


@pytest.mark.parametrize("pattern", NAMES)
def test_places_in_a_block_of_ascii(pattern: str) -> None:
    """The splitter takes 64 bytes at once. Each awkward text comes at every place of a block."""
    theirs = Oniguruma(pattern)
    for shift in range(70):
        text = (
            "x" * shift
            + " it's  \n\n  12345 !\n/x 'tis we'Re ab\t\tcd don'ts\r\n   \n y'all \"q\" /\n/ é 'll x"
            + "\n  "
        )
        for cut in (len(text), len(text) - 2, shift + 20, shift + 41):
            assert ours(pattern, text[:cut]) == theirs(text[:cut]), (shift, cut)


@pytest.mark.parametrize("pattern", NAMES)
def test_the_regex_module_agrees(pattern: str) -> None:
    """On texts of code points that have the same class in its Unicode version and in ours."""
    classes = _core.unicode_classes()
    foreign = set()
    everything = "".join(ALL_CHARACTERS)
    for number, name in enumerate(CLASSES, 1):
        theirs = {ord(c) for c in regex.findall(name, everything)}
        foreign |= theirs ^ set(np.flatnonzero(classes == number).tolist())
    assert len(foreign) < 20_000  # a newer Unicode has more letters; the rest must be the same
    compiled = regex.compile(PATTERNS[pattern].replace("$", r"\Z"))
    source = random.Random(11)
    compared = 0
    for _ in range(3000):
        text = random_text(source)
        if not foreign.intersection(map(ord, text)):
            assert ours(pattern, text) == compiled.findall(text), text
            compared += 1
    assert compared > 1500


def test_tiktoken_has_the_same_classes() -> None:
    """Rust's regex in tiktoken, Oniguruma in `tokenizers` and our tables have one Unicode version."""
    everything = "".join(ALL_CHARACTERS)
    classes = _core.unicode_classes()
    for number, name in enumerate(CLASSES, 1):
        engine = tiktoken.Encoding(
            "class", pat_str=name, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
        )
        found = engine.decode(engine.encode_ordinary(everything))  # leaves out text that the pattern does not match
        assert set(map(ord, found)) == set(np.flatnonzero(classes == number).tolist()), name


@given(text=TEXTS, target=st.integers(1, 60))
@pytest.mark.parametrize("pattern", NAMES)
def test_a_cut_changes_no_chunk(pattern: str, text: str, target: int) -> None:
    sizes = _core.bpe_cuts(pattern, text, target)
    raw = text.encode()
    assert sum(sizes) == len(raw) and all(size >= target for size in sizes[:-1])
    chunks, at = [], 0
    for size in sizes:
        chunks += ours(pattern, raw[at : at + size].decode())
        at += size
    assert chunks == ours(pattern, text)


def test_a_long_text_is_cut() -> None:
    assert len(_core.bpe_cuts("cl100k", "Some words, and more. " * 100, 100)) > 15
    assert len(_core.bpe_cuts("o200k", "日本語のテキスト。" * 100, 100)) > 15
    assert _core.bpe_cuts("gpt2", "a" * 1000, 100) == [1000]


def test_an_unknown_pattern_is_named() -> None:
    with pytest.raises(ValueError, match=r"pattern must be 'gpt2', 'cl100k', .*'tekken' or 'qwen3\.5', got 'p50k'"):
        _core.bpe_chunk_ends("p50k", "text")


@pytest.mark.parametrize(
    "rules",
    [
        "",
        "\0",
        "digits-0",
        "digits-10",
        "newlines  newlines",
        "digits-2 digits-3",
        "space-at-end",
        "words-prefixed words-cased",
        "newlines space-at-end digits-apart",
        "digits-apart digits-2",
        "digits-split digits-spaced",
    ],
)
def test_rules_that_contradict_are_refused(rules: str) -> None:
    with pytest.raises(ValueError, match="pattern must be 'gpt2'"):
        _core.bpe_pattern_rules(rules)
