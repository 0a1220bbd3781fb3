"""Arguments that several subcommands have, and types that name their limits."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from soma_native.cli.errors import PROGRAM, one_line

__all__ = ["Parser", "add_command", "fraction_type", "in_flags", "integer", "number", "positive_type", "seed_type"]


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
