"""The argument CORPUS...: the files it names, and standard input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from soma_native.cli.errors import CommandError
from soma_native.data.documents import SPLITS

SUFFIXES = (".txt", ".md")


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """The arguments CORPUS... and --split."""
    parser.add_argument(
        "corpus",
        metavar="CORPUS",
        nargs="+",
        help=f"UTF-8 text files, or folders searched for {' and '.join('*' + s for s in SUFFIXES)} files",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="file",
        help="what a document is: a whole file, each line, or each stretch between blank lines (default: file)",
    )


def corpus_files(paths: Sequence[str]) -> list[Path]:
    """The files that CORPUS... names: files as given, folders as their text files in sorted order, nothing twice.

    Raises:
        CommandError: a path does not exist, or a folder holds no text file.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = sorted(
                Path(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if name.lower().endswith(SUFFIXES) and Path(folder, name).is_file()
            )
            if not inside:
                raise CommandError(f"{given}: no {' or '.join(SUFFIXES)} file in this folder")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise CommandError(f"{given}: no such file or folder")
    return list(found)


def check_not_empty(files: Sequence[Path]) -> None:
    """See that there is a byte in the files of CORPUS...

    Raises:
        CommandError: there is none; it names the first.
    """
    if not any(file.stat().st_size or not file.is_file() for file in files):
        more = f", like the other {len(files) - 1}" if len(files) > 1 else ""
        raise CommandError(f"{files[0]}: is empty{more}")


def named(files: Sequence[Path | str]) -> str:
    """The files of CORPUS... in a message."""
    return f"{files[0]}{' and the other files' if len(files) > 1 else ''}"


def read_stdin() -> str:
    """All of standard input; a byte order mark at its start is no part of it.

    Raises:
        CommandError: it is not UTF-8.
    """
    if sys.stdin is None:
        raise CommandError("standard input is closed")
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # replaced by a program that calls the command
        return sys.stdin.read().removeprefix("\ufeff")
    data = stream.read()
    try:
        return str(data, "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"standard input is not UTF-8 at byte {error.start} (0x{data[error.start]:02x}): convert it first, for "
            "instance with iconv"
        ) from None
