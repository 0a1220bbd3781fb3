"""Results for people and for machines, and the folder they go into."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from soma_native import _checks
from soma_native.files.atomic_folder import replace_files
from soma_native.files.held_folder import hold_folder


@contextlib.contextmanager
def output_folder(out: str) -> Iterator[Path]:
    """Make the folder, see that files can be made in it before any work is done for it, and hold it meanwhile.

    Raises:
        CheckpointError: they cannot, or another run works in it.
    """
    folder = _checks.path("out", out, "folder")
    with hold_folder(folder):
        with replace_files(folder):
            pass
        yield folder


def print_json(document: Any) -> None:
    """Print a result for machines."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: drawn in a terminal (unless NO_COLOR asks for none of that), plain columns elsewhere."""
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
