"""The showcase corpus: its sizes in the reports (sentences, words, vocabulary, training pairs), and its sentences."""

import re
from collections import Counter
from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "soma_native" / "showcase" / "corpus.txt"
PROMPTS = ("SOMA is", "SOMA tokenization", "SOMA Cognitive", "What is SOMA?")


def words(text: str) -> list[str]:
    """The words of ASCII text, as the word tokenizer finds them."""
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def lines() -> list[str]:
    text = CORPUS.read_bytes().decode("ascii")
    assert text.endswith("\n") and "\r" not in text
    return text[:-1].split("\n")


def test_sizes(lines: list[str]) -> None:
    tokens = [word for line in lines for word in words(line)]
    pairs = sum(len(words(line)) - 1 for line in lines)
    assert (len(lines), len(tokens), len(set(tokens)), pairs) == (400, 5066, 570, 4666)


def test_a_sample_of_thirteen_words_is_a_whole_sentence(lines: list[str]) -> None:
    assert Counter(len(words(line)) for line in lines) == {13: 386, 3: 8, 4: 6}


def test_no_sentence_stands_twice(lines: list[str]) -> None:
    counts = Counter(" ".join(words(line)) for line in lines)
    assert [line for line, count in counts.items() if count > 1] == []


def test_every_line_is_a_plain_sentence(lines: list[str]) -> None:
    sentence = re.compile(r"[A-Z][A-Za-z ,;:?]*[.?]")
    assert [line for line in lines if not sentence.fullmatch(line) or "  " in line] == []


@pytest.mark.parametrize("prompt", PROMPTS)
def test_whole_sentences_go_on_after_every_prompt(lines: list[str], prompt: str) -> None:
    start = words(prompt)
    openings = [words(line) for line in lines if words(line)[: len(start)] == start]
    assert len(openings) >= 6
    assert all(len(opening) == 13 for opening in openings)
