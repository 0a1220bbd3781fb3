"""Plans: what a corpus and a time lead to, and that a plan says why."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import soma_native as soma
from soma_native.planning.corpus import Corpus, survey
from soma_native.planning.plan import PLANNED, choose, predicted_loss
from soma_native.planning.speed import Speed, measure_speed
from soma_native.training.memory import size_text

FAST = Speed((8e5, 4.8e6), (2e11, 6e11), "amx", 2, "bfloat16")
SLOW = Speed((8e5, 4.8e6), (2e10, 4e10), "avx2", 2, "float32")


def corpus(size: int, alphabet: int = 65) -> Corpus:
    return Corpus(1, size, size, alphabet)


def test_a_survey_counts_bytes_characters_and_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("häuser\n", encoding="utf-8")
    assert survey([path, "zoo", ""]) == Corpus(documents=3, bytes=11, characters=10, alphabet=9)


@pytest.mark.parametrize(
    ("texts", "said"),
    [([], "and have none"), ([""], "and have none"), (["aaaa"], "only 'a'"), ([" \n.-"], "no letters")],
)
def test_a_corpus_without_text_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        survey(texts)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), "4"])
def test_a_time_that_is_none_is_refused_by_name(minutes: object) -> None:
    with pytest.raises((ValueError, TypeError), match="minutes"):
        soma.plan(["some text"], minutes=minutes)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [20_000, 1_000_000, 100_000_000])
def test_more_time_takes_no_smaller_model(size: int) -> None:
    sizes = [PLANNED.index(choose(corpus(size), FAST, minutes).preset) for minutes in (0.1, 1, 4, 20, 600)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("minutes", [0.5, 4, 60])
def test_a_slower_machine_takes_no_larger_model(minutes: float) -> None:
    slow, fast = (PLANNED.index(choose(corpus(10**7), speed, minutes).preset) for speed in (SLOW, FAST))
    assert slow <= fast


def test_more_epochs_are_more_regularised() -> None:
    plans = [choose(corpus(1_000_000), FAST, minutes, {"preset": "5m"}) for minutes in (0.5, 2, 6, 40)]
    for before, after in itertools.pairwise(plans):
        assert before.epochs < after.epochs
        assert before.training.dropout <= after.training.dropout
        assert before.training.weight_decay <= after.training.weight_decay
    assert plans[0].training.dropout == 0 < plans[-1].training.dropout


def test_with_nothing_said_a_small_corpus_gets_less_time() -> None:
    small, large = (choose(corpus(size), FAST).minutes for size in (20_000, 100_000_000))
    assert small is not None and large is not None
    assert 0 < small < large <= 10


def test_repeated_tokens_are_worth_less_than_fresh_ones() -> None:
    fresh, repeated = predicted_loss(1e6, 1e7, 1e7), predicted_loss(1e6, 1e7, 1e6)
    assert fresh < repeated < predicted_loss(1e6, 2e6, 1e6)


@pytest.mark.parametrize(
    ("size", "alphabet", "kind"), [(1_000_000, 65, "char"), (100_000_000, 150, "bpe"), (1_000_000, 4_000, "bpe")]
)
def test_the_tokenizer_suits_the_corpus(size: int, alphabet: int, kind: str) -> None:
    plan = choose(corpus(size, alphabet), FAST, 4)
    assert plan.tokenizer == kind
    assert f"tokenizer: {kind}" in plan.reasons[1]


def test_what_is_given_stays() -> None:
    given = {"preset": "1m", "tokenizer": "bpe", "vocab_size": 700, "seq_len": 64, "batch_size": 5, "lr": 1e-4}
    plan = choose(corpus(1_000_000), FAST, 4, given | {"optimizer": "adamw", "seed": 3})
    assert (plan.preset, plan.tokenizer, plan.vocab_size, plan.model.max_seq_len) == ("1m", "bpe", 700, 64)
    assert (plan.training.batch_size, plan.training.lr, plan.training.optimizer) == (5, 1e-4, "adamw")
    assert plan.training.minutes == 4


def test_steps_that_are_given_take_the_place_of_minutes() -> None:
    plan = choose(corpus(1_000_000), FAST, None, {"steps": 100, "preset": "5m", "batch_size": 16})
    assert (plan.steps, plan.training.steps, plan.training.minutes, plan.minutes) == (100, 100, None, None)
    assert plan.flops == pytest.approx(100 * 16 * 256 * 6 * 4.87e6, rel=0.1)


def test_the_speed_of_this_machine_is_that_of_the_clock() -> None:
    ticks = itertools.count(0, 2)  # every step takes two seconds
    speed = measure_speed(clock=lambda: float(next(ticks)))
    assert speed.flops[0] < speed.flops[1]
    config = soma.ModelConfig.preset("5m")
    assert speed.tokens_per_second(config) == pytest.approx(4096 / 2)
    assert speed.tokens_per_second(soma.ModelConfig.preset("30m")) < 4096 / 2


def test_sizes_that_do_not_fit_are_left_out() -> None:
    large = choose(corpus(100_000_000), FAST, 600)
    assert large.reasons[4] == f"memory: needs {size_text(large.memory)}"
    free = round(large.memory / 0.85)
    less = choose(corpus(100_000_000), FAST, 600, free=free)
    assert less.memory <= 0.8 * free < large.memory
    assert (less.model.num_parameters, less.training.batch_size) < (large.model.num_parameters, 64)
    assert f"memory: needs {size_text(less.memory)}, {size_text(free)} are free" in less.reasons[4]
    assert "too large: 30m (" in choose(corpus(100_000_000), FAST, 600, free=10**9).reasons[4]
    same = choose(corpus(100_000_000), FAST, 600, free=round(large.memory / 0.79))
    assert (same.preset, same.memory, same.training) == (large.preset, large.memory, large.training)


def test_batches_shrink_before_a_size_that_was_asked_for_is_refused() -> None:
    given = {"preset": "5m", "seq_len": 256}
    plenty = choose(corpus(100_000_000), FAST, 60, given)
    assert plenty.training.batch_size == 32
    tight = choose(corpus(100_000_000), FAST, 60, given, free=plenty.memory - 1)
    assert (tight.preset, tight.training.batch_size) == ("5m", 16)
    with pytest.raises(ValueError, match=r"at least .* \(model 5m, batches of 32\)"):
        choose(corpus(100_000_000), FAST, 60, given | {"batch_size": 32}, free=plenty.memory - 1)


def test_where_no_size_fits_the_error_says_so() -> None:
    with pytest.raises(ValueError, match=r"needs at least .* of memory \(model 1m, batches of 8\), and 20 MB are free"):
        choose(corpus(1_000_000), FAST, 4, free=20_000_000)


def test_a_plan_can_be_printed_and_stored() -> None:
    plan = soma.plan(["the cat sat on the mat " * 40, "a dog"], minutes=0.1)
    assert plan.to_dict()["model"]["block"] == "llama"
    assert [line.split(":")[0].split()[0] for line in str(plan).splitlines()] == [
        "corpus", "tokenizer", "model", "time", "memory", "regularisation",
    ]  # fmt: skip
