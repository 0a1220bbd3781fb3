"""Byte-level BPE beside tiktoken, gigatoken, rs-bpe and tokenizers: encoding and decoding in MB/s.

    python benchmarks/bench_bpe.py --vocab cl100k_base.tiktoken --text book.txt more.txt --rounds 7 --json out.json
    python benchmarks/bench_bpe.py --vocab my_bpe/tokenizer.json --text book.txt --tasks lines documents --threads 2

Contenders alternate in one run. Their ids are compared before anything is timed, and other ids end the run. "first" is
the first call on a text that is new to the tokenizer; all others are later calls. "lines" and "documents" (4,096
characters) are batches and give lists of ids. Peers that are not installed are left out. A tokenizer.json has the one
peer `tokenizers`: its encode_batch_fast, which makes no offsets, then .ids of each result.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import machine_record, pairwise, print_machine, print_table, thread_environment, write_record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from oracles.bpe_patterns import PATTERNS

Work = Callable[[], Any]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", required=True, help="a rank file, such as cl100k_base.tiktoken, or a tokenizer.json")
    parser.add_argument("--pattern", choices=["gpt2", "cl100k", "o200k"], help="default: by the name of the file")
    parser.add_argument("--text", nargs="+", required=True, help="UTF-8 files; each is a workload of its own")
    parser.add_argument("--tasks", nargs="+", default=["first", "array", "list", "lines", "documents", "decode"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="+", default=["tiktoken", "gigatoken", "rs-bpe", "tokenizers"])
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def hugging_face(pattern: str, ranks: dict[bytes, int]) -> Any:
    """The same vocabulary for `tokenizers`: every way to make a token of two tokens is a merge."""
    import tokenizers

    from soma_native import _core

    alphabet = _core.byte_alphabet()
    text = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        found = [(ranks[a], ranks[b], a, b) for a, b in parts if a in ranks and b in ranks]
        merges += [[text[a], text[b]] for _, _, a, b in sorted(found)]
    expression = PATTERNS[pattern].replace("$", r"\z").replace("{1,3}+", "{1,3}")
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "vocab": {text[t]: i for t, i in ranks.items()}, "merges": merges, "ignore_merges": True}
    document = {"version": "1.0", "added_tokens": [], "model": model, "decoder": level}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return tokenizers.Tokenizer.from_file(str(path))


class Contenders:
    """The tokenizers, made anew for each text, and the calls of each task."""

    def __init__(self, args: argparse.Namespace, pattern: str) -> None:
        self.args, self.pattern = args, pattern
        self.is_json = Path(args.vocab).suffix == ".json"
        lines = [] if self.is_json else Path(args.vocab).read_bytes().splitlines()
        self.ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
        self.made: dict[str, Any] = {}
        modules = {"rs-bpe": "rs_bpe"}
        peers = [n for n in args.peers if n == "tokenizers" or not self.is_json]
        self.names = ["soma_native"] + [n for n in peers if importlib.util.find_spec(modules.get(n, n))]

    def make(self, name: str) -> Any:
        """A tokenizer that has encoded no text."""
        if name == "soma_native":
            import soma_native

            if self.is_json:
                return soma_native.Tokenizer.load(self.args.vocab)
            return soma_native.Tokenizer.from_tiktoken(self.args.vocab, pattern=self.pattern)
        if name == "gigatoken":
            import gigatoken

            return gigatoken.Tokenizer.from_tiktoken(self.args.vocab, pretokenizer=self.pattern)
        if name == "rs-bpe":
            import rs_bpe

            return getattr(rs_bpe.openai, f"{self.pattern}_base")()
        if name == "tiktoken":
            import tiktoken

            return tiktoken.Encoding(
                self.pattern, pat_str=PATTERNS[self.pattern], mergeable_ranks=self.ranks, special_tokens={}
            )
        if self.is_json:
            import tokenizers

            return tokenizers.Tokenizer.from_file(self.args.vocab)
        return hugging_face(self.pattern, self.ranks)

    def tasks(self, text: str) -> dict[str, dict[str, Work]]:
        """Task -> contender -> the call to time."""
        batches = {
            "lines": text.splitlines(keepends=True),
            "documents": [text[i : i + 4096] for i in range(0, len(text), 4096)],
        }
        threads = self.args.threads
        t = {name: self.made.get(name) or self.make(name) for name in self.names}
        self.made = {name: one for name, one in t.items() if name not in ("soma_native", "gigatoken")}
        expected = t["soma_native"].encode(text)
        calls: dict[str, dict[str, Work]] = {task: {} for task in self.args.tasks}

        def add(task: str, name: str, work: Work) -> None:
            if task in calls and name in t:
                calls[task][name] = work

        def add_batches(name: str, encode: Callable[[list[str]], Any]) -> None:
            for task, batch in batches.items():
                add(task, name, partial(encode, batch))

        s = t["soma_native"]
        add("array", "soma_native", lambda: s.encode_array(text))
        add("list", "soma_native", lambda: s.encode(text))
        add_batches("soma_native", s.encode_batch)
        add("decode", "soma_native", lambda: s.decode(expected))
        if g := t.get("gigatoken"):
            check("gigatoken", g.encode(text).tolist(), expected)
            add("array", "gigatoken", lambda: g.encode(text))
            add_batches("gigatoken", lambda batch: g.encode_batch_list(batch, parallel=threads > 1))
            add("decode", "gigatoken", lambda: g.decode(expected))
        if k := t.get("tiktoken"):
            check("tiktoken", k.encode_ordinary(text), expected)
            add("array", "tiktoken", lambda: k.encode_to_numpy(text, disallowed_special=()))
            add("list", "tiktoken", lambda: k.encode_ordinary(text))
            add_batches("tiktoken", lambda batch: k.encode_ordinary_batch(batch, num_threads=threads))
            add("decode", "tiktoken", lambda: k.decode(expected))
        if r := t.get("rs-bpe"):
            check("rs-bpe", list(r.encode(text)), expected)
            add("list", "rs-bpe", lambda: r.encode(text))
            add("decode", "rs-bpe", lambda: r.decode(expected))
        if h := t.get("tokenizers"):
            check("tokenizers", h.encode(text).ids, expected)
            add_batches("tokenizers", lambda batch: [e.ids for e in h.encode_batch_fast(batch)])
        return calls

    def first(self, text: str) -> dict[str, Work]:
        """The first call on a text, for each contender with a cache; each is called once."""
        fresh = {name: self.make(name) for name in self.names if name in ("soma_native", "gigatoken")}
        for one in fresh.values():
            one.encode("warm")
        calls: dict[str, Work] = {"soma_native": lambda: fresh["soma_native"].encode_array(text)}
        if "gigatoken" in fresh:
            calls["gigatoken"] = lambda: fresh["gigatoken"].encode(text)
        return calls


def check(name: str, ids: list[int], expected: list[int]) -> None:
    """End the run if a peer gives other ids."""
    if ids != expected:
        at = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(expected))
        raise SystemExit(f"bench_bpe: {name} gives {ids[at : at + 5]} at token {at}, ours are {expected[at : at + 5]}")


def seconds(work: Work) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    os.environ.update(thread_environment(args.threads))  # before any library starts its threads
    os.environ.update(RAYON_NUM_THREADS=str(args.threads), TOKENIZERS_PARALLELISM=str(args.threads > 1).lower())
    pattern = args.pattern or Path(args.vocab).stem.split("_")[0]
    machine = machine_record(args.threads, None)
    print_machine(machine)
    contenders = Contenders(args, pattern)
    results: list[dict[str, Any]] = []
    rows = []
    for name in args.text:
        text = Path(name).read_bytes().decode("utf-8")
        megabytes = len(text.encode()) / 1e6
        tasks: dict[str, dict[str, Work]] = {"first": {}} if "first" in args.tasks else {}
        tasks |= {task: calls for task, calls in contenders.tasks(text).items() if task != "first"}
        for task, calls in tasks.items():
            rates: dict[str, list[float]] = {}
            for turn in range(args.rounds):
                calls = contenders.first(text) if task == "first" else calls
                for who in list(calls) if turn % 2 == 0 else reversed(list(calls)):
                    rates.setdefault(who, []).append(megabytes / seconds(calls[who]))
            for who in calls:
                ratio = pairwise(rates["soma_native"], rates[who]) if who != "soma_native" else None
                median = statistics.median(rates[who])
                results.append(
                    {
                        "workload": f"{pattern} {Path(name).name}",
                        "task": task,
                        "label": who,
                        "megabytes": megabytes,
                        "megabytes_per_second": median,
                        "rounds": rates[who],
                        "ours_over_this": {"soma_native": ratio} if ratio else {},
                    }
                )
                shown = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "-"
                rows.append([pattern, f"{Path(name).name} {megabytes:.1f} MB", task, who, f"{median:,.1f}", shown])
    print_table(["vocabulary", "text", "task", "contender", "MB/s", "we are x times"], rows)
    write_record(args.json, "bpe", machine, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
