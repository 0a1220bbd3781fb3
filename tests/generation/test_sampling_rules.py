"""The rules of the sampler give the distributions of `transformers`, or of the plainest code that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from soma_native import _core

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("transformers.generation.logits_process")
V = 40


def sampler(vocab_size: int = V, seed: int = 0, banned: Sequence[int] = (), **options: Any) -> _core.Sampler:
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **options}
    if "dry_breakers" in settings:
        settings["dry_breakers"] = np.array(settings["dry_breakers"], np.int32)
    return _core.Sampler(vocab_size=vocab_size, seed=seed, banned_ids=np.array(banned, np.int32), **settings)


def read(one: _core.Sampler, ids: Sequence[int]) -> None:
    one.observe(np.array(ids, np.int32))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"logit_bias": [(3, 2.5), (8, -4.0), (39, -np.inf)]},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 0.4, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
    {"logit_bias": [(0, 3.0), (1, -3.0)], "repetition_penalty": 1.5, "top_k": 5, "min_p": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_distribution_is_that_of_transformers(options: dict[str, Any]) -> None:
    bias = {(i,): float(b) for i, b in options.get("logit_bias", ())}
    given = {name: options[name] for name in options if name != "logit_bias"}
    make = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": theirs.NoRepeatNGramLogitsProcessor,
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }  # in the order of their generate
    rules = [theirs.SequenceBiasLogitsProcessor(bias)] if bias else []
    rules += [made(given[name]) for name, made in make.items() if name in given]
    rng = np.random.default_rng(5)
    for _ in range(40):
        ids = rng.integers(0, 12, rng.integers(1, 30))
        logits = rng.normal(0, 2, V).astype(np.float32)
        one = sampler(**options)
        read(one, ids)
        scores = theirs.LogitsProcessorList(rules)(torch.from_numpy(ids)[None], torch.from_numpy(logits)[None].clone())
        wanted = torch.softmax(scores[0].double(), 0).numpy()
        found = one.probabilities(logits)
        assert np.array_equal(found > 0, wanted > 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_draws_follow_the_distribution() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0, 1.5], np.float32)
    options = {"top_p": 0.9, "min_p": 0.2, "temperature": 1.2}
    wanted = sampler(5, **options).probabilities(logits)
    draws = np.bincount([sampler(5, seed, **options).sample(logits) for seed in range(4000)], minlength=5) / 4000
    assert 0 < (wanted > 0).sum() < 5
    np.testing.assert_allclose(draws, wanted, atol=0.035)
    assert not draws[wanted == 0].any()


def test_presence_and_frequency_count_what_was_drawn() -> None:
    """OpenAI's formula: a token that was drawn c times loses c * frequency + presence."""
    one = sampler(6, seed=3, presence_penalty=0.7, frequency_penalty=-0.4)
    read(one, [0, 0, 5])
    logits = np.linspace(-1, 1, 6).astype(np.float32)
    counts = np.zeros(6)
    for _ in range(30):
        np.testing.assert_allclose(one.probabilities(logits), softmax(logits - 0.7 * (counts > 0) + 0.4 * counts), 1e-5)
        counts[one.sample(logits)] += 1
    assert (counts > 1).any(), "a prompt's tokens are not counted, drawn ones are"


def repeats(ids: list[int], breakers: Sequence[int]) -> dict[int, int]:
    """For each token that followed the end of the text before: the longest such end, as DRY's author finds it."""
    found: dict[int, int] = {}
    if not ids or ids[-1] in breakers:
        return found
    for i in [i for i in range(len(ids) - 1) if ids[i] == ids[-1]]:
        if ids[i + 1] in breakers:
            continue
        length = 1
        while i - length >= 0 and ids[i - length] == ids[-1 - length] and ids[i - length] not in breakers:
            length += 1
        found[ids[i + 1]] = max(found.get(ids[i + 1], 0), length)
    return found


@pytest.mark.parametrize("symbols", [1, 2, 3, 6])
@pytest.mark.parametrize("allowed", [1, 2, 4])
def test_dry_is_what_its_author_says(symbols: int, allowed: int) -> None:
    rng = np.random.default_rng(symbols)
    breakers = [symbols, 9]  # now and then one of them stands in the text
    options = {"dry_multiplier": 0.3, "dry_base": 1.1, "dry_allowed_length": allowed, "dry_breakers": breakers}
    one = sampler(12, **options)
    logits = rng.normal(0, 1, 12).astype(np.float32)
    ids: list[int] = []
    penalised = 0
    for step in range(150):
        wanted = logits.copy()
        for token, length in repeats(ids, breakers).items():
            if length >= allowed:
                wanted[token] -= 0.3 * 1.1 ** (length - allowed)
                penalised += 1
        np.testing.assert_allclose(one.probabilities(logits), softmax(wanted), rtol=1e-4, err_msg=f"{step}: {ids}")
        ids.append(int(rng.integers(0, symbols)) if rng.random() < 0.95 else symbols)
        read(one, ids[-1:])
    assert penalised


