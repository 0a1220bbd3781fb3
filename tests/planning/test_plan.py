"""Plans: what a corpus and a time lead to, and that a plan says why."""

from __future__ import annotations

import itertools
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from soma_native.optim.optimizer import Optimizer
from soma_native.planning.candidates import predicted_loss
from soma_native.planning.corpus import Corpus, survey
from soma_native.planning.plan import PLANNED, choose
from soma_native.planning.speed import Speed, measure_speed
from soma_native.training.memory import size_text, training_memory

FAST = Speed((8e5, 4.8e6), (2e11, 6e11), (0.002, 0.01), "amx", 2, "bfloat16")
SLOW = Speed((8e5, 4.8e6), (2e10, 4e10), (0.02, 0.1), "avx2", 2, "float32")


def corpus(size: int, alphabet: int = 65) -> Corpus:
    return Corpus(1, size, size, alphabet)


def test_a_survey_counts_bytes_characters_and_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("häuser\n", encoding="utf-8")
    wanted = Corpus(documents=3, bytes=11, characters=10, alphabet=9, lengths=((0, 1), (3, 1), (7, 1)))
    assert survey([path, "zoo", ""]) == wanted


def test_a_text_that_repeats_itself_is_poor_and_noise_is_rich() -> None:
    noise = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=30_000))
    poor, rich = survey(["the cat sat. " * 3000]).richness, survey([noise]).richness
    assert poor < 0.1 < 1.3 < rich


def test_a_python_without_bz2_takes_a_text_for_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bz2", None)
    assert survey(["the cat sat. " * 3000]).richness == 1.0


def test_the_length_of_a_file_that_is_read_in_pieces_is_that_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("häuser am see\n" * 200_000, encoding="utf-8")
    assert survey([path, "zoo", "zoo"]).lengths == ((3, 2), (2_800_000, 1))


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


def test_a_model_smaller_than_its_text_needs_less() -> None:
    """At seven epochs of a megabyte dropout costs the small model 0.04 nats (docs/LOG.md)."""
    small, large = (choose(corpus(1_111_111), FAST, None, {"preset": name, "epochs": 7}) for name in ("1m", "5m"))
    assert (small.training.dropout, large.training.dropout) == (0.0, 0.1)
    again = choose(corpus(111_111), FAST, None, {"preset": "1m", "epochs": 7})
    assert again.training.dropout == 0.1, "of a tenth of the text it is not"


def test_with_nothing_said_a_small_corpus_gets_less_time() -> None:
    small, large = (choose(corpus(size), FAST).minutes for size in (20_000, 100_000_000))
    assert small is not None and large is not None
    assert 0 < small < large == 10


def test_a_corpus_that_ten_minutes_do_not_exhaust_is_told_so() -> None:
    assert "which is what this corpus is worth" in choose(corpus(20_000), FAST).reasons[3]
    assert "10 minutes, the most unless you give more" in choose(corpus(100_000_000), FAST).reasons[3]


def test_a_corpus_that_repeats_itself_is_told_so() -> None:
    assert "it repeats itself" in choose(survey(["the same line again\n" * 2_000]), FAST, 1).reasons[0]
    assert "repeats" not in choose(corpus(1_000_000), FAST, 1).reasons[0]


def test_a_run_that_may_be_stopped_has_an_average() -> None:
    for minutes in (1, 4, 10):
        training = choose(corpus(1_000_000), FAST, minutes).training
        assert training.ema is not None and 0.6 <= training.ema <= 0.995
    assert choose(corpus(1_000_000), FAST, 4, {"ema": 0.9}).training.ema == 0.9


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


def test_a_text_of_many_characters_is_not_cut_into_their_bytes() -> None:
    """Merges of 1,024 tokens do not reach whole characters of a large alphabet. They do reach words of a small one."""
    rng = np.random.default_rng(0)
    large = "".join(chr(0x4E00 + int(i)) for i in rng.zipf(1.3, 30_000) % 2_500)
    words = ["".join(chr(0x430 + int(i)) for i in rng.integers(0, 30, 6)) for _ in range(40)]
    small = " ".join(words[int(i)] for i in rng.integers(0, 40, 5_000)) + "".join(map(chr, range(0x4E00, 0x5000)))
    found = choose(survey([large]), FAST, 4)
    assert (found.tokenizer, found.vocab_size) == ("char", None) and "1." in found.reasons[1]
    assert choose(survey([small]), FAST, 4).tokenizer == "bpe"
    assert choose(survey([large]), FAST, 4, {"tokenizer": "bpe"}).tokenizer == "bpe"


def test_a_plan_keeps_every_setting_that_is_given() -> None:
    given = {"preset": "1m", "tokenizer": "bpe", "vocab_size": 700, "seq_len": 64, "batch_size": 5, "lr": 1e-4}
    plan = choose(corpus(1_000_000), FAST, 4, given | {"optimizer": "adamw", "seed": 3})
    assert (plan.preset, plan.tokenizer, plan.vocab_size, plan.model.max_seq_len) == ("1m", "bpe", 700, 64)
    assert (plan.training.batch_size, plan.training.lr, plan.training.optimizer) == (5, 1e-4, "adamw")
    assert plan.training.minutes == 4


