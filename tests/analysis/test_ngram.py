"""The character 5-gram against its mathematics, written once more in tests/oracles/kneser_ney.py."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.interrupts import alarm, needs_timers
from oracles.kneser_ney import CHARACTERS_OF_UNICODE, START, KneserNey
from soma_native import _core

# Characters of one to four bytes, few of them: contexts repeat.
DOCUMENTS = st.lists(st.text("ab é漢😀\0", max_size=40), min_size=1, max_size=6).filter(any)
SENTENCES = ["the cat sat on the mat", "the dog sat on the cat", "a mat, a cat; and 漢字 — é\n", "", "t"]


def model_of(documents: list[Any]) -> Any:
    counter = _core.NgramCounter()
    counter.add(documents, 0)
    return _core.KneserNey(counter)


def bits_of(model: Any, document: str) -> list[float]:
    return [float(bits) for bits in model.bits_of([document])[0]]


def some_text(seed: int, size: int, alphabet: str = "etaoin shrdluETA.,漢é\n") -> str:
    """A text with frequent and rare 5-grams: each character leans on the one before it."""
    rng = random.Random(seed)
    text = [0]
    for _ in range(size):
        text.append((text[-1] * 5 + int(rng.expovariate(0.6))) % len(alphabet))
    return "".join(alphabet[i] for i in text)


@given(documents=DOCUMENTS, validation=st.text("ab é漢😀\0zß", max_size=30))
def test_every_probability_is_that_of_the_equations(documents: list[str], validation: str) -> None:
    model, oracle = model_of(documents), KneserNey(documents)
    assert np.allclose(model.discounts, oracle.discounts, rtol=1e-12, atol=0)
    for text in (validation, documents[0]):
        np.testing.assert_allclose(bits_of(model, text), oracle.bits_of(text), rtol=1e-9)
    bits, character_bits, characters, size = model.score([validation, documents[0]], 0, [])
    assert math.isclose(bits, math.fsum(oracle.bits_of(validation) + oracle.bits_of(documents[0])), rel_tol=1e-9)
    expected = oracle.character_bits(validation) + oracle.character_bits(documents[0])
    assert math.isclose(character_bits, expected, rel_tol=1e-9)
    assert (characters, size) == (len(validation + documents[0]), len((validation + documents[0]).encode()))


@given(documents=DOCUMENTS, context=st.text("ab é漢😀\0z", max_size=6))
def test_the_probabilities_after_every_context_sum_to_one(documents: list[str], context: str) -> None:
    model = model_of(documents)
    seen = sorted(set("".join(documents)))
    assert model.different_characters == len(seen)
    known = math.fsum(2 ** -bits_of(model, context + character)[-1] for character in seen)
    unknown = 2 ** -bits_of(model, context + "Q")[-1] * (CHARACTERS_OF_UNICODE - len(seen))
    assert math.isclose(known + unknown, 1, rel_tol=1e-9)
    assert unknown > 0


def test_the_discounts_are_estimated_where_the_counts_allow_it() -> None:
    text = some_text(0, 5000)
    model, oracle = model_of([text]), KneserNey([text])
    np.testing.assert_allclose(model.discounts, oracle.discounts, rtol=1e-12)
    assert oracle.discounts[-1] != (0.5, 1.0, 1.5)
    other = some_text(1, 300)
    np.testing.assert_allclose(bits_of(model, other), oracle.bits_of(other), rtol=1e-9)


def test_a_probability_by_hand() -> None:
    """Of "ab": bigrams (start, a) and (a, b), so that a and b each have one symbol before them."""
    model = model_of(["ab"])
    assert model.discounts == [[0.5, 1.0, 1.5]] * 5
    single = (1 - 0.5 + 2 * 0.5 * (1 / 3)) / 2
    after_start = (1 - 0.5 + 0.5 * single) / 1
    assert math.isclose(2 ** -bits_of(model, "a")[0], after_start)
    after_a = 0.5 + 0.5 * single  # the bigram; then (start, a, b)
    assert math.isclose(2 ** -bits_of(model, "ab")[1], 0.5 + 0.5 * after_a)
    unknown = 2 * 0.5 * (1 / 3) / (CHARACTERS_OF_UNICODE - 2) / 2
    assert math.isclose(2 ** -bits_of(model, "z")[0], 0.5 * unknown)


@pytest.mark.parametrize(
    "documents",
    [["a"], ["aaaa" * 500], ["one line\n" * 300], ["".join(map(chr, range(0x4E00, 0x5E00)))], ["", "b", ""], ["\0"]],
    ids=["one character", "one repeated", "one line repeated", "all distinct", "empty ones", "NUL"],
)
def test_no_text_has_infinitely_many_bits(documents: list[str]) -> None:
    model = model_of(documents)
    discounts = np.array(model.discounts)
    assert np.isfinite(discounts).all() and (discounts > 0).all() and (discounts <= [1, 2, 3]).all()
    for text in (documents[0], "a", "one line\n", "丁七万", "\U0010ffff", "aaaaaaaa", ""):
        bits = np.array(bits_of(model, text))
        assert np.isfinite(bits).all() and (bits >= 0).all()


def test_without_any_training_all_characters_are_alike() -> None:
    model = model_of([])
    assert bits_of(model, "ab") == [math.log2(CHARACTERS_OF_UNICODE)] * 2
    assert model.score([], 0, []) == (0.0, 0.0, 0, 0)


def test_a_context_ends_with_its_document() -> None:
    """Two documents are not one: nothing follows the end of the first."""
    apart, joined = model_of(["abcd", "efgh"]), model_of(["abcdefgh"])
    assert bits_of(apart, "abcde")[-1] > bits_of(joined, "abcde")[-1]
    assert bits_of(apart, "e")[0] < bits_of(joined, "e")[0]
    oracle = KneserNey(["abcd", "efgh"])
    assert math.isclose(2 ** -bits_of(apart, "e")[0], oracle.probability("e", (START,)))


def test_threads_and_pieces_change_no_bit(settings_restored: None) -> None:
    """Texts longer than a piece and a round, cut inside of no character; fed whole and in parts."""
    documents = [some_text(seed, size) for seed, size in ((0, 400_000), (1, 3), (2, 140_000))]
    validation = [some_text(3, 200_000), "", some_text(4, 90)]
    found = set()
    for threads in (1, 2, 3):
        _core.set_num_threads(threads)
        whole = model_of([document.encode() for document in documents])
        counter = _core.NgramCounter()
        for i, document in enumerate(documents):
            counter.add([document], i)
        one_by_one = _core.KneserNey(counter)
        for model in (whole, one_by_one):
            found.add((model.score(validation, 0, []), str(model.discounts)))
    assert len(found) == 1
    (bits, _, characters, _), _ = found.pop()
    assert characters == sum(map(len, validation))
    total = math.fsum(sum(bits_of(whole, text)) for text in validation)
    assert math.isclose(bits, total, rel_tol=1e-9)  # so a piece knows what stands before it


def test_counts_beyond_those_of_a_slot() -> None:
    """A slot has 22 bits for the count; a run of more than 2^22 characters needs more."""
    size = (1 << 22) + 100_000
    model = model_of(["a" * size + "b"])
    bits = bits_of(model, "aaaaab")
    fallback = 1.5 + 0.5  # of "aaaa": it is followed by a often, by b once
    lower = bits_of(model, "xaaab")[-1]  # of "aaa", whose followers have one symbol before them, or two
    expected = (1 - 0.5 + fallback * 2**-lower) / (size - 3)
    assert math.isclose(2 ** -bits[-1], expected, rel_tol=1e-9)


def test_skipped_bytes_are_context_alone() -> None:
    model = model_of(SENTENCES)
    text = "é the cat"
    bits = bits_of(model, text)
    for skipped, characters in ((0, 0), (1, 1), (2, 1), (3, 2), (100, len(text))):
        score = model.score([text, "a"], 0, [skipped, 1])
        assert score[2:] == (len(text) - characters, len(text[characters:].encode()))
        assert math.isclose(score[0], sum(bits[characters:]), abs_tol=1e-9)
    with pytest.raises(ValueError, match="one number for each document"):
        model.score(["a", "b"], 0, [1])


def test_a_lone_surrogate_is_named() -> None:
    with pytest.raises(ValueError, match=r"texts\[7\] has the lone surrogate U\+D800"):
        _core.NgramCounter().add(["good", "\ud800"], 6)


@needs_timers
@pytest.mark.parametrize("stage", ["count", "score"])
def test_a_signal_ends_a_long_text(stage: str) -> None:
    """Far more text than can be read before the signal."""
    text = some_text(0, 100_000).encode() * 8
    model, counter = model_of([text]), _core.NgramCounter()

    with alarm() as ring_soon:
        ring_soon()
        if stage == "count":
            counter.add([text] * 20_000, 0)
        else:
            model.score([text] * 20_000, 0, [])
    assert counter.bytes == 0  # it did not come to the end
