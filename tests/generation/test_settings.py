"""The settings of a call beyond the common ones: checked by the call itself, and obeyed by every way to generate."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import pytest

import soma_native
from soma_native import Generator
from soma_native.generation.sampling import DEFAULTS, MoreSettings, Sampling, Settings


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Of a random model with large weights, which repeats itself, without an end of text."""
    tok = soma_native.Tokenizer.train(["the cat sat on the mat, a dog ate."], kind="char", special_tokens=())
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_seq_len": 40}
    model = soma_native.Model(soma_native.ModelConfig(tok.vocab_size, **shape), seed=3, precision="float32")
    for name, array in model.parameters().items():
        model.write(name, 20 * array)
    return Generator(model, tok)


def test_rules_reach_every_way_to_generate(generator: Generator) -> None:
    tok = generator._tok
    ask: dict[str, Any] = {"max_tokens": 60, "temperature": 0}
    plain = generator.generate("the cat", **ask)
    texts = []
    for rule in (
        {"no_repeat_ngram_size": 2},
        {"presence_penalty": 1.9},
        {"frequency_penalty": 1.9},
        {"dry_multiplier": 9.0},
        {"dry_multiplier": 9.0, "dry_allowed_length": 30},
        {"logit_bias": {tok.encode(plain[7])[0]: -math.inf}},
        {"dry_multiplier": 9.0, "dry_sequence_breakers": list(plain)},
    ):
        text = generator.generate("the cat", **ask, **rule)
        texts.append(text)
        assert "the cat" + "".join(generator.stream("the cat", **ask, **rule)) == text
        assert generator.generate_batch(["a", "the cat"], **ask, **rule)[1] == text
    assert plain not in texts[:4] and plain[7] not in texts[5][7:]
    assert texts[6] == plain, "breakers everywhere leave the text as it is"
    pairs = list(itertools.pairwise(texts[0]))
    assert len(set(pairs)) == len(pairs), "no two characters come twice"
    drawn = generator.generate("the cat", max_tokens=30, temperature=2.0, seed=2, min_p=1)
    assert drawn == generator.generate("the cat", max_tokens=30, temperature=0)


def test_dry_finds_breakers_in_tokens_and_across_them() -> None:
    tok = soma_native.Tokenizer.train(["a::: b\n\nc d. " * 5], kind="bpe", vocab_size=262, special_tokens=())
    sampler = DEFAULTS.sampler
    with_colon = [i for i in range(tok.vocab_size) if b":" in tok.decode_bytes([i])]
    made: dict[str, Any] = {}

    def core(**options: Any) -> None:
        made.update(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("soma_native.generation.sampling._core.Sampler", core)
        sampler(tok, tok.vocab_size, None, 0)  # type: ignore[arg-type]
        assert len(made["dry_breakers"]) == 0 and not made["dry_breaker_sequences"], "without DRY none is looked for"
        dry = Sampling.of(dry_multiplier=1, dry_sequence_breakers=[":", "d. a", "\ud800"])
        dry.sampler(tok, tok.vocab_size, None, 0)  # type: ignore[arg-type]
    assert sorted(made["dry_breakers"].tolist()) == with_colon and len(with_colon) > 1
    assert made["dry_breaker_sequences"] == [tok.encode("d. a")] and len(tok.encode("d. a")) > 1


@pytest.mark.parametrize("call", ["generate", "generate_batch", "stream"])
@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        ({"min_p": 2}, ValueError, "min_p must be from 0 to 1, got 2"),
        ({"min_p": "x"}, TypeError, "min_p must be a number"),
        ({"no_repeat_ngram_size": -1}, ValueError, "no_repeat_ngram_size must be from 0"),
        ({"no_repeat_ngram_size": 2.0}, TypeError, "no_repeat_ngram_size must be an integer"),
        ({"presence_penalty": -2.1}, ValueError, "presence_penalty must be from -2 to 2, got -2.1"),
        ({"presence_penalty": math.nan}, ValueError, "presence_penalty must be finite"),
        ({"frequency_penalty": 2.1}, ValueError, "frequency_penalty must be from -2 to 2"),
        ({"dry_multiplier": -1}, ValueError, "dry_multiplier must be"),
        ({"dry_base": 0.9}, ValueError, "dry_base must be"),
        ({"dry_base": None}, TypeError, "dry_base must be"),
        ({"dry_allowed_length": 0}, ValueError, "dry_allowed_length must be"),
        ({"dry_sequence_breakers": ["a", ""]}, ValueError, "dry_sequence_breakers must not hold an empty text"),
        ({"dry_sequence_breakers": 5}, TypeError, "dry_sequence_breakers must be"),
        ({"dry_sequence_breakers": {"a": 1}}, TypeError, "dry_sequence_breakers must be"),
        ({"logit_bias": {10**6: 1.0}}, ValueError, "logit_bias has the id 1000000, but ids are from 0 to"),
        ({"logit_bias": {-1: 1.0}}, ValueError, "logit_bias has the id -1"),
        ({"logit_bias": {"cat": 1.0}}, TypeError, "logit_bias must have integers as ids, got 'cat'"),
        ({"logit_bias": {True: 1.0}}, TypeError, "logit_bias must have integers as ids"),
        ({"logit_bias": {3: "x"}}, TypeError, r"logit_bias\[3\] must be a number"),
        ({"logit_bias": {3: math.inf}}, ValueError, r"logit_bias\[3\] must be finite"),
        ({"logit_bias": [3]}, TypeError, "logit_bias must be a dict of ids and numbers"),
        ({"heal_prompt": 1}, TypeError, "heal_prompt must be True or False, got 1"),
    ],
)
def test_bad_settings(
    generator: Generator, call: str, arguments: dict[str, Any], error: type[Exception], wanted: str
) -> None:
    with pytest.raises(error, match=wanted):
        getattr(generator, call)(["the"] if call == "generate_batch" else "the", **arguments)


def test_none_switches_a_rule_off(generator: Generator) -> None:
    names = ["min_p", "no_repeat_ngram_size", "presence_penalty", "frequency_penalty", "dry_multiplier", "logit_bias"]
    ask: dict[str, Any] = {"max_tokens": 9, "temperature": 1.5, "seed": 4}
    assert generator.generate("the", **ask) == generator.generate("the", **ask, **dict.fromkeys(names))


def test_every_setting_has_its_type_and_its_words() -> None:
    """The keywords that type checkers know, the checked ones, and those that `generate` documents are the same."""
    names = set(Sampling.__dataclass_fields__) | {"max_new_tokens"}
    assert set(Settings.__annotations__) == names
    documented = inspect.getdoc(Generator.generate) or ""
    assert not [name for name in MoreSettings.__annotations__ if f"\n    {name}: " not in documented]
