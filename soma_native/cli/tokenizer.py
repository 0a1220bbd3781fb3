"""`soma-native tokenizer train|encode|decode`, and the parser of `inspect` (inspect_tokenizer.py)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soma_native import _checks
from soma_native.checkpoint.folder import foreign_models, model_files
from soma_native.cli.arguments import add_command, integer, text
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files, read_stdin
from soma_native.cli.errors import PROGRAM, CommandError, UsageError
from soma_native.cli.inspect_tokenizer import inspect_tokenizer
from soma_native.cli.output import print_json
from soma_native.cli.progress import TokenizerProgress
from soma_native.cli.tokenizer_file import load_tokenizer
from soma_native.data.documents import documents_of
from soma_native.tokenizer.bpe_vocabulary import PATTERNS
from soma_native.tokenizer.formats.tokenizer_json import FILE_NAME
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.tokenizer.train import KINDS


def add_parser(commands: Any) -> None:
    """Add the subcommand and its actions."""
    parser = commands.add_parser(
        "tokenizer",
        help="train a tokenizer, turn text into ids and back",
        description="Train a tokenizer, turn text into ids and back.",
        epilog=f"Example:\n  {PROGRAM} tokenizer train my_text.txt --out tokenizer.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_no_action, parser=parser)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    train = add_command(
        actions,
        "train",
        train_tokenizer,
        "train a tokenizer on texts",
        "tokenizer train texts/ --out tokenizer.json --kind bpe --vocab-size 8192 --pattern cl100k",
    )
    add_corpus(train)
    train.add_argument(
        "--out", required=True, metavar="PATH", help="the .json file to write, or a folder for tokenizer.json"
    )
    train.add_argument("--kind", "--tokenizer", choices=KINDS, default="word", help="default: word")
    train.add_argument(
        "--vocab-size",
        type=integer(1),
        metavar="N",
        help="most tokens (default: 3000 words, 8192 of bpe, all characters)",
    )
    train.add_argument("--pattern", choices=PATTERNS, help="how bpe splits a text before it merges (default: gpt2)")
    train.add_argument(
        "--min-frequency",
        type=integer(1),
        metavar="N",
        help="how often a pair must be seen for bpe to merge it (default: 1)",
    )
    train.add_argument(
        "--special-token",
        action="append",
        type=text,
        metavar="TEXT",
        help="a special token, in place of the kind's default ones; may be repeated",
    )

    encode = add_command(
        actions, "encode", encode_text, "print the ids of a text", 'tokenizer encode runs/showcase "SOMA is small"'
    )
    _add_path(encode)
    encode.add_argument(
        "text", type=text, metavar="TEXT", nargs="?", default="-", help='"-" (the default) reads standard input'
    )
    encode.add_argument("--special", action="store_true", help="encode the text of a special token as this token")

    decode = add_command(
        actions, "decode", decode_ids, "print the text of ids", "tokenizer decode runs/showcase 6 9 12"
    )
    _add_path(decode)
    decode.add_argument("ids", metavar="ID", nargs="*", type=integer(0), help="without any, standard input is read")

    inspect = add_command(
        actions,
        "inspect",
        inspect_tokenizer,
        "show the tokens of a text and of a vocabulary",
        'tokenizer inspect runs/mine "Hello, world!" --corpus my_texts/',
        "With --corpus: bytes per token of these files, their rarest tokens, and the tokens that they never use.",
    )
    _add_path(inspect)
    inspect.add_argument(
        "text", type=text, metavar="TEXT", nargs="?", help='a text to show in tokens; "-" reads standard input'
    )
    inspect.add_argument("--corpus", metavar="CORPUS", nargs="+", help="text files, or folders of them, to count on")
    inspect.add_argument(
        "--tokens", type=integer(0), default=20, metavar="N", help="how many tokens to list (default: 20)"
    )


def _no_action(arguments: argparse.Namespace) -> None:
    raise UsageError("name an action: train, encode, decode or inspect")


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a tokenizer.json or the folder it is in; with --pattern or --merges a vocabulary of tiktoken or GPT-2",
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--merges", metavar="FILE", help="PATH is GPT-2's vocab.json, and FILE its merges.txt")
    others.add_argument(
        "--pattern", choices=PATTERNS, help="PATH is a rank file of tiktoken, and this is its rule for splitting texts"
    )
    parser.add_argument(
        "--special-token",
        action="append",
        default=[],
        type=_special_token,
        metavar="TEXT=ID",
        help="a special token of a rank file, such as '<|endoftext|>=100257'; may be repeated",
    )


def _special_token(argument: str) -> tuple[str, int]:
    token, _, i = text(argument).rpartition("=")
    if not token:
        raise argparse.ArgumentTypeError(f"{argument!r} is not of the form TEXT=ID")
    return token, integer(0)(i)


def train_tokenizer(arguments: argparse.Namespace) -> None:
    """Train a tokenizer and write its file."""
    _refuse_the_tokenizer_of_a_model(_checks.path("out", arguments.out))
    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    options = {"special_tokens": arguments.special_token, "pattern": arguments.pattern}
    tok = train_on_files(
        files, arguments.split, arguments.kind, arguments.vocab_size, min_frequency=arguments.min_frequency, **options
    )
    out = tok.save(arguments.out)
    result = {"out": str(out), "kind": tok.kind, "vocab_size": tok.vocab_size}
    if arguments.json:
        print_json(result)
    else:
        print(f"{out}: {tok.kind} tokenizer of {tok.vocab_size} tokens")


def _refuse_the_tokenizer_of_a_model(out: Path) -> None:
    folder = out.parent if out.name == FILE_NAME and not out.is_dir() else out
    found = [name for name in model_files(folder) if not name.startswith("tokenizer")] or foreign_models(folder)
    if found:
        raise CommandError(f"{out}: belongs to a model ({found[0]}), which needs its own tokenizer: give another place")


def train_on_files(files: Sequence[Path], split: Any, kind: str, vocab_size: int | None, **options: Any) -> Tokenizer:
    """Train a tokenizer. For bpe, show a progress bar."""
    if kind != "bpe":
        return Tokenizer.train(documents_of(files, split), kind, vocab_size, **options)
    with TokenizerProgress(sum(file.stat().st_size for file in files)) as progress:
        return Tokenizer.train(documents_of(files, split), kind, vocab_size, progress=progress, **options)


def encode_text(arguments: argparse.Namespace) -> None:
    """Print ids."""
    tok = load_tokenizer(arguments)
    given = read_stdin() if arguments.text == "-" else arguments.text
    ids = tok.encode(given, allowed_special="all" if arguments.special else ())
    if arguments.json:
        print_json({"ids": ids, "tokens": [tok.id_to_token(i) for i in ids]})
    else:
        print(" ".join(map(str, ids)))


def decode_ids(arguments: argparse.Namespace) -> None:
    """Print text."""
    tok = load_tokenizer(arguments)
    ids = arguments.ids
    if not ids:
        words = read_stdin().split()
        try:
            ids = [int(word) for word in words]
        except ValueError:
            raise ValueError("standard input must hold whole numbers and white space only") from None
    for token in ids:
        if not 0 <= token < tok.vocab_size:
            message = f"ID {token} is out of range: the tokenizer has the ids from 0 to {tok.vocab_size - 1}"
            raise UsageError(message) if arguments.ids else ValueError(message)
    decoded = tok.decode(ids)
    if arguments.json:
        print_json({"text": decoded})
    else:
        print(decoded)
