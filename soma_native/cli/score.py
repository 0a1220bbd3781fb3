"""`soma-native score`: how likely a text is to a saved model, token by token and in all."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from soma_native.checkpoint import load
from soma_native.cli.arguments import add_command, add_device, add_precision, integer, text
from soma_native.cli.corpus import read_stdin
from soma_native.cli.errors import CommandError, UsageError
from soma_native.cli.output import print_json, print_table
from soma_native.data.documents import read_documents
from soma_native.errors import ArgumentError
from soma_native.generation.generator import Generator
from soma_native.generation.scoring import Scores
from soma_native.tokenizer.tokenizer import Tokenizer

_NOTES = """\
Log-probabilities are in nats, each of a token after those before it. Nothing predicts the first token. The rank of a
token is 1 if it is the likeliest one. A text that is longer than the model's context is read in windows: the next one
begins half a context later, or --stride tokens. Bits per byte compares models with different tokenizers, if these keep
all of the text. Otherwise it is "-" (null with --json)."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "score",
        run,
        "say how likely a text is to a saved model, token by token and in all",
        'score runs/mine "What say you to my suit?" --top 3',
        _NOTES,
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the model")
    parser.add_argument("text", type=text, nargs="?", metavar="TEXT", help='the text; "-" reads it from standard input')
    parser.add_argument("--file", metavar="F", help="read the text from this UTF-8 file")
    parser.add_argument("--top", type=integer(0), default=0, metavar="N", help="show the N likeliest tokens too")
    parser.add_argument(
        "--stride", type=integer(1), metavar="N", help="tokens from window to window (default: half the context)"
    )
    add_precision(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the scores."""
    if (arguments.text is None) == (arguments.file is None):
        raise UsageError("give the text as TEXT or with --file, one of them")
    given = arguments.text
    if arguments.file is not None:
        given = next(read_documents(arguments.file))
    elif given == "-":
        given = read_stdin().rstrip("\n")
    model, tok = load(arguments.folder, precision=arguments.precision, device=arguments.device)
    try:
        scores = Generator(model, tok).score(given, top=arguments.top, stride=arguments.stride)
    except ArgumentError as error:
        if error.argument == "text" and arguments.file is not None:
            raise CommandError(f"{arguments.file}: {error.problem}") from None
        raise
    bits = scores.bits_per_byte
    result = {
        "tokens": len(scores.tokens),
        "log_probability": scores.total,
        "loss": scores.loss,
        "perplexity": scores.perplexity,
        "bits_per_byte": bits,
        "bytes": scores.bytes,
    }
    if arguments.json:
        print_json({**result, "scores": _each_token(scores, tok)})
        return
    columns = ["token", "log-probability", "probability", "rank"]
    rows = []
    for entry in _each_token(scores, tok):
        logprob = entry["logprob"]
        likely = [f"{logprob:.4f}", f"{math.exp(logprob):.2%}", f"{entry['rank']:,}"] if entry["rank"] else ["-"] * 3
        best = [f"{_quoted(b['text'])} {math.exp(b['logprob']):.2%}" for b in entry["top"]]
        rows.append([_quoted(entry["text"]), *likely, *([", ".join(best)] if arguments.top else [])])
    print_table("", [*columns, *(["likeliest"] if arguments.top else [])], rows)
    print()
    print_table(
        "",
        ("in all", "value"),
        [
            ("tokens", f"{len(scores.tokens):,}"),
            ("log-probability (nats)", f"{scores.total:.4f}"),
            ("loss (nats per token)", f"{scores.loss:.4f}"),
            ("perplexity", f"{scores.perplexity:.2f}"),
            ("bits per byte", "-" if bits is None else f"{bits:.4f}"),
        ],
    )
    if bits is None:
        print("\nbits per byte: not comparable, because the tokenizer does not keep all of the text")


def _each_token(scores: Scores, tok: Tokenizer) -> list[dict[str, Any]]:
    lists = scores.tokens, scores.offsets, scores.logprobs, scores.ranks, scores.top
    return [
        {
            "id": token,
            "text": scores.text[begin:end],
            "begin": begin,
            "end": end,
            "logprob": logprob,
            "rank": rank,
            "top": [{"id": i, "text": _text_of(tok, i), "logprob": best} for i, best in top],
        }
        for token, (begin, end), logprob, rank, top in zip(*lists, strict=True)
    ]


def _text_of(tok: Tokenizer, token: int) -> str:
    """The text of a token; the name of a special one; the number of an id that the tokenizer does not have."""
    try:
        return tok.decode([token]) or tok.id_to_token(token)
    except ValueError:
        return f"<{token}>"


def _quoted(text: str) -> str:
    """A text in one line, whose spaces are seen."""
    return json.dumps(text, ensure_ascii=False)
