"""Texts that kind "word" does not suit are named before training: marks that it drops, scripts without spaces."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

import soma_native as soma
from helpers.command import Result
from oracles.bpe_patterns import ALL_CHARACTERS
from soma_native import _core
from soma_native.data.token_store import TokenStore

MARKED = {
    "hindi": ("हिन्दी में लिखा हुआ यह एक छोटा सा वाक्य है।", "'हिन्दी' is read as 'ह न द'"),
    "thai": ("ฉันชอบอ่านหนังสือทุกวันที่บ้านกับแม่", "is read as 'ฉ"),
    "hebrew": ("שָׁלוֹם עֲלֵיכֶם חֲבֵרִים טוֹבִים", "'שָׁלוֹם' is read as"),
    "arabic": ("السَّلَامُ عَلَيْكُمْ", "is read as"),
    "decomposed": (unicodedata.normalize("NFD", "café très naïf garçon déjà"), "'cafe\u0301' is read as 'cafe'"),
    "turkish": ("İİ bir iki", "is read as 'i i'"),
}
CHINESE = "我今天去学校上课。我喜欢读书和写字。"
ENGLISH = "A café is a naïve place, as déjà vu is. Zwölf Häuser; Γειά σου, мир! 안녕 세상 😀👍🏽 1️⃣\n"


def counted(*texts: str) -> _core.WordLosses:
    losses = _core.WordLosses()
    losses.add(list(texts), 0)
    return losses


@pytest.mark.parametrize("name", MARKED)
def test_training_names_the_marks_that_are_dropped(name: str, caplog: pytest.LogCaptureFixture) -> None:
    text, example = MARKED[name]
    caplog.set_level("WARNING", "soma_native")
    tok = soma.Tokenizer.train([text * 3], kind="word")
    assert len(caplog.messages) == 1
    assert "drops" in caplog.text and "letters and marks" in caplog.text and "kind bpe" in caplog.text
    assert example in caplog.text
    TokenStore.encode([text], tok)
    assert len(caplog.messages) == 1  # it was said


def test_training_names_a_script_without_spaces(caplog: pytest.LogCaptureFixture) -> None:
    words = [a + b + c for a in "天地玄黄" for b in "宇宙洪荒" for c in "日月"]
    soma.Tokenizer.train(["。".join(words)], kind="word", vocab_size=14)
    assert "100.0% of their letters are of scripts without spaces" in caplog.text
    assert repr(words[0]) in caplog.text and "kind bpe" in caplog.text
    assert "75.0% of the words become <UNK>" in caplog.text  # 24 of 32
    assert "a larger vocabulary" not in caplog.text


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_other_kinds_lose_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "soma_native")
    tok = soma.Tokenizer.train([MARKED["hindi"][0], CHINESE], kind=kind)
    TokenStore.encode([CHINESE], tok)
    assert not caplog.messages


def test_texts_that_suit_the_kind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "soma_native")
    tok = soma.Tokenizer.train([ENGLISH], kind="word")
    TokenStore.encode([ENGLISH, "some more words and one cafe\u0301 more" * 1 + ENGLISH * 5], tok)
    assert not caplog.messages


@pytest.mark.parametrize("text", [MARKED["hindi"][0], CHINESE])
def test_a_loaded_tokenizer_says_it_once(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "soma_native")
    soma.Tokenizer.train([ENGLISH], kind="word").save(tmp_path)
    tok = soma.Tokenizer.load(tmp_path)
    assert not caplog.messages
    TokenStore.encode(iter([text, text]), tok)
    TokenStore.encode([text], tok)
    assert len(caplog.messages) == 1 and "kind word does not suit these texts" in caplog.text


@pytest.mark.parametrize("command", ["train", "tokenizer train"])
@pytest.mark.parametrize("text", [MARKED["thai"][0], CHINESE])
def test_the_command_says_it_before_training(
    command: str, text: str, tmp_path: Path, run: Callable[..., Result]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(f"{text}\n" * 60, encoding="utf-8")
    steps = ["--steps", "1", "--batch-size", "2", "--seq-len", "8", "--tokenizer", "word"] if command == "train" else []
    done = run(*command.split(), corpus, "--out", tmp_path / "out", *steps)
    assert done.status == 0
    assert done.err.count("kind word does not suit these texts") == 1
    assert "A tokenizer of kind bpe" in done.err


def test_every_code_point_counts_as_what_it_is() -> None:
    """Alone behind a letter, by the classes that words are made by."""
    classes = _core.unicode_classes()
    for start in range(0, len(ALL_CHARACTERS), 5000):
        characters = ALL_CHARACTERS[start : start + 5000]
        losses = counted("".join(f"a{c} " for c in characters))
        kinds = classes[[ord(c) for c in characters]]
        assert losses.letters == len(characters) + int(np.isin(kinds, [1, 2, 3, 4, 5]).sum())
        assert losses.marks == int((kinds == 6).sum()) + ("\u0130" in characters)


@given(st.text(alphabet=st.sampled_from([*"aZ9_ .", "\u0301", "\ufe0f", "न", "ा", "中", "😀", "é", "İ"]), max_size=200))
def test_marks_are_those_that_follow_letters(text: str) -> None:
    losses = counted(text, "x" * 70 + text)
    once = counted(text)
    behind = regex.findall(r"(?:(?<=\p{L})|(?<=\p{L}\p{M}+))\p{M}|İ", text)
    assert once.marks == len(behind)
    leading = len(regex.match(r"\p{M}*", text)[0])  # they follow the x
    assert losses.marks == 2 * len(behind) + leading
    assert once.letters == len(regex.findall(r"\p{L}", text))
    assert once.unspaced == text.count("中")
    if behind:
        words = soma.Tokenizer.train([once.broken, "two words"], kind="word", special_tokens=())
        assert once.read == words.decode(words.encode(once.broken))


def test_an_example_is_short() -> None:
    losses = counted("क" * 100 + "ा" + "क" * 100 + " " + "中" * 100)
    assert 12 < len(losses.broken) <= 24 and "ा" in losses.broken and losses.clause == "中" * 24
