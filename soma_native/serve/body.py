"""Reads the JSON body of a request within its limits, and takes it apart field by field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from soma_native._checks import string
from soma_native.errors import ArgumentTypeError
from soma_native.files.untrusted import is_shallow
from soma_native.serve.errors import ApiError
from soma_native.serve.limits import Limits

_MOST_DIGITS = 400  # of an integer; the largest double has 309


async def read_body(request: Request, limits: Limits) -> Fields:
    """The JSON object that a client sends.

    Raises:
        ApiError: the body is too large (413), too slow (408), or no JSON object (400).
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limits.body_bytes:
        raise _too_large(limits)
    try:
        data = await asyncio.wait_for(_bytes_of(request, limits), limits.body_seconds)
    except asyncio.TimeoutError:  # of Python 3.10 it is no TimeoutError
        problem = f"the request did not arrive within {limits.body_seconds:g} seconds: send it faster"
        raise ApiError(408, problem, headers={"Connection": "close"}) from None
    return Fields(parse(data), len(data))


async def _bytes_of(request: Request, limits: Limits) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.body_bytes:
            raise _too_large(limits)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body of the request has more than the {limits.body_bytes} bytes that are read")


def parse(data: bytes) -> dict[str, Any]:
    """Parse a body as strict JSON: UTF-8, no NaN, no repeated keys, few levels, an object.

    Raises:
        ApiError: it is not such JSON (400).
    """

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice in an object")
        return found

    def whole(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise ValueError(f"a number has {len(digits)} digits")
        return int(digits)

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    if not data.strip():
        raise ApiError(400, "the request has no body: send a JSON object")
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=no_repeats, parse_int=whole, parse_constant=no_constant
        )
    except RecursionError:
        raise ApiError(400, "the JSON of the request is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body of the request is not UTF-8: byte {error.start} is wrong") from None
    except ValueError as error:
        raise ApiError(400, f"the body of the request is not valid JSON: {error}") from None
    if not is_shallow(document):
        raise ApiError(400, "the JSON of the request is nested too deeply")
    if not isinstance(document, dict):
        raise ApiError(400, f"the JSON of the request must be an object, not {json.dumps(document)[:60]}")
    return document


class Fields:
    """The fields of a request. Each is taken by name; `close` refuses those that nobody took. Null means not given."""

    def __init__(self, document: Mapping[str, Any], size: int = 0) -> None:
        self.size = size  # bytes of JSON
        self._left = {name: value for name, value in document.items() if value is not None}
        self._known: list[str] = []

    def take(self, name: str, check: Callable[[str, Any], Any], default: Any = None) -> Any:
        """The field's value as `check(name, value)` returns it, or `default` where it is not given."""
        self._known.append(name)
        return check(name, self._left.pop(name)) if name in self._left else default

    def first(self, names: Iterable[str], check: Callable[[str, Any], Any]) -> Any:
        """The value of a field that has several names. Raises an ApiError if it is missing, or given twice."""
        names = tuple(names)
        given = [name for name in names if name in self._left]
        values = [self.take(name, check) for name in names]
        if len(given) > 1:
            raise ApiError(400, f"{given[0]} and {given[1]} mean the same: give one", param=given[1])
        if not given:
            raise ApiError(400, f"the field {names[0]} is missing", param=names[0])
        return next(value for value in values if value is not None)

    def peek(self, name: str, default: Any = None) -> Any:
        """The value of a field, unchecked and not taken."""
        return self._left.get(name, default)

    def some(self, names: Iterable[str]) -> dict[str, Any]:
        """The values of those of these fields that are given, unchecked."""
        names = tuple(names)
        self._known += names
        return {name: self._left.pop(name) for name in names if name in self._left}

    def ignore(self, *names: str) -> None:
        """Accept these fields without effect."""
        for name in names:
            self._left.pop(name, None)

    def refuse(self, reasons: Mapping[str, str], harmless: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse fields of the API that would change the answer and that this server does not have.

        Args:
            reasons: what to do instead, by field.
            harmless: values of these fields that change nothing.
        """
        for name, reason in reasons.items():
            if name in self._left and self._left.pop(name) not in harmless.get(name, ()):
                raise ApiError(400, f"{name} is not supported: {reason}", param=name, code="unsupported_parameter")

    def close(self) -> None:
        """Raise an ApiError if a field is left: a name that nobody knows."""
        for name in self._left:
            known = ", ".join(sorted(set(self._known)))
            raise ApiError(
                400, f"there is no field {name!r:.80}; there are {known}", param=name[:80], code="unknown_parameter"
            )


def text(name: str, value: Any) -> str:
    """`value`, which must be a text without lone surrogates."""
    found = string(name, value)
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(name, "has half of a surrogate pair, which is no character") from None
    return found
