"""The sampler of the core draws only allowed ids, for vocabularies of any size and with any equal logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from soma_native import _core


def sampler(vocab_size: int, seed: int, banned: Any = (), **options: Any) -> _core.Sampler:
    settings = {"temperature": 1e6, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **options}
    return _core.Sampler(vocab_size=vocab_size, seed=seed, banned_ids=np.array(banned, np.int32), **settings)


def drawn(logits: Any, banned: Any, draws: int, **options: Any) -> set[int]:
    """The ids that occur in draws of equal probability."""
    return {sampler(len(logits), seed, banned, **options).sample(logits) for seed in range(draws)}


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 33, 100, 1000, 5000])
@pytest.mark.parametrize("order", ["rising", "falling", "random", "ties", "equal"])
def test_top_k_are_the_k_best_and_of_equals_the_first(vocab_size: int, order: str) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.standard_normal(vocab_size).astype(np.float32)
    if order == "rising":
        logits.sort()
    elif order == "falling":
        logits[::-1].sort()
    elif order != "random":
        logits = np.round(logits * (2 if order == "ties" else 0))
    banned = rng.permutation(vocab_size)[: vocab_size // 3]
    allowed = np.setdiff1d(np.arange(vocab_size), banned)
    best = allowed[np.lexsort((allowed, -logits[allowed]))]
    for k in (1, 3, 7):
        found = drawn(logits, banned, 150, top_k=k)
        assert found == set(best[:k].tolist()), k
    assert sampler(vocab_size, 0, banned, temperature=0).sample(logits) == best[0]
    assert drawn(logits, banned, 50) <= set(allowed.tolist())


def test_a_seen_id_is_penalised_once() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.2], np.float32)
    one = sampler(4, 0, temperature=0, repetition_penalty=2.0)
    one.observe(np.array([0, 0, 0], np.int32))
    assert [one.sample(logits) for _ in range(3)] == [1, 0, 0], "2 / 2 is above 1.5 / 2"
    one = sampler(4, 0, banned=[0, 1], temperature=0, repetition_penalty=2.0)
    assert [one.sample(logits) for _ in range(3)] == [2, 3, 2], "-1 * 2 is below -1.2, then -1.2 * 2 below it"


def test_a_tiny_penalty_makes_no_logit_infinite() -> None:
    logits = np.array([0.0, 50.0, 90.0, 1.0], np.float32)
    one = sampler(4, 0, temperature=1.0, repetition_penalty=1e-37)
    one.observe(np.array([1, 2], np.int32))
    assert np.array_equal(one.probabilities(logits), [0, 0.5, 0.5, 0]), "both are as large as a float can be"


def test_broken_logits_are_refused_and_banned_ones_are_not_looked_at() -> None:
    for bad in (np.nan, np.inf):
        logits = np.array([0.0, bad, 1.0], np.float32)
        with pytest.raises(ValueError, match="not finite"):
            sampler(3, 0).sample(logits)
        assert sampler(3, 0, banned=[1], temperature=0).sample(logits) == 2
