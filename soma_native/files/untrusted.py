"""Files that anyone may have written: only ordinary ones are opened, and JSON is parsed strictly."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from soma_native.errors import CheckpointError

_MAX_VALUES = 1 << 23  # in a JSON text: what it becomes in memory is up to a hundred bytes a value


class Problem(Exception):
    """What is wrong with a file, in words that read well after its name."""


def same(one: object, other: object) -> bool:
    """Whether two values of JSON are equal: false is not 0, although Python takes it so."""
    return type(one) is type(other) and one == other


def short(value: object) -> str:
    """The value for a message: ASCII, so that it can be printed anywhere, and not long."""
    text = ascii(value[:120] if isinstance(value, (str, bytes, list)) else value)
    return text if len(text) <= 120 else text[:117] + "..."


def open_regular(path: Path) -> BinaryIO:
    """Open an ordinary file for reading; links are followed, and what is no ordinary file is refused, never waited for.

    Raises:
        CheckpointError: naming `path`: missing, a folder, a pipe or device, a broken link, not readable.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError("is a folder where a file is expected", path=path)
        if not stat.S_ISREG(mode):
            raise CheckpointError("is not an ordinary file (a pipe, socket or device)", path=path)
        return open(path, "rb")
    except FileNotFoundError:
        problem = "is a link to a file that does not exist" if os.path.islink(path) else "is missing"
        raise CheckpointError(problem, path=path) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", path=path) from error


def read_regular(path: Path, limit: int) -> bytes:
    """All bytes of an ordinary file of at most `limit`.

    Raises:
        CheckpointError: naming `path`: as `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(f"has {size} bytes, more than the {limit} that are read", path=path)
        return file.read(size)


def parse_json(data: bytes, path: Path) -> Any:
    """Parse `data`, read from `path`, as strict JSON: UTF-8, no NaN, no repeated keys, no endless nesting or length.

    Raises:
        CheckpointError: naming `path`.
    """

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {short(repeated)} appears twice")
        return found

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    if sum(map(data.count, b",[{")) > _MAX_VALUES:
        raise CheckpointError(f"has more than {_MAX_VALUES} values, the most that are read", path=path)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except RecursionError:
        raise CheckpointError("is not usable JSON: nested too deeply", path=path) from None
    except ValueError as error:  # invalid JSON or UTF-8, integers of thousands of digits, and the two above
        raise CheckpointError(f"is not valid JSON: {error}", path=path) from None
