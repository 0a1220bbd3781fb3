"""Files that anyone may have written: only ordinary ones are opened, and JSON is parsed strictly."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CheckpointError

__all__ = ["open_regular", "parse_json"]


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


def parse_json(data: bytes, path: Path) -> Any:
    """Parse `data`, read from `path`, as strict JSON: UTF-8, no NaN, no repeated keys, no endless nesting.

    Raises:
        CheckpointError: naming `path`.
    """

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {repeated!r} appears twice")
        return found

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except RecursionError:
        raise CheckpointError("is not usable JSON: nested too deeply", path=path) from None
    except ValueError as error:  # invalid JSON or UTF-8, integers of thousands of digits, and the two above
        raise CheckpointError(f"is not valid JSON: {error}", path=path) from None
