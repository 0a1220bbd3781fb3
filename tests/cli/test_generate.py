"""The options of `soma-native generate` are the keywords of `Generator.generate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import soma_native

pytestmark = pytest.mark.levels()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tok = soma_native.Tokenizer.train(["the cat sat on the mat, a dog ate"], kind="word")
    config = soma_native.ModelConfig(tok.vocab_size, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=16)
    soma_native.save(tmp_path, soma_native.Model(config, seed=1), tok)
    return tmp_path


def test_the_options_are_the_keywords(run: Any, folder: Path) -> None:
    model, tok = soma_native.load(folder)
    settings: dict[str, Any] = {
        "max_tokens": 12, "temperature": 2.0, "top_k": 9, "top_p": 0.99, "repetition_penalty": 1.1, "seed": 5,
        "min_p": 0.01, "no_repeat_ngram_size": 2, "presence_penalty": -0.5, "frequency_penalty": 1.5,
        "dry_multiplier": 0.9, "dry_base": 2.5, "dry_allowed_length": 1, "dry_sequence_breakers": ["dog", "mat"],
    }  # fmt: skip
    bias = {tok.encode("dog")[0]: 3.5, tok.encode("mat")[0]: -math.inf}
    text = soma_native.Generator(model, tok).generate("the cat", logit_bias=bias, **settings)
    flags: list[object] = []
    for name, value in settings.items():
        flags += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    for i, value in bias.items():
        flags += ["--logit-bias", f"{i}={value}"]
    assert run("generate", folder, "the cat", *flags).out == text + "\n"
    assert "dog" in text and "mat" not in text
    healed, plain = (run("generate", folder, "the ca", *flags, *more).out for more in ((), ("--no-heal-prompt",)))
    assert healed.startswith("the cat ") and plain.startswith("the ca ")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--logit-bias", "13"), "must be an id and a number such as 13=-5, got '13'"),
        (("--logit-bias", "a=1"), "must be an id and a number"),
        (("--logit-bias", "99999=1"), "--logit-bias has the id 99999"),
        (("--min-p", 2), "--min-p must be from 0 to 1"),
        (("--presence-penalty", "-2.5"), "--presence-penalty must be from -2 to 2"),
        (("--dry-base", "none"), "must be a number"),
        (("--no-repeat-ngram-size", -1), "must be from 0"),
    ],
)
def test_bad_values_are_bad_usage(run: Any, folder: Path, flags: tuple[object, ...], problem: str) -> None:
    result = run("generate", folder, "the", *flags)
    assert result.status == 2 and problem in result.err and result.err.count("\n") == 1
