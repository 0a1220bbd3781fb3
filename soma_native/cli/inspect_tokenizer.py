"""`soma-native tokenizer inspect`: shows a text in coloured tokens, and the tokens that a corpus uses or never uses."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any

import numpy as np

from soma_native.cli.corpus import check_not_empty, corpus_files, read_stdin
from soma_native.cli.output import print_json, print_table
from soma_native.cli.tokenizer_file import load_tokenizer
from soma_native.data.documents import read_documents
from soma_native.tokenizer.tokenizer import Tokenizer

_STYLES = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


def inspect_tokenizer(arguments: argparse.Namespace) -> None:
    """Print the tokenizer's facts, the tokens of TEXT, and the use of tokens by --corpus."""
    tok = load_tokenizer(arguments)
    found = {
        "kind": tok.kind,
        "vocab_size": tok.vocab_size,
        "special_tokens": list(tok.special_tokens),
        **_vocabulary(tok, arguments.tokens),
    }
    if arguments.text is not None:
        text = read_stdin() if arguments.text == "-" else arguments.text
        ids = tok.encode(text)
        found["text"] = {"ids": ids, "tokens": [_shown(tok, i) for i in ids], "bytes": len(text.encode())}
    if arguments.corpus is not None:
        found["corpus"] = _usage(tok, arguments.corpus, arguments.tokens)
    if arguments.json:
        print_json(found)
        return
    print(f"kind {tok.kind}, {tok.vocab_size} tokens, special: {' '.join(tok.special_tokens) or 'none'}")
    if arguments.text is not None:
        _print_text(found["text"])
    if arguments.corpus is not None:
        _print_usage(found["corpus"])
    if arguments.text is None and arguments.corpus is None and arguments.tokens:
        print_table("the first tokens", ("id", "token"), found["tokens"].items())
    if arguments.tokens and (arguments.text is None or arguments.corpus is not None):
        print_table("the longest tokens", ("id", "bytes", "token"), [row.values() for row in found["longest"]])


def _vocabulary(tok: Tokenizer, count: int) -> dict[str, Any]:
    """The first tokens, and the longest."""
    texts = {i: _shown(tok, i) for i in _ids(tok)}
    sizes = {i: len(tok.decode_bytes([i])) for i in texts}
    longest = sorted(sizes, key=lambda i: -sizes[i])[:count]
    return {
        "tokens": {i: texts[i] for i in list(texts)[:count]},
        "longest": [{"id": i, "bytes": sizes[i], "token": texts[i]} for i in longest],
    }


def _usage(tok: Tokenizer, paths: list[str], count: int) -> dict[str, Any]:
    """Counts of tokens in files: bytes per token, the rarest tokens, and tokens that are never used."""
    files = corpus_files(paths)
    check_not_empty(files)
    counts = np.zeros(tok.vocab_size, np.int64)
    size = 0
    for text in read_documents(files):
        size += len(text.encode())
        counts += np.bincount(tok.encode_array(text), minlength=tok.vocab_size)
    special = {tok.token_to_id(token) for token in tok.special_tokens}
    ordinary = np.array([i for i in _ids(tok) if i not in special], np.int64)
    used = ordinary[counts[ordinary] > 0]
    rarest = used[np.argsort(counts[used], kind="stable")][:count]
    unused = ordinary[counts[ordinary] == 0]
    single = np.array([len(tok.decode_bytes([int(i)])) == 1 for i in unused], np.bool_)
    unused = unused[np.argsort(single, kind="stable")]  # single bytes last: a vocabulary needs them
    return {
        "files": len(files),
        "bytes": size,
        "tokens": int(counts.sum()),
        "bytes_per_token": size / max(int(counts.sum()), 1),
        "used": len(used),
        "never_used": len(unused),
        "rarest": [{"id": int(i), "count": int(counts[i]), "token": _shown(tok, i)} for i in rarest],
        "unused": [{"id": int(i), "token": _shown(tok, i)} for i in unused[:count]],
    }


def _ids(tok: Tokenizer) -> list[int]:
    """The ids that have a token."""
    found = []
    for i in range(tok.vocab_size):
        with contextlib.suppress(ValueError):
            tok.id_to_token(i)
            found.append(i)
    return found


def _shown(tok: Tokenizer, i: int) -> str:
    """The text of a token with unprintable characters escaped."""
    byte_level = tok.kind in ("byte", "bpe")
    text = tok.decode_bytes([i]).decode("utf-8", "backslashreplace") if byte_level else tok.id_to_token(i)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print_text(text: dict[str, Any]) -> None:
    tokens = text["tokens"]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        from rich.console import Console
        from rich.text import Text

        line = Text()
        for n, token in enumerate(tokens):
            line.append(token, _STYLES[n % len(_STYLES)])
        Console(highlight=False).print(line)
    else:
        print("|".join(tokens))
    print(" ".join(map(str, text["ids"])))
    print(f"{len(tokens):,} tokens, {text['bytes'] / max(len(tokens), 1):.2f} bytes per token")


def _print_usage(usage: dict[str, Any]) -> None:
    print(
        f"{usage['files']:,} file{'s' * (usage['files'] != 1)}: {usage['bytes']:,} bytes, {usage['tokens']:,} tokens, "
        f"{usage['bytes_per_token']:.3f} bytes per token; {usage['used']:,} tokens used, {usage['never_used']:,} never"
    )
    if usage["rarest"]:
        print_table("the rarest tokens", ("id", "count", "token"), [row.values() for row in usage["rarest"]])
    if usage["unused"]:
        print_table("tokens never used", ("id", "token"), [row.values() for row in usage["unused"]])
