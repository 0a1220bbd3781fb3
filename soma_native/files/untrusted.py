"""Reads files of unknown origin: only ordinary files are opened, and JSON is parsed strictly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from soma_native.errors import CheckpointError

_MAX_VALUES = 1 << 23  # of a JSON text; each takes up to a hundred bytes of memory

PICKLE = (
    "is a pickle, which can run any code when it is opened, so it is never read. Where you trust it, convert it with "
    "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
)
_PACKED = "is packed ({}): unpack it first"
# Beginnings of files that stand in the place of the right file by mistake, and the problem to report.
_IMPOSTORS = tuple(
    (re.compile(beginning, re.DOTALL | re.IGNORECASE), problem)
    for beginning, problem in (
        (rb"version https?://\S+/spec/",
         "is a git-lfs pointer, not the file that it stands for: run git lfs pull there"),
        (rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--)",
         "is a web page, not the file: download it again, from the link that gives the file itself"),
        (rb"PK\x03\x04.{,200}data\.pkl|\x80[\x02-\x05]\S", PICKLE),
        (rb"PK\x03\x04", _PACKED.format("zip")),
        (rb"\x1f\x8b\x08", _PACKED.format("gzip")),
        (rb"\xfd7zXZ\x00", _PACKED.format("xz")),
        (rb"BZh[1-9]1AY&SY", _PACKED.format("bzip2")),
        (rb"\x28\xb5\x2f\xfd", _PACKED.format("zstd")),
        (rb".{257}ustar", _PACKED.format("tar")),
    )
)  # fmt: skip


class Problem(Exception):
    """A problem of a file. The message continues a sentence that begins with the file's name."""


def same(one: object, other: object) -> bool:
    """Whether two values of JSON are equal. In JSON false is not 0; in Python it is."""
    return type(one) is type(other) and one == other


def short(value: object) -> str:
    """The value for a message: in ASCII, which prints anywhere, and at most 120 characters."""
    text = ascii(value[:120] if isinstance(value, (str, bytes, list)) else value)
    return text if len(text) <= 120 else text[:117] + "..."


def is_shallow(value: object, levels: int = 32) -> bool:
    """Whether a value of JSON is nested in at most `levels` levels, so that it can be written again."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(is_shallow(one, levels - 1) for one in inside)


def open_regular(path: Path, *, pickles: bool = False) -> BinaryIO:
    """Open an ordinary file for reading. Links are followed. Pipes and devices are refused without waiting.

    Args:
        path: the file.
        pickles: whether it may be a pickle.

    Raises:
        CheckpointError: the path is missing, a folder, a pipe, a device, a broken link or not readable; or the file is
            a known mistake of a download or copy (a web page, an archive, a git-lfs pointer). Names `path`.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError("is a folder where a file is expected", path=path)
        if not stat.S_ISREG(mode):
            raise CheckpointError("is not an ordinary file (a pipe, socket or device)", path=path)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "rb"))
            beginning = file.peek(512)[:512]
            # A tensor file begins with eight arbitrary bytes, the length of its header. The header begins with a brace.
            for pattern, problem in _IMPOSTORS if beginning[8:9] != b"{" else ():
                if pattern.match(beginning) and not (pickles and problem is PICKLE):
                    raise CheckpointError(problem, path=path)
            stack.pop_all()
            return file
    except FileNotFoundError:
        problem = "is a link to a file that does not exist" if os.path.islink(path) else "is missing"
        raise CheckpointError(problem, path=path) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", path=path) from error


def read_regular(path: Path, limit: int) -> bytes:
    """All bytes of an ordinary file of at most `limit`.

    Raises:
        CheckpointError: as `open_regular`, or the file is larger. Names `path`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(f"has {size} bytes, more than the {limit} that are read", path=path)
        return file.read(size)


def parse_json(data: bytes, path: Path) -> Any:
    """Parse `data`, read from `path`, as strict JSON: UTF-8, no NaN, no repeated keys, limited depth and length.

    Raises:
        CheckpointError: `data` is not such JSON. Names `path`.
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

    if not data.strip():
        raise CheckpointError("is empty, so it is not valid JSON: download or save it again", path=path)
    if sum(map(data.count, b",[{")) > _MAX_VALUES:
        raise CheckpointError(f"has more than {_MAX_VALUES} values, the most that are read", path=path)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except RecursionError:
        raise CheckpointError("is not usable JSON: nested too deeply", path=path) from None
    except ValueError as error:  # invalid JSON or UTF-8, an integer of thousands of digits, a repeated key, NaN
        begins = "" if data[:1] in b"{[" else f" (it begins with {short(data[:40].decode('utf-8', 'replace'))})"
        raise CheckpointError(f"is not valid JSON: {error}{begins}", path=path) from None
