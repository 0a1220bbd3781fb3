"""`soma-native evaluate`: loss, perplexity and bits per byte of a saved model on texts."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from soma_native.analysis.floor import text_floor
from soma_native.checkpoint import load
from soma_native.cli.arguments import add_command, add_device, add_precision, integer
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files, named
from soma_native.cli.document_table import (
    check_table,
    measure_documents,
    named_documents,
    print_documents,
    table_file,
    write_table,
)
from soma_native.cli.errors import PROGRAM, CommandError, UsageError
from soma_native.cli.output import print_json, print_table
from soma_native.data.documents import read_documents
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.errors import ArgumentError
from soma_native.training.evaluate import document_losses, mean_loss, predicted_bytes

_NOTES = """\
Loss is the mean over all next-token pairs inside documents, in nats. Longer documents are cut into windows of the
model's context (--seq-len). Perplexity is the exponential of the loss. Bits per byte is the sum of all losses in bits,
divided by the UTF-8 bytes of the documents without their first tokens, which the model does not predict. Bits per byte
compares models with different tokenizers, if these keep all of the text. Otherwise it is "-" (null with --json): the
word tokenizer loses case and punctuation, and an unknown token loses its text.

--floor TEXT... names the texts that the model was trained on. It measures predictors that need no training, on the
same bytes: a character 5-gram (modified Kneser-Ney), single tokens, single characters, and xz -9e. xz takes about two
seconds for each megabyte. --split cuts these texts too.

--per-document lists every document, by its file and, with --split, its number there. A document of fewer than two
tokens has no loss."""

_FLOOR = {
    "ngram": "character 5-gram",
    "tokens": "single tokens",
    "characters": "single characters",
    "xz": "xz -9e",
}


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        "measure loss, perplexity and bits per byte of a saved model on texts",
        "evaluate runs/mine held_out.txt --floor training.txt",
        _NOTES,
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the model")
    add_corpus(parser)
    parser.add_argument("--floor", metavar="TEXT", nargs="+", help="compare with simple models of these training texts")
    parser.add_argument("--seq-len", type=integer(1), metavar="N", help="most pairs in a window (default: the context)")
    parser.add_argument("--batch-size", type=integer(1), default=8, metavar="N", help="windows at a time (default: 8)")
    parser.add_argument("--per-document", action="store_true", help="also measure each document by itself")
    parser.add_argument(
        "--table", type=table_file, metavar="FILE", help="write the measures of each document into this .csv or .tsv"
    )
    add_precision(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the measures."""
    result = evaluate(arguments)
    if arguments.json:
        print_json(result)
        return
    bits = result["bits_per_byte"]
    print_table(
        "",
        ("measure", "value"),
        [
            ("loss (nats per token)", f"{result['loss']:.4f}"),
            ("perplexity", f"{result['perplexity']:.2f}"),
            ("bits per byte", "-" if bits is None else f"{bits:.4f}"),
            ("pairs", f"{result['pairs']:,}"),
            ("documents", f"{result['documents']:,}"),
            ("bytes", f"{result['bytes']:,}"),
            ("unknown tokens", f"{result['unknown_tokens']:,}"),
        ],
    )
    if floor := result.get("floor"):
        print()
        print_table(
            "",
            ("floor", "bits per byte"),
            [(name, "-" if floor[key] is None else f"{floor[key]:.4f}") for key, name in _FLOOR.items()],
        )
        if floor["sentence"]:
            print(f"\n{floor['sentence']}")
    if found := result.get("per_document"):
        print()
        print_documents(found)
    if arguments.table is not None:
        print(f"\nwritten: {arguments.table}")
    if bits is None:
        print("\nbits per byte: not comparable, because the tokenizer does not keep all of the text")


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The measures by name."""
    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    check_table(arguments.table)
    known = corpus_files(arguments.floor or ())
    if known:
        check_not_empty(known)
        seconds = min(sum(file.stat().st_size for file in known), 1 << 26) >> 19
        if seconds > 20:
            print(f"{PROGRAM}: xz -9e will take about {seconds} seconds", file=sys.stderr)
    model, tok = load(arguments.folder, precision=arguments.precision, device=arguments.device)
    longest = model.config.max_seq_len
    if arguments.seq_len is not None and arguments.seq_len > longest:
        raise UsageError(f"--seq-len {arguments.seq_len}: the model's context is {longest}")
    documents: Iterable[tuple[str, str]] = named_documents(files, arguments.split)
    each = arguments.per_document or arguments.table is not None
    if known or each:
        documents = list(documents)
    size = 0

    def texts() -> Iterator[str]:
        nonlocal size
        for _, text in documents:
            size += len(text.encode())
            yield text

    store = TokenStore.encode(texts(), tok)
    store.require_pairs(named(files))
    windows = Windows(store, arguments.seq_len or longest)
    counts = store.counts()
    if each:
        losses = document_losses(model, windows, arguments.batch_size)
        loss = float(losses.sum()) / counts["pairs"]
    else:
        loss = mean_loss(model, windows, arguments.batch_size)
    predicted = predicted_bytes(windows, tok)
    if predicted is not None:  # without first tokens, and without documents of one token
        size = predicted[1]
    bits = None if predicted is None else loss * counts["pairs"] / math.log(2) / size
    result: dict[str, Any] = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": bits,
        "pairs": counts["pairs"],
        "documents": counts["documents"],
        "bytes": size,
        "unknown_tokens": counts["unknown_tokens"],
    }
    if known:
        try:
            floor = text_floor(read_documents(known, arguments.split), [text for _, text in documents], tok)
        except ArgumentError as error:
            where = f"--floor {named(known)}" if error.argument == "train" else named(files)
            raise CommandError(f"{where}: {error.problem}") from None
        result["floor"] = {**asdict(floor), "sentence": None if bits is None else floor.sentence(bits)}
    if each:
        rows = measure_documents(documents, store, tok, losses)
        if arguments.table is not None:
            write_table(arguments.table, rows)
        if arguments.per_document:
            result["per_document"] = rows
    return result