def test_many_short_documents_have_as_many_epochs_as_their_steps_make() -> None:
    """Windows of 20 tokens: a step has a twelfth of the tokens that whole windows have."""
    short = Corpus(50_000, 10**6, 10**6, 65, lengths=((20, 50_000),))
    long, short_plan = (choose(each, None, None, {"steps": 1000, "preset": "1m"}) for each in (corpus(10**6), short))
    assert short_plan.epochs == pytest.approx(1000 / (0.9 * 50_000 / 8))
    assert short_plan.epochs < long.epochs / 10
    assert "1,000 steps of some 160 tokens (at most 8 x 256), 0.18 epochs" in short_plan.reasons[3]
    assert "1,000 steps of 8 x 256 tokens" in long.reasons[3]


def test_a_tiny_text_gets_the_epochs_that_its_small_steps_take() -> None:
    tiny = choose(corpus(180), FAST, 1, {"preset": "1m"})
    assert tiny.steps == round(tiny.epochs)
    assert tiny.steps < 60 / FAST.update[0], "the optimizer's time counts in every step"


def test_the_expected_figure_is_in_bits_a_byte_and_says_its_error() -> None:
    english, chinese = corpus(10**6), Corpus(1, 3 * 10**6, 10**6, 4000, richness=2.0)
    plans = [choose(each, FAST, 4, {"preset": "5m", "tokenizer": "char"}) for each in (english, chinese)]
    for plan, characters, share in zip(plans, (1, 1 / 3), (1, 2), strict=True):
        epoch = plan.epochs * 0.9 * 10**6
        loss = predicted_loss(4.87e6, epoch, 0.9 * 10**6) * share * characters / math.log(2)
        assert plan.bits_per_byte == pytest.approx(loss, rel=0.02)
        assert f"expected {plan.bits_per_byte:.2f} bits a byte, give or take" in plan.reasons[2]
    assert "nats" not in str(plans[0])


@pytest.mark.parametrize("given", [{"tokenizer": "word"}, {"model": soma.ModelConfig.preset("1m")}], ids=str)
def test_where_no_figure_can_be_expected_none_is_said(given: dict[str, Any]) -> None:
    plan = choose(corpus(10**6), FAST, 4, given)
    assert plan.bits_per_byte is None and "expected" not in plan.reasons[2]


def test_of_a_tiny_text_no_figure_is_expected() -> None:
    assert choose(corpus(500), FAST, 1).bits_per_byte is None


def test_the_memory_is_that_of_the_precision_that_was_asked_for() -> None:
    given = {"steps": 100, "preset": "5m", "batch_size": 32}
    plans = {name: choose(corpus(10**6), None, None, given | {"precision": name}) for name in ("float32", "bfloat16")}
    for name, plan in plans.items():
        assert plan.memory == training_memory(plan.model, 32, 256, name, "muon", True)
    assert plans["float32"].memory != plans["bfloat16"].memory


def test_steps_that_are_given_take_the_place_of_minutes() -> None:
    plan = choose(corpus(1_000_000), FAST, None, {"steps": 100, "preset": "5m", "batch_size": 16})
    assert (plan.steps, plan.training.steps, plan.training.minutes, plan.minutes) == (100, 100, None, None)
    assert plan.flops == pytest.approx(100 * 16 * 256 * 6 * 4.87e6, rel=0.1)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_speed_tells_what_a_step_takes_from_what_its_tokens_take(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time passes in the model's pass and in the optimizer alone, as much as each is told to take."""
    now = 0.0

    def loss_and_grad(self: Any, ids: Any, targets: Any) -> float:
        nonlocal now
        now += 1e-3 * ids.size
        return 1.0

    def step(self: Any) -> float:
        nonlocal now
        now += {soma.Muon: 0.5, soma.AdamW: 0.25}[type(self)]
        return 1.0

    monkeypatch.setattr(soma.Model, "loss_and_grad", loss_and_grad)
    monkeypatch.setattr(Optimizer, "step", step)
    speed = measure_speed("float32", optimizer, clock=lambda: now)
    update = {"muon": 0.5, "adamw": 0.25}[optimizer]
    config = soma.ModelConfig.preset("5m")
    assert speed.update == pytest.approx((update, update))
    assert speed.seconds(config, 3, 3 * 700, 256) == pytest.approx(3 * (0.7 + update))
    assert speed.seconds(config, 3, 3 * 700, 32) < 3 * (0.7 + update), "short windows have less attention"
    assert speed.tokens_per_second(soma.ModelConfig.preset("30m")) < speed.tokens_per_second(config) / 4


def test_small_steps_are_planned_as_slower_a_token() -> None:
    speed = replace(FAST, update=(0.1, 0.2))
    large, small = (choose(corpus(1_000_000), speed, 4, {"preset": "1m", "batch_size": size}) for size in (32, 1))
    assert small.epochs < large.epochs / 5
    assert large.tokens_per_second is not None and small.tokens_per_second is not None
    assert small.tokens_per_second < large.tokens_per_second / 5


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


def test_a_plan_is_for_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed and its free memory count; one that is not there is refused before anything is measured."""
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or"):
        soma.plan(["some text"], device="tpu")
    asked: dict[str, Any] = {}

    def answer_by(name: str, answer: Any) -> None:
        def answers(*given: Any, **named: Any) -> Any:
            asked[name] = named.get("device", *given[:1])
            return (answer, named) if name == "choose" else answer

        monkeypatch.setattr(f"soma_native.planning.plan.{name}", answers)

    for name, answer in {"checked_device": "cuda", "measure_speed": FAST, "free_memory": 99, "choose": 1}.items():
        answer_by(name, answer)
    chosen: Any = soma.plan(["some text"], device="cuda")
    assert chosen == (1, {"free": 99, "device": "cuda"})
    assert asked == dict.fromkeys(["checked_device", "measure_speed", "free_memory", "choose"], "cuda")
