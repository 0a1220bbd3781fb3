"""The settings of a generation, checked in one place before any work is done."""

from __future__ import annotations

import dataclasses
import math
import operator
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from soma_native.checkpoint.hf_config import SAMPLING

__all__ = ["DEFAULTS", "WEIGHTS", "Sampling", "is_penalty"]

WEIGHTS = ("auto", "float32", "bfloat16", "int8")


class _Default(int):
    """A number that its identity tells from the same number given, so that a default and an alias can live together."""


_MAX_TOKENS = 1 << 31
_HINTS = {
    "max_length": "give max_tokens, the number of tokens to add after the prompt",
    "num_beams": "there is no beam search",
    "do_sample": "give temperature=0 for greedy decoding",
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What `Generator.generate` was asked for, with every alias resolved and every value in its range."""

    max_tokens: int = _Default(SAMPLING["max_new_tokens"])
    temperature: float = SAMPLING["temperature"]
    top_k: int = SAMPLING["top_k"]
    top_p: float = SAMPLING["top_p"]
    repetition_penalty: float = SAMPLING["repetition_penalty"]
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        max_tokens: Any,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        repetition_penalty: Any,
        seed: Any,
        stop: Any,
        max_new_tokens: Any,
        unknown: Mapping[str, Any],
    ) -> Sampling:
        """Check the arguments as a user gave them; `unknown` holds the keywords that are no parameter's name.

        Raises:
            TypeError: an unknown keyword, two different numbers of tokens, or a value of the wrong type.
            ValueError: a value outside its range.
        """
        for name in unknown:
            allowed = "max_tokens (or max_new_tokens), temperature, top_k, top_p, repetition_penalty, seed and stop"
            raise TypeError(f"there is no argument {name!r}: {_HINTS.get(name, f'allowed are {allowed}')}")
        if max_new_tokens is not None:
            alias = _integer("max_new_tokens", max_new_tokens, 0, _MAX_TOKENS)
            if max_tokens is not DEFAULTS.max_tokens and _integer("max_tokens", max_tokens, 0, _MAX_TOKENS) != alias:
                raise TypeError(
                    f"max_tokens={max_tokens} and its alias max_new_tokens={alias} differ: give one of them"
                )
            max_tokens = alias
        return cls(
            max_tokens=int(_integer("max_tokens", max_tokens, 0, _MAX_TOKENS)),
            temperature=_number("temperature", temperature, "at least 0 (0 is greedy)", lambda x: x >= 0),
            top_k=0 if top_k is None else _integer("top_k", top_k, 0, _MAX_TOKENS),
            top_p=1.0 if top_p is None else _number("top_p", top_p, "above 0 and at most 1", lambda x: 0 < x <= 1),
            repetition_penalty=1.0
            if repetition_penalty is None
            else _number("repetition_penalty", repetition_penalty, "from 1e-37 to 1e38 (1 is off)", is_penalty),
            seed=None if seed is None else _integer("seed", seed, 0, 1 << 64),
            stop=_stop_strings(stop),
        )

    def fresh_seed(self) -> int:
        """The given seed, or one from the system's entropy."""
        return secrets.randbits(64) if self.seed is None else self.seed


DEFAULTS = Sampling()


def is_penalty(value: float) -> bool:
    """Whether the core, in single precision, can multiply and divide by this repetition penalty."""
    return 1e-37 <= value <= 1e38


def _integer(name: str, value: Any, least: int, below: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r:.80}: must be a whole number") from None
    if not least <= integer < below:
        raise ValueError(f"{name}={integer}: must be at least {least} and below {below}")
    return integer


def _number(name: str, value: Any, allowed: str, test: Any) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}={value!r:.80}: must be a number")
    number = float(value)
    if not math.isfinite(number) or not test(number):
        raise ValueError(f"{name}={number:g}: must be {allowed if math.isfinite(number) else 'finite'}")
    return number


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    if not isinstance(stop, str) and not isinstance(stop, Iterable):
        raise TypeError(f"stop={stop!r:.80}: must be a text or a list of texts")
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str):
            raise TypeError(f"stop: {string!r:.80} is not a text")
        if not string:
            raise ValueError("stop: a stop string must not be empty")
    return strings
