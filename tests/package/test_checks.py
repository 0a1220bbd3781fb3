"""Checks of arguments: the values they return, and errors that keep the argument and the problem apart."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soma_native import _checks
from soma_native.errors import ArgumentError, ArgumentTypeError


@pytest.mark.parametrize(
    ("found", "want"),
    [
        (_checks.integer("n", np.int64(3), 1, 5), 3),
        (_checks.integer("n", -(10**30)), -(10**30)),
        (_checks.number("x", 2, above=0), 2.0),
        (_checks.number("x", np.float32(0.5), least=0.5, most=0.5), 0.5),
        (_checks.pair("p", [0, 0.5], least=0, below=1), (0.0, 0.5)),
        (_checks.choice("c", "a", ["a", "b"]), "a"),
        (_checks.flag("f", False), False),
        (_checks.string("s", "a"), "a"),
        (_checks.strings("s", ("a", "b"), "one"), ["a", "b"]),
        (_checks.path("p", "a/b"), Path("a/b")),
    ],
)
def test_what_is_allowed_comes_back_as_the_library_keeps_it(found: Any, want: Any) -> None:
    assert found == want and type(found) is type(want)


@pytest.mark.parametrize(
    ("check", "arguments", "limits", "problem"),
    [
        (_checks.integer, (0, 1), {}, "must be at least 1, got 0"),
        (_checks.integer, (6, 1, 5), {}, "must be from 1 to 5, got 6"),
        (_checks.integer, (6, None, 5), {}, "must be at most 5, got 6"),
        (_checks.integer, (1 << 200, 1, 5), {}, "must be from 1 to 5, got an integer of 201 bits"),
        (_checks.number, (0,), {"above": 0}, "must be above 0, got 0"),
        (_checks.number, (1,), {"least": 0, "below": 1}, "must be at least 0 and below 1, got 1"),
        (_checks.number, (2.5,), {"above": 0, "most": 1}, "must be above 0 and at most 1, got 2.5"),
        (_checks.number, (math.nan,), {}, "must be finite, got nan"),
        (_checks.number, (10**400,), {}, None),
        (_checks.pair, ((0.5, 1.0),), {"below": 1}, None),
        (_checks.choice, ("c", ("a", "b")), {}, "must be one of a, b, got 'c'"),
        (_checks.choice, (None, ("a", "b")), {}, "must be one of a, b, got None"),
        (_checks.choice, ("c", ("a",)), {}, "must be a, got 'c'"),
    ],
)
def test_what_is_out_of_range(
    check: Any, arguments: tuple[Any, ...], limits: dict[str, Any], problem: str | None
) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
        check("name", *arguments, **limits)
    assert caught.value.argument.startswith("name") and problem in (None, caught.value.problem)
    assert str(caught.value) == f"{caught.value.argument} {caught.value.problem}"


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (_checks.integer, True), (_checks.integer, 2.0), (_checks.integer, "2"), (_checks.integer, None),
        (_checks.number, True), (_checks.number, "2"), (_checks.number, b"2"), (_checks.number, None),
        (_checks.pair, 0.5), (_checks.pair, (1, 2, 3)), (_checks.flag, 1), (_checks.flag, None), (_checks.path, 5),
    ],
)  # fmt: skip
def test_what_is_of_another_type(check: Any, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        check("name", value)
    assert isinstance(caught.value, ArgumentTypeError) and caught.value.argument == "name"
    assert repr(value) in caught.value.problem


def test_the_errors_cross_a_process_boundary() -> None:
    for error in (ArgumentError("lr", "must be above 0"), ArgumentTypeError("lr", "must be a number")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.argument, again.problem, str(again)) == (
            type(error), error.argument, error.problem, str(error),
        )  # fmt: skip
