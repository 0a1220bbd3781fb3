"""Speed of encoding and decoding in MB/s: our word, char and byte tokenizers against Hugging Face `tokenizers`.

    python benchmarks/bench_tokenizer.py --text book.txt --rounds 7 --json out.json

`tokenizers` loads the tokenizer.json that ours saved, so both do the same work. Their ids are compared before timing.
If `tokenizers` is not installed, only ours is timed. MB are those of the text, for decoding too.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, machine_record, pairwise, print_machine, print_table, thread_environment, write_record

KINDS = ("word", "char", "byte")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="a UTF-8 file (default: the showcase corpus, repeated to 1 MB)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--vocab-size", type=int, default=8000, help="of the word tokenizer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def contenders(kind: str, text: str, vocab_size: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """The calls to time, by task and contender. Different ids for the whole text end the script."""
    import soma_native as soma

    options = {"vocab_size": vocab_size} if kind == "word" else {}
    tokenizer = soma.Tokenizer.train([text], kind=kind, **options)
    lines = text.splitlines()
    ids = tokenizer.encode(text)
    tasks: dict[str, dict[str, Callable[[], Any]]] = {
        "encode": {
            "soma_native": lambda: tokenizer.encode(text),
            "soma_native array": lambda: tokenizer.encode_array(text),
        },
        "encode lines": {"soma_native": lambda: tokenizer.encode_batch(lines)},
        "decode": {"soma_native": lambda: tokenizer.decode(ids)},
    }
    if importlib.util.find_spec("tokenizers") is None:
        return tasks
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        peer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    if peer.encode(text, add_special_tokens=False).ids != ids:
        raise SystemExit(f"bench_tokenizer: {kind}: our ids differ from those of tokenizers")
    tasks["encode"]["tokenizers"] = lambda: peer.encode(text, add_special_tokens=False).ids
    tasks["encode lines"]["tokenizers"] = lambda: peer.encode_batch_fast(lines, add_special_tokens=False)
    tasks["decode"]["tokenizers"] = lambda: peer.decode(ids)
    return tasks


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    os.environ.update(thread_environment(args.threads))  # before either library starts its threads
    if args.text:
        text = Path(args.text).read_text(encoding="utf-8")
    else:
        corpus = (ROOT / "soma_native" / "showcase" / "corpus.txt").read_text(encoding="utf-8")
        text = corpus * (1_000_000 // len(corpus) + 1)
    megabytes = len(text.encode()) / 1e6
    machine = machine_record(args.threads, None)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    for kind in args.kinds:
        for task, calls in contenders(kind, text, args.vocab_size).items():
            rates: dict[str, list[float]] = {name: [] for name in calls}
            for work in calls.values():
                work()  # warm
            for turn in range(args.rounds):
                for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
                    rates[name].append(megabytes / seconds(calls[name]))
            for name in calls:
                ratio = pairwise(rates["soma_native"], rates[name]) if name == "tokenizers" else None
                results.append(
                    {
                        "workload": kind,
                        "task": task,
                        "label": name,
                        "megabytes": megabytes,
                        "megabytes_per_second": statistics.median(rates[name]),
                        "rounds": rates[name],
                        "ours_over_this": {"soma_native": ratio} if ratio else {},
                    }
                )
    rows = []
    for r in results:
        ratio = r["ours_over_this"].get("soma_native")
        shown = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "-"
        rows.append([r["workload"], r["task"], r["label"], f"{r['megabytes_per_second']:,.1f}", shown])
    print(f"one text of {megabytes:.1f} MB")
    print_table(["tokenizer", "task", "contender", "MB/s", "we are x times as fast"], rows)
    write_record(args.json, "tokenizer", machine, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
