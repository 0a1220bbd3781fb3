"""Output of the command: tables and JSON, the standard streams, and the output folder."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from soma_native import _checks
from soma_native.files.atomic_folder import replace_files
from soma_native.files.held_folder import hold_folder


@contextlib.contextmanager
def output_folder(out: str) -> Iterator[Path]:
    """Make the folder, check before any work that files can be written into it, and hold it in this block.

    Raises:
        CheckpointError: files cannot be written, or another run works in the folder.
    """
    folder = _checks.path("out", out, "folder")
    with hold_folder(folder):
        with replace_files(folder):
            pass
        yield folder


class Stream:
    """A standard stream of the command. A message that cannot be written is dropped; for a result it is an error.

    Attributes:
        failed: the error of a result that could not be written, also if the error was caught.
    """

    def __init__(self, stream: TextIO | None, *, messages: bool) -> None:
        self._stream = stream
        self._messages = messages
        self.failed: OSError | None = None

    def write(self, text: str) -> int:
        """Write text."""
        self._do("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._do("flush")

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def _do(self, what: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, what)(*arguments)
        except OSError as error:
            if not self._messages:
                self.failed = error
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def usable_streams() -> Iterator[Stream]:
    """In this block both standard streams accept any text, also if they are closed. Yields standard output."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):  # messages name files
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]
    results, messages = Stream(sys.stdout, messages=False), Stream(sys.stderr, messages=True)
    with contextlib.redirect_stdout(cast(TextIO, results)), contextlib.redirect_stderr(cast(TextIO, messages)):
        yield results


def drop_output() -> None:
    """Discard the rest of standard output. Else Python would print another error when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: Any) -> None:
    """Print a result as JSON. If standard output cannot encode a character, all non-ASCII ones are escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    print(text)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: with lines and colours in a terminal, unless NO_COLOR is set; else in plain columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        from rich.console import Console
        from rich.table import Table

        table = Table(*columns, title=title or None, title_justify="left", highlight=False)
        for row in cells:
            table.add_row(*row)
        Console(markup=False).print(table)
        return
    if title:
        print(title)
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [list(columns), ["-" * width for width in widths], *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
