"""The rows of a decoder: prompts in pieces and together, rows that are copied, cut back and let go, many steps at once.

All of it bit for bit as with one whole prompt and single steps.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.shapes import options_of
from soma_native import _core

FORMS = ["live", "float32", "bfloat16", "int8"]
SIZES = {"vocab_size": 301, "d_model": 128, "n_layers": 2, "n_heads": 4, "d_ff": 100, "max_seq_len": 300}

pytestmark = pytest.mark.usefixtures("settings_restored")


def make(block: str, form: str, **fields: Any) -> tuple[soma.Model, Any]:
    config = soma.ModelConfig(**{**SIZES, **fields}, **options_of(block, 4, 32, qk_norm=True), block=block)
    model = soma.Model(config, seed=4, precision="float32")
    return model, None if form == "live" else _core.DecodeWeights(model._core, form)


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 301, length).astype(np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def state(decoder: _core.Decoder, row: int) -> bytes:
    """The logits of a row, and those after one more token, which reads all of its keys and values."""
    before = decoder.logits()[row].tobytes()
    decoder.step(ints(row), ints(5))
    return before + decoder.logits()[row].tobytes()


def whole(model: soma.Model, weights: Any, ids: np.ndarray) -> bytes:
    decoder = _core.Decoder(model._core, 1, weights)
    decoder.prefill(0, ids)
    return state(decoder, 0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_in_pieces_is_the_whole_prompt(block: str, form: str, threads: int) -> None:
    model, weights = make(block, form)
    ids = text(270 if threads == 1 else 262)  # with bfloat16, the last tokens are few in one of the pieces of the core
    want = whole(model, weights, ids)
    cuts = [(16, 32, 257), (100,), (261,)]
    if form in ("live", "float32"):
        cuts += [(1, 2, 3), (15, 31)]
    for cut in cuts:
        decoder = _core.Decoder(model._core, 3, weights)
        for begin, end in itertools.pairwise([0, *cut, len(ids)]):
            decoder.extend(ints(1), ints(begin), [ids[begin:end]])
        assert decoder.length(1) == len(ids)
        assert state(decoder, 1) == want, cut


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMS)
def test_prompts_that_are_read_together_are_those_read_alone(block: str, form: str) -> None:
    model, weights = make(block, form)
    prompts = {row: text(length, seed=row) for row, length in {4: 3, 0: 150, 2: 16, 1: 1, 3: 120}.items()}
    decoder = _core.Decoder(model._core, 5, weights)
    decoder.prefill(0, prompts[0][:20])
    keep = ints(*(20 if row == 0 else 0 for row in prompts))
    decoder.extend(ints(*prompts), keep, [ids[kept:] for kept, ids in zip(keep, prompts.values(), strict=True)])
    for row, ids in prompts.items():
        assert state(decoder, row) == whole(model, weights, ids), row


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMS)
def test_a_copied_row_goes_on_by_itself(block: str, form: str) -> None:
    model, weights = make(block, form)
    first, other = text(40), text(60, seed=1)
    other[:33] = first[:33]
    decoder = _core.Decoder(model._core, 3, weights)
    decoder.prefill(0, first)
    decoder.prefill(1, text(50, seed=2))  # what was there goes
    decoder.copy_row(0, 1, 40)
    decoder.copy_row(0, 2, 33)
    assert (decoder.length(1), decoder.length(2)) == (40, 33)
    decoder.extend(ints(2), ints(33), [other[33:]])
    assert state(decoder, 0) == state(decoder, 1) == whole(model, weights, first), "the logits came along"
    assert state(decoder, 2) == whole(model, weights, other)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_cut_back_and_goes_another_way(block: str, form: str) -> None:
    model, weights = make(block, form)
    first, other = text(90), text(70, seed=1)
    other[:37] = first[:37]
    decoder = _core.Decoder(model._core, 1, weights)
    decoder.prefill(0, first)
    decoder.extend(ints(0), ints(37), [other[37:]])
    assert state(decoder, 0) == whole(model, weights, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.extend(ints(0, 0), ints(0, 0), [text(3), text(3)]), "rows must differ"),
        (lambda d: d.extend(ints(0, 1), ints(0), [text(3)]), "same length"),
        (lambda d: d.extend(ints(0), ints(0), [text(0)]), "at least one token"),
        (lambda d: d.extend(ints(0), ints(4), [text(3)]), "keep must be from 0 to the 3 tokens of row 0, got 4"),
        (lambda d: d.extend(ints(0), ints(-1), [text(3)]), "keep must be"),
        (lambda d: d.extend(ints(0), ints(2), [text(299)]), "301 tokens long, but max_seq_len is 300"),
        (lambda d: d.extend(ints(1, 0), ints(0, 0), [text(3), ints(301)]), "ids must be from 0 to 300"),
        (lambda d: d.extend(ints(2), ints(0), [text(3)]), "row must be from 0 to 1"),
        (lambda d: d.copy_row(0, 0, 1), "to itself"),
        (lambda d: d.copy_row(0, 1, 4), "length must be from 1 to the 3 tokens of row 0, got 4"),
        (lambda d: d.copy_row(0, 1, 0), "length must be"),
        (lambda d: d.copy_row(1, 0, 1), "length must be"),
        (lambda d: d.copy_row(0, 2, 1), "row must be from 0 to 1"),
        (lambda d: d.grow([1], [sampler(0)], [5], [-1], [], 1), "row 1 is empty"),
        (lambda d: d.grow([0], [sampler(0)], [0], [-1], [], 1), "left must be at least 1"),
        (lambda d: d.grow([0, 1], [sampler(0)], [1], [-1], [], 1), "same length"),
        (lambda d: d.grow([0], [sampler(0, vocab_size=300)], [1], [-1], [], 1), "vocabulary"),
    ],
)
def test_what_a_row_cannot_do_changes_nothing(call: Any, message: str) -> None:
    model, weights = make("soma", "live")
    decoder = _core.Decoder(model._core, 2, weights)
    decoder.prefill(0, text(3))
    with pytest.raises(ValueError, match=message):
        call(decoder)
    assert decoder.length(1) == 0
    assert state(decoder, 0) == whole(model, weights, text(3))


def test_the_bytes_of_a_row() -> None:
    model, _ = make("gpt2", "live", max_seq_len=290)
    assert _core.Decoder.bytes_per_row(model._core) == 4 * (2 * 2 * 304 * 128 + 301)


# many steps in one call -----------------------------------------------------------------------------------------


def sampler(seed: int, **options: Any) -> _core.Sampler:
    settings = {"vocab_size": 301, "temperature": 1.0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
    return _core.Sampler(**{**settings, **options}, seed=seed, banned_ids=np.zeros(0, np.int32))


def one_by_one(model: soma.Model, ids: np.ndarray, seed: int, most: int, ends: list[int]) -> list[int]:
    """The tokens of a row alone, drawn and appended one at a time, until the context is full."""
    decoder = _core.Decoder(model._core, 1)
    decoder.prefill(0, ids)
    drawn, one = [], sampler(seed)
    while True:
        drawn.append(one.sample(decoder.logits()[0]))
        if len(drawn) == most or drawn[-1] in ends or decoder.length(0) == model.config.max_seq_len:
            return drawn
        decoder.step(ints(0), ints(drawn[-1]))


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_rows_grow_as_if_alone(block: str, steps: int, threads: int) -> None:
    model, _ = make(block, "live", max_seq_len=40)
    lengths, most = [4, 30, 1, 12, 7], [9, 1000, 1, 20, 1000]
    prompts = [text(length, seed=length) for length in lengths]
    free = one_by_one(model, prompts[4], 4, 1000, [])
    ends = [free[5]]
    want = [one_by_one(model, ids, row, most[row], ends) for row, ids in enumerate(prompts)]
    assert want[4][-1] in ends and len(want[1]) <= 11, "one ends, one is full"

    decoder = _core.Decoder(model._core, 5)
    for row, ids in enumerate(prompts):
        decoder.prefill(row, ids)
    samplers = [sampler(row) for row in range(5)]
    found: list[list[int]] = [[] for _ in prompts]
    live = list(range(5))
    while live:
        left = [most[row] - len(found[row]) for row in live]
        grown = decoder.grow(live, [samplers[row] for row in live], left, [-1] * len(live), ends, steps)
        for row, (drawn, scores, error) in zip(live, grown, strict=True):
            assert (scores, error) == ([], "")
            assert 1 <= len(drawn) <= steps
            found[row] += drawn
        live = [row for row in live if found[row] != want[row]]
        for row in live:
            assert decoder.length(row) == lengths[row] + len(found[row])
            assert found[row] == want[row][: len(found[row])]
    for row, drawn in enumerate(found):
        assert decoder.length(row) == lengths[row] + len(drawn) - 1, "the last token is not appended"


def test_a_row_with_broken_logits_does_not_disturb_the_others() -> None:
    model, _ = make("gpt2", "live")
    ids = text(9)
    want = one_by_one(model, ids, 1, 5, [])
    decoder = _core.Decoder(model._core, 2)
    decoder.prefill(0, ids)
    decoder.prefill(1, ids)
    decoder.logits()[0, 3] = np.nan
    broken, whole_one = decoder.grow([0, 1], [sampler(0), sampler(1)], [5, 5], [-1, -1], [], 5)
    assert broken[:2] == ([], []) and "not finite" in broken[2]
    assert whole_one == (want, [], "")


def test_scores_are_of_the_logits_that_a_token_was_drawn_from() -> None:
    model, _ = make("gpt2", "live")
    decoder, again = _core.Decoder(model._core, 2), _core.Decoder(model._core, 1)
    decoder.prefill(0, text(9))
    decoder.prefill(1, text(9))
    (tokens, scores, _), _ = decoder.grow([0, 1], [sampler(0), sampler(1)], [4, 4], [3, 0], [], 4)
    again.prefill(0, text(9))
    for token, score in zip(tokens, scores, strict=True):
        assert score == _core.score_token(again.logits()[0], token, 3) and len(score[1]) == 3
        again.step(ints(0), ints(token))
