"""`soma-native tokenizer train|encode|decode|inspect`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .common import (
    PROGRAM,
    UsageError,
    add_command,
    add_corpus,
    check_not_empty,
    corpus_files,
    in_flags,
    integer,
    print_json,
    print_table,
)

KINDS = ("word", "char", "byte")


def add_parser(commands: Any) -> None:
    """Add the subcommand and its own."""
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
        actions, "train", train_tokenizer, "train a tokenizer on texts", "tokenizer train texts/ --out tokenizer.json"
    )
    add_corpus(train)
    train.add_argument(
        "--out", required=True, metavar="PATH", help="the .json file to write, or a folder for tokenizer.json"
    )
    train.add_argument("--kind", "--tokenizer", choices=KINDS, default="word", help="default: word")
    train.add_argument(
        "--vocab-size", type=integer(1), metavar="N", help="most tokens (default: 3000 words, or all characters)"
    )

    encode = add_command(
        actions, "encode", encode_text, "print the ids of a text", 'tokenizer encode runs/showcase "SOMA is small"'
    )
    _add_path(encode)
    encode.add_argument("text", metavar="TEXT", nargs="?", default="-", help='"-" (the default) reads standard input')

    decode = add_command(
        actions, "decode", decode_ids, "print the text of ids", "tokenizer decode runs/showcase 6 9 12"
    )
    _add_path(decode)
    decode.add_argument("ids", metavar="ID", nargs="*", type=integer(0), help="without any, standard input is read")

    inspect = add_command(
        actions, "inspect", inspect_tokenizer, "say what is in a tokenizer", "tokenizer inspect runs/showcase"
    )
    _add_path(inspect)
    inspect.add_argument("--tokens", type=integer(0), default=20, metavar="N", help="how many tokens to list (20)")


def _no_action(arguments: argparse.Namespace) -> None:
    raise UsageError("name an action: train, encode, decode or inspect")


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a tokenizer.json or the folder it is in")


def train_tokenizer(arguments: argparse.Namespace) -> None:
    """Train and write."""
    from soma_native import Tokenizer
    from soma_native.data import read_documents

    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    texts = read_documents(files, arguments.split)
    try:
        tok = Tokenizer.train(texts, kind=arguments.kind, vocab_size=arguments.vocab_size)
    except ValueError as error:
        if str(error).startswith("vocab_size"):
            raise UsageError(in_flags(str(error))) from None
        raise
    out = tok.save(arguments.out)
    result = {"out": str(out), "kind": tok.kind, "vocab_size": tok.vocab_size}
    if arguments.json:
        print_json(result)
    else:
        print(f"{out}: {tok.kind} tokenizer of {tok.vocab_size} tokens")


def encode_text(arguments: argparse.Namespace) -> None:
    """Print ids."""
    from soma_native import Tokenizer

    tok = Tokenizer.load(arguments.path)
    ids = tok.encode(sys.stdin.read() if arguments.text == "-" else arguments.text)
    if arguments.json:
        print_json({"ids": ids, "tokens": [tok.id_to_token(i) for i in ids]})
    else:
        print(" ".join(map(str, ids)))


def decode_ids(arguments: argparse.Namespace) -> None:
    """Print text."""
    from soma_native import Tokenizer

    tok = Tokenizer.load(arguments.path)
    ids = arguments.ids
    if not ids:
        words = sys.stdin.read().split()
        try:
            ids = [int(word) for word in words]
        except ValueError:
            raise ValueError("standard input must hold whole numbers and white space only") from None
    for token in ids:
        if not 0 <= token < tok.vocab_size:
            message = f"ID {token} is out of range: the tokenizer has the ids from 0 to {tok.vocab_size - 1}"
            raise UsageError(message) if arguments.ids else ValueError(message)
    text = tok.decode(ids)
    if arguments.json:
        print_json({"text": text})
    else:
        print(text)


def inspect_tokenizer(arguments: argparse.Namespace) -> None:
    """Print what there is to know."""
    from soma_native import Tokenizer

    tok = Tokenizer.load(arguments.path)
    count = min(arguments.tokens, tok.vocab_size)
    tokens = {i: tok.id_to_token(i) for i in range(count)}
    if arguments.json:
        special = list(tok.special_tokens)
        print_json({"kind": tok.kind, "vocab_size": tok.vocab_size, "special_tokens": special, "tokens": tokens})
        return
    print(f"kind {tok.kind}, {tok.vocab_size} tokens, special: {' '.join(tok.special_tokens) or 'none'}")
    if tokens:
        print_table("", ("id", "token"), [(i, repr(token)[1:-1]) for i, token in tokens.items()])
