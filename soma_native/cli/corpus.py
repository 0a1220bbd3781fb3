"""The argument CORPUS... and its files; reads standard input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from soma_native.cli.errors import PROGRAM, CommandError
from soma_native.data.documents import SPLITS
from soma_native.files.file_kinds import HEAD_BYTES, encoding_problem, recognise

SUFFIXES = (".txt", ".md")


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """Add the arguments CORPUS... and --split."""
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
    """The files of CORPUS..., each once: the given files, and the text files of given folders in sorted order.

    Links are followed. Hidden files and folders inside a folder are left out. A message names all that is left out.

    Raises:
        CommandError: a path does not exist, or a folder holds no text file.
    """
    found: dict[tuple[int, int], Path] = {}
    left_out: dict[str, list[Path]] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = sorted(_text_files(path, left_out))
            if not inside:
                _say_what_is_left_out(left_out)
                raise CommandError(f"{given}: no {' or '.join(SUFFIXES)} file in this folder")
        elif path.exists():
            inside = [path]
        else:
            raise CommandError(f"{given}: no such file or folder")
        for file in inside:
            if found.setdefault(_identity(file), file) is not file:
                left_out.setdefault("already there under another name", []).append(file)
    _say_what_is_left_out(left_out)
    return list(found.values())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _text_files(folder: Path, left_out: dict[str, list[Path]]) -> Iterator[Path]:
    """The text files in a folder and its subfolders. Links are followed; each folder is searched once."""

    def leave_out(why: str, path: Path) -> None:
        left_out.setdefault(why, []).append(path)

    searched = set()
    for name, below, names in os.walk(
        folder, onerror=lambda error: leave_out("not readable", Path(error.filename)), followlinks=True
    ):
        here = Path(name)
        if (identity := _identity(here)) in searched:
            leave_out("already there under another name", here)
            below.clear()
            continue
        searched.add(identity)
        for each in [*filter(_is_hidden, below)]:
            leave_out("hidden", here / each)
            below.remove(each)
        below.sort()
        for each in sorted(names):
            if not each.lower().endswith(SUFFIXES):
                continue
            if _is_hidden(each):
                leave_out("hidden", here / each)
            elif (here / each).is_file():
                yield here / each
            elif not (here / each).exists():
                leave_out("a link to nothing", here / each)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")  # such as the ._ files of macOS on other systems' disks


def _say_what_is_left_out(left_out: dict[str, list[Path]]) -> None:
    for why, paths in left_out.items():
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        print(f"{PROGRAM}: left out, {why}: {', '.join(map(str, paths[:3]))}{more}", file=sys.stderr)


def check_not_empty(files: Sequence[Path]) -> None:
    """Check that the files of CORPUS... are not all empty.

    Raises:
        CommandError: all files are empty. Names the first.
    """
    if not any(file.stat().st_size or not file.is_file() for file in files):
        more = f", like the other {len(files) - 1}" if len(files) > 1 else ""
        raise CommandError(f"{files[0]}: is empty{more}")


def named(files: Sequence[Path | str]) -> str:
    """The files of CORPUS... in a message."""
    return f"{files[0]}{' and the other files' if len(files) > 1 else ''}"


def read_stdin() -> str:
    """All of standard input, without a byte order mark at its start.

    Raises:
        CommandError: standard input is closed, not UTF-8, or a file of a known kind that is no text.
    """
    if sys.stdin is None:
        raise CommandError("standard input is closed")
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # a program that calls main() replaced sys.stdin
        return sys.stdin.read().removeprefix("\ufeff")
    data = stream.read()
    try:
        text = str(data, "utf-8").removeprefix("\ufeff")
        what = recognise(data, whole="\0" in text)
    except UnicodeDecodeError as error:
        what = recognise(data, whole=True)
        if what is None:
            near = data[error.start : error.start + HEAD_BYTES]
            raise CommandError(
                f"standard input: {encoding_problem(error.start, near, after_utf8=not data[: error.start].isascii())}"
            ) from None
    if what is not None:
        raise CommandError(f"standard input {what}")
    return text
