"""The op of scores against float64 and argsort: log-probabilities, ranks, the best ids, ties, broken logits."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.numerics import chain_tolerance, normal
from helpers.threads import assert_same_bits
from oracles.reference import Array
from soma_native._core import _ops as ops

WIDTHS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 65, 257, 4099]


def logprobs_of(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def in_order(logits: Array) -> Array:
    """The ids of each row, the best first; of equal logits the smaller id."""
    return np.argsort(-logits, axis=1, kind="stable")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("ties", [False, True])
def test_scores(spread: float, ties: bool) -> None:
    rng = np.random.default_rng(0)
    for vocabulary in WIDTHS:
        logits = spread * normal(rng, 9, vocabulary)
        if ties:
            logits = np.round(logits)
        targets = rng.integers(0, vocabulary, 9).astype(np.int32)
        targets[:2] = 0, vocabulary - 1
        want, order, rows = logprobs_of(logits), in_order(logits), np.arange(9)
        tolerance = chain_tolerance(vocabulary, 1, 1) * (1 + spread) * (1 + np.log(vocabulary))
        for top in sorted({0, 1, min(5, vocabulary), min(40, vocabulary), vocabulary}):
            logprobs, ranks, ids, best = ops.score(logits, targets, top)
            assert np.abs(logprobs - want[rows, targets]).max() <= tolerance
            assert ranks.tolist() == [1 + order[r].tolist().index(targets[r]) for r in rows]
            assert np.array_equal(ids, order[:, :top]) and best.shape == (9, top)
            if top:
                assert np.abs(best - np.take_along_axis(want, ids.astype(np.int64), axis=1)).max() <= tolerance
                chosen = ids == targets[:, None]
                assert np.array_equal(best[chosen], logprobs[chosen.any(axis=1)]), "one number for one token"


@pytest.mark.usefixtures("isa")
def test_scores_of_extreme_logits() -> None:
    for width in (2, 5, 16, 33, 65):
        rows = np.zeros((6, width), np.float32)
        rows[0] = 1e4  # e^10000 is no float, and a shift changes nothing
        rows[1, 1:] = -1e30  # certain and right
        rows[2, :-1] = -1e30  # certain and wrong
        rows[3, 1:] = -np.inf  # forbidden
        rows[4, 1] = np.nan
        rows[5, 0] = np.inf
        logprobs, ranks, ids, _ = ops.score(rows, np.zeros(6, np.int32), 2)
        assert logprobs[0] == pytest.approx(-np.log(width), rel=chain_tolerance(width, 1))
        assert ranks[:4].tolist() == [1, 1, 2, 1]
        assert logprobs[1] == logprobs[3] == 0 and logprobs[2] == np.float32(-1e30)
        assert not np.isfinite(logprobs[4:]).any()
        assert ids[:4].tolist() == [[0, 1], [0, 1], [width - 1, 0], [0, 1]]


@pytest.mark.usefixtures("isa")
def test_the_same_bits_with_any_threads() -> None:
    rng = np.random.default_rng(1)
    logits, targets = normal(rng, 512, 512), rng.integers(0, 512, 512).astype(np.int32)
    assert_same_bits({"score": lambda: ops.score(logits, targets), "best": lambda: ops.score(logits, targets, 7)})


def test_what_bindings_refuse() -> None:
    logits, targets = np.zeros((3, 4), np.float32), np.zeros(3, np.int32)
    for message, arguments in (("targets", (logits, targets - 100)), ("targets", (logits, targets[:2]))):
        with pytest.raises(ValueError, match=message):
            ops.score(*arguments)
    for top in (-1, 5):
        with pytest.raises(ValueError, match="top must be from 0 to 4"):
            ops.score(logits, targets, top)
