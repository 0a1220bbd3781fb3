"""What the subcommands share: argument types that name their limits, corpora, and output for people and machines."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from soma_native.tokenizer.tokenizer import Tokenizer

__all__ = [
    "PROGRAM",
    "CommandError",
    "Parser",
    "UsageError",
    "add_command",
    "add_corpus",
    "check_not_empty",
    "check_writable",
    "corpus_files",
    "in_flags",
    "integer",
    "load_tokenizer",
    "named",
    "number",
    "one_line",
    "print_json",
    "print_table",
    "read_stdin",
    "sigterm_as_ctrl_c",
    "terminated",
]

PROGRAM = "soma-native"
SUFFIXES = (".txt", ".md")
SPLITS = ("file", "line", "blank-line")


class CommandError(Exception):
    """Something a user can cause and mend; its text is the one line they see."""


class UsageError(Exception):
    """Arguments that do not go together; shown with the usage, exit status 2."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaint is one line, like every other of ours; its subparsers are the same."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the usage, and end with status 2."""
        self.exit(2, f"{PROGRAM}: error: {one_line(message)}; see {self.prog} --help\n")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str, example: str, notes: str = ""
) -> argparse.ArgumentParser:
    """A subcommand with a one-line help and, below its options, an example."""
    epilog = f"{notes}\n\n" if notes else ""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[:1].upper() + help[1:] + ".",
        epilog=f"{epilog}Example:\n  {PROGRAM} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least or (most is not None and value > most):
            limit = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: must be {limit}")
        return value

    return parse


def number(allowed: str, test: Callable[[float], bool]) -> Callable[[str], float]:
    """An argparse type: finite numbers that pass `test`, which `allowed` puts in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or not test(value):
            raise argparse.ArgumentTypeError(f"{text} is out of range: must be {allowed}")
        return value

    return parse


seed_type = integer(0, 2**64 - 1)
fraction_type = number("at least 0 and below 1", lambda x: 0 <= x < 1)
positive_type = number("above 0", lambda x: x > 0)


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


def read_stdin() -> str:
    """All of standard input.

    Raises:
        CommandError: it is not UTF-8.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # replaced by a program that calls the command
        return sys.stdin.read()
    data = stream.read()
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"standard input is not UTF-8 at byte {error.start} (0x{data[error.start]:02x}): convert it first, for "
            "instance with iconv"
        ) from None


def load_tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    """The tokenizer of PATH, --pattern, --special-token and --merges."""
    from soma_native.tokenizer.tokenizer import Tokenizer

    path, pattern = arguments.path, arguments.pattern
    if pattern is not None:
        return Tokenizer.from_tiktoken(path, pattern=pattern, special_tokens=dict(arguments.special_token))
    if arguments.special_token:
        raise UsageError("--special-token goes with --pattern, for a rank file of tiktoken")
    if arguments.merges is not None:
        return Tokenizer.from_gpt2(path, arguments.merges)
    if path.endswith(".tiktoken"):
        raise UsageError(f"{path}: a rank file of tiktoken does not say how texts are split: give --pattern")
    return Tokenizer.load(path)


def check_writable(folder: str) -> None:
    """Make the folder and see that files can be made in it, before any work is done for it.

    Raises:
        CheckpointError: they cannot.
    """
    from soma_native.files.atomic_folder import replace_files

    if not folder:
        raise UsageError("the name of the folder to write to is empty")
    with replace_files(folder):
        pass
    Path(folder).mkdir(parents=True, exist_ok=True)


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


_NAMES = "batch_size|epochs|lr|max_eval_windows|max_seq_len|min_frequency|pattern|seq_len|val_fraction|vocab_size"
_IN_PYTHON = re.compile(rf"(?<![\w./'-])(?:({_NAMES}|(?<=epochs or )steps)(?![\w./'-])=?|without resume\b|resume=True)")


def in_flags(message: str) -> str:
    """A message of the library with its arguments called as they are on the command line.

    >>> in_flags("val_fraction=0.5 holds out too much; vocab_size must be at least 7")
    '--val-fraction 0.5 holds out too much; --vocab-size must be at least 7'
    """

    def flag(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "without --resume" if match[0].startswith("without") else "--resume"
        name = "seq_len" if name == "max_seq_len" else name
        return "--" + name.replace("_", "-") + (" " if match[0].endswith("=") else "")

    return _IN_PYTHON.sub(flag, message)


terminated = threading.Event()  # whether what ended the command was a SIGTERM and not Ctrl-C


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within this block SIGTERM does what Ctrl-C does, also where that is ignored as in a script's background jobs.

    A program that was started with SIGTERM ignored goes on ignoring it.
    """

    def terminate(number: int, frame: object) -> None:
        from soma_native.training.interrupt import interrupt

        terminated.set()
        interrupt()

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_not_empty(files: Sequence[Path]) -> None:
    """See that there is a byte in the files of CORPUS...

    Raises:
        CommandError: there is none; it names the first.
    """
    if not any(file.stat().st_size or not file.is_file() for file in files):
        more = f", like the other {len(files) - 1}" if len(files) > 1 else ""
        raise CommandError(f"{files[0]}: is empty{more}")


def named(files: Sequence[Path]) -> str:
    """The files of CORPUS... in a message."""
    return f"{files[0]}{' and the other files' if len(files) > 1 else ''}"


def one_line(text: str) -> str:
    """`text` without line breaks, so that an error is one line."""
    return " ".join(text.split())


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
