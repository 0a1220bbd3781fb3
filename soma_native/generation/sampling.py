"""The settings of a call of the generator, checked before any work is done, and the sampler of the core for them."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from soma_native._checks import choice, flag, integer, number
from soma_native.checkpoint.hf_config import SAMPLING, auto_penalty
from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.tokenizer.tokenizer import Tokenizer

WEIGHTS = ("auto", "float32", "bfloat16", "int8")
KV_CACHE = ("auto", "float32", "bfloat16")


class MoreSettings(TypedDict, total=False):
    """The keywords of a call beyond those in the signature of `Generator.generate`, which documents them all."""

    min_p: float | None
    no_repeat_ngram_size: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    dry_multiplier: float | None
    dry_base: float
    dry_allowed_length: int
    dry_sequence_breakers: str | Iterable[str] | None
    logit_bias: Mapping[int, float] | None
    heal_prompt: bool


class Settings(MoreSettings, total=False):
    """All keywords of a call."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | Literal["auto"] | None
    seed: int | None
    stop: str | Iterable[str] | None
    max_new_tokens: int | None


class _Default(int):
    """A default value. Its identity shows whether the user gave `max_tokens`, even with the same number."""


_MOST = (1 << 31) - 1
PENALTY = {"least": 1e-37, "most": 1e38}  # limits of a factor and divisor in single precision
_HINTS = {
    "max_length": "give max_tokens, the number of tokens to add after the prompt",
    "num_beams": "there is no beam search",
    "do_sample": "give temperature=0 for greedy decoding",
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The settings of a call of `Generator.generate`, with aliases resolved and values checked."""

    max_tokens: int = _Default(SAMPLING["max_new_tokens"])
    temperature: float = SAMPLING["temperature"]
    top_k: int = SAMPLING["top_k"]
    top_p: float = SAMPLING["top_p"]
    repetition_penalty: float | Literal["auto"] = SAMPLING["repetition_penalty"]
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = SAMPLING["min_p"]
    no_repeat_ngram_size: int = SAMPLING["no_repeat_ngram_size"]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int, float], ...] = ()
    heal_prompt: bool = True

    @classmethod
    def of(cls, **given: Any) -> Sampling:
        """Check the arguments of a user: fields of this class, or the alias `max_new_tokens`.

        Raises:
            TypeError: an unknown keyword, two different numbers of tokens, or a value of the wrong type.
            ValueError: a value outside its range.
        """
        alias = given.pop("max_new_tokens", None)
        for name in given:
            if name not in _CHECKS:
                allowed = ", ".join(_CHECKS).replace("max_tokens", "max_tokens (or max_new_tokens)")
                raise TypeError(f"there is no argument {name!r}: {_HINTS.get(name, f'allowed are {allowed}')}")
        if alias is not None:
            alias = integer("max_new_tokens", alias, 0, _MOST)
            most = given.get("max_tokens", DEFAULTS.max_tokens)
            if most is not DEFAULTS.max_tokens and integer("max_tokens", most, 0, _MOST) != alias:
                raise ArgumentTypeError("max_tokens", f"is {most} and its alias max_new_tokens {alias}: give one")
            given["max_tokens"] = alias
        off = {name: value for name, value in _OFF.items() if name in given and given[name] is None}
        checked = {name: _CHECKS[name](name, value) for name, value in given.items() if name not in off}
        return cls(**{**checked, **off})

    def check_ids(self, vocab_size: int) -> None:
        """Raise a ValueError unless the ids of `logit_bias` are in the vocabulary."""
        for i, _ in self.logit_bias:
            if not 0 <= i < vocab_size:
                raise ArgumentError("logit_bias", f"has the id {i}, but ids are from 0 to {vocab_size - 1}")

    def fresh_seed(self) -> int:
        """The given seed, or one from the system's entropy."""
        return secrets.randbits(64) if self.seed is None else self.seed

    def sampler(self, tok: Tokenizer, vocab_size: int, banned_ids: NDArray[np.int32], seed: int) -> _core.Sampler:
        """A sampler of the core for one text.

        Args:
            tok: the tokenizer, for what "auto" means and for the breakers of repetitions.
            vocab_size: the ids of the model.
            banned_ids: ids that are never drawn.
            seed: of this text.
        """
        singles, sequences = _breakers(tok, self.dry_sequence_breakers if self.dry_multiplier else ())
        penalty = self.repetition_penalty
        return _core.Sampler(
            vocab_size=vocab_size,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=auto_penalty(tok) if penalty == "auto" else penalty,
            seed=seed,
            banned_ids=banned_ids,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            dry_multiplier=self.dry_multiplier,
            dry_base=self.dry_base,
            dry_allowed_length=self.dry_allowed_length,
            dry_breakers=singles,
            dry_breaker_sequences=sequences,
            logit_bias=self.logit_bias,
        )


DEFAULTS = Sampling()


def is_rounded(weights: str) -> bool:
    """Whether a form of weights differs from those of the model."""
    return weights in ("bfloat16", "int8")


def kv_cache_of(weights: str, kv_cache: str) -> str:
    """How keys and values are kept: "auto" rounds them where the weights are rounded."""
    choice("weights", weights, WEIGHTS)
    if choice("kv_cache", kv_cache, KV_CACHE) != "auto":
        return kv_cache
    return "bfloat16" if is_rounded(weights) else "float32"


def _breakers(tok: Tokenizer, texts: tuple[str, ...]) -> tuple[NDArray[np.int32], list[list[int]]]:
    """The tokens that have one of the texts in them, and the ids of those texts that are several tokens."""
    singles, sequences = [np.empty(0, np.int32)], []
    for text in texts:
        singles.append(tok._token_table().containing(text.encode(errors="surrogatepass")))
        with contextlib.suppress(ValueError):  # a text that the vocabulary cannot encode occurs nowhere
            sequences.append(tok.encode(text))
    return np.concatenate(singles), [ids for ids in sequences if len(ids) > 1]


def _penalty(name: str, value: Any) -> float | Literal["auto"]:
    return "auto" if value == "auto" else number(name, value, **PENALTY)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ArgumentTypeError(name, f"must be a text or a list of texts, got {value!r:.80}")
    strings = (value,) if isinstance(value, str) else tuple(value)
    for string in strings:
        if not isinstance(string, str):
            raise ArgumentTypeError(name, f"must be a text or a list of texts, got {string!r:.80} in it")
        if not string:
            raise ArgumentError(name, "must not hold an empty text")
    return strings


def _biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise ArgumentTypeError(name, f"must be a dict of ids and numbers such as {{13: -100.0}}, got {value!r:.80}")
    for i in value:
        if not hasattr(i, "__index__") or isinstance(i, bool):
            raise ArgumentTypeError(name, f"must have integers as ids, got {i!r:.80}")
    return tuple((operator.index(i), _bias(f"{name}[{i}]", bias)) for i, bias in value.items())


def _bias(name: str, value: Any) -> float:
    return value if value == -np.inf else number(name, value, least=-_MOST_BIAS, most=_MOST_BIAS)


_MOST_BIAS = 1e30  # what is left of single precision holds any sum
_COUNT: Callable[[str, Any], int] = partial(integer, least=0, most=_MOST)
_OPENAI = partial(number, least=-2, most=2)  # the range of OpenAI's interface
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_tokens": lambda name, value: int(_COUNT(name, value)),
    "temperature": partial(number, least=0),
    "top_k": _COUNT,
    "top_p": partial(number, above=0, most=1),
    "repetition_penalty": _penalty,
    "seed": partial(integer, least=0, most=(1 << 64) - 1),
    "stop": _texts,
    "min_p": partial(number, least=0, most=1),
    "no_repeat_ngram_size": _COUNT,
    "presence_penalty": _OPENAI,
    "frequency_penalty": _OPENAI,
    "dry_multiplier": partial(number, least=0, most=_MOST_BIAS),
    "dry_base": partial(number, least=1, most=_MOST_BIAS),
    "dry_allowed_length": partial(integer, least=1, most=_MOST),
    "dry_sequence_breakers": _texts,
    "logit_bias": _biases,
    "heal_prompt": flag,
}
# What None means.
_OFF: dict[str, Any] = {
    "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": None, "stop": (), "min_p": 0.0,
    "no_repeat_ngram_size": 0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "dry_multiplier": 0.0,
    "dry_sequence_breakers": (), "logit_bias": (),
}  # fmt: skip
