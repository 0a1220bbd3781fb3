"""Shared parts of the subcommands' parsers: the parser class, argument types with limits, the names of options."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from soma_native import _checks
from soma_native.cli.errors import PROGRAM, one_line
from soma_native.errors import ArgumentError
from soma_native.generation.sampling import KV_CACHE
from soma_native.model.config import PRECISIONS

_Value = TypeVar("_Value")


class Parser(argparse.ArgumentParser):
    """An argparse parser that prints an error as one line. Its subparsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and exit with status 2."""
        self.exit(2, f"{PROGRAM}: error: {one_line(message)}; see {self.prog} --help\n")


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str, example: str, notes: str = ""
) -> argparse.ArgumentParser:
    """Add a subcommand with a one-line help, --json, and an example below its options."""
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


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="cpu", metavar="D", help="where the model computes: cpu, cuda or cuda:N (default: cpu)"
    )


def add_kv_cache(parser: argparse._ActionsContainer) -> None:
    """Add --kv-cache."""
    parser.add_argument(
        "--kv-cache",
        choices=KV_CACHE,
        default="auto",
        help="form of keys and values: bfloat16 rounds them and takes half the memory; auto does so where the weights "
        "are rounded (default: auto)",
    )


def add_precision(parser: argparse._ActionsContainer) -> None:
    """Add --precision of a command that does not train."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of matrix products: float32 or bfloat16; auto (the default) means float32 here",
    )


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: integers from `least` to `most`."""
    return _type("a whole number", int, lambda value: _checks.integer("", value, least, most))


def number(**limits: float) -> Callable[[str], float]:
    """An argparse type: finite numbers within the limits of `_checks.number`."""
    return _type("a number", float, lambda value: _checks.number("", value, **limits))


def text(argument: str) -> str:
    """An argparse type: text. Where the locale has no such character, Python hands its bytes over as surrogates."""
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):
            return os.fsencode(argument).decode("utf-8")
        raise argparse.ArgumentTypeError("is not UTF-8") from None


def _type(what: str, parse: Callable[[str], _Value], check: Callable[[_Value], _Value]) -> Callable[[str], _Value]:
    def read(text: str) -> _Value:
        try:
            return check(parse(text))
        except ArgumentError as error:
            raise argparse.ArgumentTypeError(error.problem) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None

    return read


seed_type = integer(0, 2**64 - 1)
fraction_type = number(least=0, below=1)
positive_type = number(above=0)

# Arguments of the library whose option has another name.
_OPTIONS = {"max_seq_len": "seq_len", "special_tokens": "special_token"}
_POSITIONALS = {"folder": "DIR", "path": "PATH", "text": "TEXT"}


def option_of(arguments: argparse.Namespace, name: str) -> str | None:
    """The option of the command line for the library's argument `name`; None if there is none."""
    name = name.partition("[")[0]  # an item of a pair or a list, such as betas[0]
    option = _OPTIONS.get(name, name)
    if hasattr(arguments, option) and option in _POSITIONALS:
        return _POSITIONALS[option]
    return f"--{option.replace('_', '-')}" if hasattr(arguments, option) else None
