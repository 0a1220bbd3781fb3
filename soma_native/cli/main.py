"""The main function of the command `soma-native`: parses the arguments, runs the subcommand, reports errors.

Exit status: 0 success; 1 an error, printed as one line; 2 bad usage; 130 Ctrl-C; 141 the reader of the output closed
it; 143 SIGTERM and 129 SIGHUP while training (128 + the number of the signal).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from soma_native.cli.arguments import Parser, option_of
from soma_native.cli.corpus import named
from soma_native.cli.errors import PROGRAM, CommandError, UsageError, one_line
from soma_native.cli.output import Stream, drop_output, usable_streams
from soma_native.cli.signals import ended_by
from soma_native.cli.starters import silent_ranks
from soma_native.errors import ArgumentError, ArgumentTypeError, CheckpointError, RankError
from soma_native.model.model import resolve_precision
from soma_native.system import active_isa, get_num_threads

_COMMANDS = (
    "showcase", "train", "plan", "generate", "serve", "score", "evaluate", "export", "import", "tokenizer", "bench",
    "info",
)  # fmt: skip
_MODULES = {"import": "import_pickle"}  # a module cannot have this name
INTERRUPTED = 130
PIPE_CLOSED = 141


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with the subcommand of `argv`, or with all. Imports of the others would slow the start."""
    parser = Parser(
        prog=PROGRAM,
        description="Train small language models from your own text on an ordinary CPU, and generate with them.",
        epilog=f"Example:\n  {PROGRAM} showcase --out runs/showcase\nEvery command has its own --help with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    wanted = argv[:1] if argv and argv[0] in (*_COMMANDS, "--version") else _COMMANDS
    for name in _COMMANDS:
        if name in wanted:
            import_module(f"soma_native.cli.{_MODULES.get(name, name)}").add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None means sys.argv) and return the exit status.

    Raises:
        SystemExit: from argparse, for --help (0) and bad usage (2).
    """
    argv = sys.argv[1:] if argv is None else argv
    with usable_streams() as output, silent_ranks(argv):
        try:
            try:
                return _run(argv, output)
            finally:
                output.flush()
                if output.failed is not None:
                    raise output.failed
        except BrokenPipeError:
            drop_output()
            return PIPE_CLOSED
        except OSError as error:
            drop_output()
            return _fail(f"standard output: {error.strerror or error}", 1)


def _run(argv: Sequence[str], output: Stream) -> int:
    parser = _parser(argv)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        getattr(arguments, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.version:
        from soma_native.version import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    if not hasattr(arguments, "run"):
        parser.error("name a command")
    try:
        _check_environment()
    except ValueError as error:
        return _fail(str(error), 2)
    handler = _log_to_stderr()
    ended_by.clear()
    try:
        return int(arguments.run(arguments) or 0)
    except UsageError as error:
        arguments.parser.error(str(error))
        return 2
    except (ArgumentError, ArgumentTypeError) as error:
        return _refuse(arguments, error)
    except KeyboardInterrupt as error:
        print(f"{PROGRAM}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 128 + ended_by[0] if ended_by else INTERRUPTED
    except MemoryError as error:
        return _fail(f"out of memory {error}".strip(), 1)
    except OSError as error:
        if output.failed is not None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror}" if error.strerror else str(error), 1)
    except CheckpointError as error:
        return _fail(str(error).removesuffix(error.in_python), 1)
    except (CommandError, RankError, ValueError, FloatingPointError) as error:
        return _fail(str(error), 1)
    finally:
        logging.getLogger("soma_native").removeHandler(handler)


def _check_environment() -> None:
    """Raise a ValueError if SOMA_NUM_THREADS, SOMA_ISA or SOMA_PRECISION has a bad value. It names the variable."""
    get_num_threads()
    active_isa()
    resolve_precision("auto")


def _refuse(arguments: argparse.Namespace, error: ArgumentError | ArgumentTypeError) -> int:
    """Report a bad argument of the library. If an option gave it, name the option, and the usage is bad (status 2)."""
    if error.argument == "texts" and hasattr(arguments, "corpus"):
        return _fail(f"{named(arguments.corpus)}: {error.problem}", 1)
    if error.argument == "comm":
        return _fail(f"this run {error.problem}", 1)
    option = option_of(arguments, error.argument)
    if option is not None:
        arguments.parser.error(f"{option} {error.problem}")
    return _fail(str(error), 1)


def _fail(message: str, status: int) -> int:
    print(f"{PROGRAM}: error: {one_line(message)}", file=sys.stderr)
    return status


class _StderrHandler(logging.Handler):
    """Prints to the current sys.stderr, which a live display replaces to put lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "interrupted", False):  # the command reports an interrupt itself
            print(self.format(record), file=sys.stderr)


def _log_to_stderr() -> logging.Handler:
    """Print the library's warnings as lines of the command."""
    handler = _StderrHandler(logging.WARNING)
    handler.setFormatter(logging.Formatter(f"{PROGRAM}: %(message)s"))
    logging.getLogger("soma_native").addHandler(handler)
    return handler
