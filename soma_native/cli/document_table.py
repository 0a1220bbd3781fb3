"""The table of `soma-native evaluate --per-document`: the measures of each document, on screen and as a file."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native.cli.errors import CommandError
from soma_native.cli.output import print_table
from soma_native.data.documents import Split, read_documents
from soma_native.data.token_store import TokenStore
from soma_native.files.atomic_file import write_file
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.evaluate import document_bytes

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FIELDS = ("document", "loss", "bits_per_byte", "pairs", "bytes")


def table_file(argument: str) -> Path:
    """An argparse type: the path of a .csv or .tsv file."""
    if Path(argument).suffix not in _DELIMITERS:
        raise argparse.ArgumentTypeError(f"must end in .csv or .tsv, got {argument!r}")
    return Path(argument)


def check_table(path: Path | None) -> None:
    """Raise a CommandError, before any work, if this file cannot be written."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise CommandError(f"{path}: is a folder" if path.is_dir() else f"{path.parent}: no such folder")


def named_documents(files: Sequence[Path], split: Split) -> Iterator[tuple[str, str]]:
    """The documents of the files with their names: the file, and the number in it where it has several."""
    for file in files:
        for number, text in enumerate(read_documents(file, split), 1):
            yield str(file) if split == "file" else f"{file}:{number}", text


def measure_documents(
    documents: Iterable[tuple[str, str]], store: TokenStore, tok: Tokenizer, losses: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The measures of each document. `store` leaves out those of fewer than two tokens; `losses` are of its documents.

    Their fields: document (its name), loss (nats per token), bits_per_byte, pairs, bytes.
    """
    sizes, rows, number = document_bytes(store, tok), [], 0
    for name, text in documents:
        pairs = max(0, len(tok.encode_array(text)) - 1)
        size = len(text.encode()) if sizes is None else int(sizes[number]) if pairs else 0
        nats = float(losses[number]) if pairs else None
        number += pairs > 0
        bits = None if nats is None or sizes is None or not size else nats / math.log(2) / size
        values = (name, None if nats is None else nats / pairs, bits, pairs, size)
        rows.append(dict(zip(_FIELDS, values, strict=True)))
    return rows


def print_documents(rows: Iterable[dict[str, Any]]) -> None:
    """Print the measures of each document."""
    cells = [
        [row["document"], *("-" if row[name] is None else f"{row[name]:.4f}" for name in _FIELDS[1:3])]
        + [f"{row[name]:,}" for name in _FIELDS[3:]]
        for row in rows
    ]
    print_table("", ("document", "loss", "bits per byte", "pairs", "bytes"), cells)


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the measures of each document, at once or not at all; what is not known is empty.

    Raises:
        CommandError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _FIELDS, delimiter=_DELIMITERS[path.suffix], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_file(path, text.getvalue())
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
