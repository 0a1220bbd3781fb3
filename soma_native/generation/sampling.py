"""The settings of a call of the generator, checked before any work is done."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from soma_native._checks import integer, number
from soma_native.checkpoint.hf_config import SAMPLING
from soma_native.errors import ArgumentError, ArgumentTypeError

WEIGHTS = ("auto", "float32", "bfloat16", "int8")


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
        """Check the arguments of a user. `unknown` holds the keywords that are no parameter's name.

        Raises:
            TypeError: an unknown keyword, two different numbers of tokens, or a value of the wrong type.
            ValueError: a value outside its range.
        """
        for name in unknown:
            allowed = "max_tokens (or max_new_tokens), temperature, top_k, top_p, repetition_penalty, seed and stop"
            raise TypeError(f"there is no argument {name!r}: {_HINTS.get(name, f'allowed are {allowed}')}")
        if max_new_tokens is not None:
            alias = integer("max_new_tokens", max_new_tokens, 0, _MOST)
            if max_tokens is not DEFAULTS.max_tokens and integer("max_tokens", max_tokens, 0, _MOST) != alias:
                raise ArgumentTypeError("max_tokens", f"is {max_tokens} and its alias max_new_tokens {alias}: give one")
            max_tokens = alias
        return cls(
            max_tokens=int(integer("max_tokens", max_tokens, 0, _MOST)),
            temperature=number("temperature", temperature, least=0),
            top_k=0 if top_k is None else integer("top_k", top_k, 0, _MOST),
            top_p=1.0 if top_p is None else number("top_p", top_p, above=0, most=1),
            repetition_penalty=_penalty(repetition_penalty),
            seed=None if seed is None else integer("seed", seed, 0, (1 << 64) - 1),
            stop=_stop_strings(stop),
        )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Sampling:
        """The same for keywords of a user. One that is not there has its default."""
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: options.get(name, getattr(DEFAULTS, name)) for name in names}
        unknown = {name: value for name, value in options.items() if name not in (*names, "max_new_tokens")}
        return cls.of(**given, max_new_tokens=options.get("max_new_tokens"), unknown=unknown)

    def fresh_seed(self) -> int:
        """The given seed, or one from the system's entropy."""
        return secrets.randbits(64) if self.seed is None else self.seed


DEFAULTS = Sampling()


def _penalty(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    return 1.0 if value is None else number("repetition_penalty", value, **PENALTY)


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    if not isinstance(stop, str) and not isinstance(stop, Iterable):
        raise ArgumentTypeError("stop", f"must be a text or a list of texts, got {stop!r:.80}")
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str):
            raise ArgumentTypeError("stop", f"must be a text or a list of texts, got {string!r:.80} in it")
        if not string:
            raise ArgumentError("stop", "must not hold an empty text")
    return strings
