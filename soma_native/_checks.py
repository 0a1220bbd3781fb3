"""Checks of arguments. Each returns the value in the library's type, or raises an error that names the argument."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from soma_native.errors import ArgumentError, ArgumentTypeError

# The core computes in single precision: its smallest normal number and its largest.
FLOAT32_LEAST, FLOAT32_MAX = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


def integer(argument: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`, where these are given.

    Raises:
        ArgumentTypeError: it is no integer; True and 2.0 are not integers.
        ArgumentError: it is out of range.
    """
    try:
        found = operator.index("" if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:  # also for an array of several numbers, which has __index__ too
        raise ArgumentTypeError(argument, f"must be an integer, got {value!r:.80}") from None
    if (least is not None and found < least) or (most is not None and found > most):
        limits = f"at least {least}" if most is None else f"at most {most}"
        limits = limits if least is None or most is None else f"from {least} to {most}"
        shown = found if abs(found) < 10**40 else f"an integer of {found.bit_length()} bits"
        raise ArgumentError(argument, f"must be {limits}, got {shown}")
    return found


def number(
    argument: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a finite float within these limits.

    Raises:
        ArgumentTypeError: it is no number; True and "1" are not numbers.
        ArgumentError: it is not finite, or out of range.
    """
    if isinstance(value, (bool, str, bytes)) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise ArgumentTypeError(argument, f"must be a number, got {value!r:.80}")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentTypeError(argument, f"must be a number, got {value!r:.80}: {error}") from None
    if not math.isfinite(found):
        raise ArgumentError(argument, f"must be finite, got {found}")
    limits = [
        (f"at least {least}", least is None or found >= least),
        (f"above {above}", above is None or found > above),
    ]
    limits += [(f"at most {most}", most is None or found <= most), (f"below {below}", below is None or found < below)]
    if not all(holds for _, holds in limits):
        said = " and ".join(text for text, _ in limits if not text.endswith("None"))
        said = said if least is None or most is None else f"from {least} to {most}"
        raise ArgumentError(argument, f"must be {said}, got {shown(found)}")
    return found


def shown(value: float) -> str:
    """A number as a message prints it: the shortest digits that give the same float, without ".0"."""
    return repr(float(value)).removesuffix(".0")


def pair(argument: str, value: Any, **limits: float) -> tuple[float, float]:
    """`value`, which must be a pair of numbers within these limits, as two floats. Raises as `number` does."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ArgumentTypeError(argument, f"must be a pair of numbers such as (0.9, 0.95), got {value!r:.80}")
    return number(f"{argument}[0]", value[0], **limits), number(f"{argument}[1]", value[1], **limits)


def choice(argument: str, value: Any, allowed: Iterable[str], where: str = "") -> str:
    """`value`, which must be one of the strings `allowed`. Else raises an ArgumentError with these and `where`."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        one_of = "one of " if len(allowed) > 1 else ""
        raise ArgumentError(argument, f"must be {one_of}{', '.join(allowed)}{where}, got {value!r:.80}")
    return value


def string(argument: str, value: Any) -> str:
    """`value`, which must be a str. Else raises an ArgumentTypeError."""
    if not isinstance(value, str):
        raise ArgumentTypeError(argument, f"must be a text, got {value!r:.80}")
    return value


def strings(argument: str, value: Any, single: str) -> list[str]:
    """`value` as a list, whose items must be str. `single` is the function for one text. Raises as `string` does."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ArgumentTypeError(argument, f"must be a list of texts; for one text there is {single}")
    return [string(f"{argument}[{i}]", item) for i, item in enumerate(value)]


def flag(argument: str, value: Any) -> bool:
    """`value`, which must be True or False. Else raises an ArgumentTypeError."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(argument, f"must be True or False, got {value!r:.80}")
    return value


def path(argument: str, value: Any, what: str = "file") -> Path:
    """`value` as a path. Raises an ArgumentTypeError if it is none, an ArgumentError if it is blank."""
    if not isinstance(value, (str, os.PathLike)):
        raise ArgumentTypeError(argument, f"must be the path of a {what}, a str or an os.PathLike, got {value!r:.80}")
    text = os.fspath(value)
    if not text.strip():  # Path("") is the working folder
        found = f"white space alone: {text!r:.80}" if text else "an empty text"
        raise ArgumentError(argument, f"must name a {what}, got {found}; the working folder is '.'")
    return Path(value)


def instance(argument: str, value: Any, kind: type) -> None:
    """Raise an ArgumentTypeError unless `value` is an instance of `kind`, a public class of soma_native."""
    if not isinstance(value, kind):
        raise ArgumentTypeError(argument, f"must be a soma_native.{kind.__name__}, got {type(value).__name__}")