def test_a_breaker_of_several_tokens() -> None:
    logits = np.zeros(5, np.float32)
    text = [0, 1, 2, 3, 0, 1, 2]
    plain = {"dry_multiplier": 1.0, "dry_base": 1.0}
    for sequences, lost in ([], 1), ([[1, 2]], 0), ([[0, 1]], 0), ([[3, 0]], 1), ([[2, 1]], 1), ([[0, 1, 2]], 0):
        one = sampler(5, dry_breaker_sequences=sequences, **plain)
        read(one, text)
        np.testing.assert_allclose(one.probabilities(logits), softmax(-lost * np.eye(5)[3]), err_msg=str(sequences))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_n_gram_comes_twice(n: int) -> None:
    """The prompt counts. Where every token is ruled out, the rule gives way."""
    rng = np.random.default_rng(n)
    logits = rng.normal(0, 1, 4).astype(np.float32)
    one = sampler(4, seed=n, no_repeat_ngram_size=n)
    ids: list[int] = [0, 1, 2, 0]
    read(one, ids)
    for _ in range(60):
        grams = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
        ruled_out = [(*ids[len(ids) - n + 1 :], token) in grams for token in range(4)]
        wanted = softmax(np.where(ruled_out, -np.inf, logits)) if not all(ruled_out) else softmax(logits)
        np.testing.assert_allclose(one.probabilities(logits), wanted, rtol=1e-5)
        ids.append(one.sample(logits))


def test_biases_rule_out_and_force() -> None:
    logits = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    greedy = {"temperature": 0.0}
    assert sampler(4, logit_bias=[(0, -np.inf)], **greedy).sample(logits) == 1
    assert sampler(4, logit_bias=[(3, 100.0)], **greedy).sample(logits) == 3
    assert sampler(4, banned=[3], logit_bias=[(3, 100.0)], **greedy).sample(logits) == 0, "banned ids stay out"
    everything = [(i, -np.inf) for i in range(4)]
    assert sampler(4, logit_bias=everything, **greedy).sample(logits) == 0, "rules that leave nothing do not count"
    assert sampler(4, logit_bias=everything, banned=[0], **greedy).sample(logits) == 1


def test_the_next_id_is_one_of_some() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, V).astype(np.float32)
    some = np.array([7, 3, 21], np.int32)

    def restricted(**options: Any) -> _core.Sampler:
        one = sampler(**options)
        read(one, some.tolist())
        one.restrict_next(some)
        return one

    wanted = np.full(V, -np.inf, np.float32)
    wanted[some] = logits[some]
    np.testing.assert_allclose(restricted().probabilities(logits), softmax(wanted), rtol=1e-6)
    one = restricted(temperature=0.0)
    assert one.sample(logits) == some[logits[some].argmax()]
    assert one.sample(logits) == logits.argmax() not in some, "the one after it is any"
    assert restricted(no_repeat_ngram_size=1).sample(logits) in some, "rules give way, the restriction does not"
    logits[0] = np.nan
    assert restricted().sample(logits) in some
    with pytest.raises(ValueError, match="ids must be from 0"):
        sampler().restrict_next(np.array([V], np.int32))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"min_p": 2.0}, r"min_p must be in \[0, 1\], got 2"),
        ({"min_p": np.nan}, "min_p must be"),
        ({"presence_penalty": np.inf}, "presence_penalty must be finite"),
        ({"frequency_penalty": np.nan}, "frequency_penalty must be finite"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be >= 0"),
        ({"dry_multiplier": -1.0}, "dry_multiplier must be"),
        ({"dry_base": 0.5}, "dry_base must be"),
        ({"dry_allowed_length": 0}, "dry_allowed_length must be"),
        ({"logit_bias": [(V, 1.0)]}, f"ids of logit_bias must be from 0 to {V - 1}, got {V}"),
        ({"logit_bias": [(-1, 1.0)]}, "ids of logit_bias must be"),
        ({"logit_bias": [(1, np.inf)]}, "logit_bias must be finite or -infinity"),
        ({"dry_breakers": [V]}, "dry_breakers must be from 0"),
    ],
)
def test_the_core_refuses(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        sampler(**options)
