"""Scoring of a text: the log-probability of each token, in windows that overlap by half; tokens/s beside transformers.

    python benchmarks/bench_score.py text.txt --rounds 5 --json out.json

A gpt2 model of the sizes of a preset, with a tokenizer of the text and initial weights, is saved, and both sides load
the folder. Both read the same windows in batches, and compute logits of scored tokens alone. Our time is that of
Generator.score: it encodes the text and makes the lists, with ranks. transformers gets the text encoded. The
log-probabilities of both are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Worker, WorkerError, alternate, machine_record, pairwise, print_machine, print_table, write_record

import soma_native as soma
from soma_native.model.config import OPTIONS

MODES = ("fp32-eager", "fp32-compile", "bf16-eager", "bf16-compile")
TOLERANCE = {"float32": 1e-3, "fp32": 1e-3, "bfloat16": 5e-2, "bf16": 5e-2}  # nats, of one log-probability
CHECKED = 1000  # tokens


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a UTF-8 text")
    parser.add_argument("--characters", type=int, default=1_000_000, help="of the text that are scored")
    parser.add_argument("--preset", default="baby", help="sizes of the gpt2 model (default: baby, 10.7 million)")
    parser.add_argument("--tokenizer", choices=("char", "bpe"), default="bpe")
    parser.add_argument("--vocab-size", type=int, default=4096, help="of bpe")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="*", choices=MODES, default=["fp32-eager", "bf16-eager"], help="of the peer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold both sides to this instruction set")
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def make_model(args: argparse.Namespace, text: str, folder: Path) -> str:
    """Save a tokenizer of the text and a gpt2 model of the preset's sizes; return what the workload is."""
    size = {"vocab_size": args.vocab_size} if args.tokenizer == "bpe" else {}
    tok = soma.Tokenizer.train([text], kind=args.tokenizer, **size)
    config = soma.ModelConfig.preset(args.preset, vocab_size=tok.vocab_size)
    own: dict[str, Any] = dict.fromkeys(("tied_head", "activation", *OPTIONS))
    soma.save(folder, soma.Model(replace(config, block="gpt2", **own)), tok)
    return f"{args.preset}, {args.tokenizer} of {tok.vocab_size}"


def check(logprobs: dict[str, list[float]], modes: dict[str, str]) -> None:
    """Compare the log-probabilities of each contender with those of the first."""
    first, *others = logprobs
    for label in others:
        allowed = TOLERANCE[modes[label].partition("-")[0]] + TOLERANCE[modes[first].partition("-")[0]]
        off = float(np.abs(np.subtract(logprobs[label], logprobs[first])).max())
        if not off <= allowed:
            raise WorkerError(f"{label}: a log-probability differs from that of {first} by {off:.2e} nats")


def measure(args: argparse.Namespace, modes: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    """Run all contenders in turns; return a result for each."""
    text = Path(args.text).read_text(encoding="utf-8")[: args.characters]
    (folder / "text").write_text(text, encoding="utf-8")
    workload = make_model(args, text, folder / "model")
    workers: dict[str, Worker] = {}
    try:
        for label, mode in modes.items():
            options = {"contender": label.split()[0], "mode": mode}
            options |= {"folder": str(folder / "model"), "text": str(folder / "text")}
            workers[label] = Worker("score", label, options, args.threads, args.isa)
        warm = {label: worker.call(do="score", n=CHECKED) for label, worker in workers.items()}
        check({label: answer["logprobs"] for label, answer in warm.items()}, modes)
        commands: dict[str, dict[str, Any]] = {label: {"do": "score", "n": 0} for label in workers}
        answers = alternate(list(workers.values()), args.rounds, commands)
    finally:
        for worker in workers.values():
            worker.close()
    rates = {label: [answer["tokens"] / answer["seconds"] for answer in answers[label]] for label in workers}
    ours = [label for label in workers if label.startswith("soma_native")]
    return [
        {
            "workload": workload,
            "label": label,
            "parameters": workers[label].info["parameters"],
            "tokens": answers[label][0]["tokens"],
            "tokens_per_second": statistics.median(rates[label]),
            "rounds": rates[label],
            "peak_rss_mb": answers[label][-1]["peak_rss_mb"],
            "ours_over_this": {one: pairwise(rates[one], rates[label]) for one in ours if one != label},
        }
        for label in workers
    ]


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    modes = {f"soma_native {precision}": precision for precision in args.precisions}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        modes |= {f"transformers {mode}": mode for mode in args.modes}
    elif args.modes:
        print("transformers is not installed (pip install torch transformers): ours alone", file=sys.stderr)
    machine = machine_record(args.threads, args.isa)
    print_machine(machine)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, modes, Path(folder))
    rows = []
    for r in results:
        over = r["ours_over_this"].items() if r["label"].startswith("transformers") else ()
        ratios = [f"{one.split(' ', 1)[1]}: {p['median']:.2f}" for one, p in over]
        spread = f"{min(r['rounds']):,.0f}-{max(r['rounds']):,.0f}"
        cells = [f"{r['tokens_per_second']:,.0f}", spread, f"{r['peak_rss_mb']:,.0f}"]
        rows.append([r["label"], f"{r['parameters']:,}", *cells, ", ".join(ratios) or "-"])
    print(f"{results[0]['workload']}: {results[0]['tokens']:,} tokens")
    print_table(["contender", "parameters", "tokens/s", "range", "peak MB", "we are x times"], rows)
    write_record(args.json, "score", machine, results)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorkerError as error:
        sys.exit(f"bench_score: {error}")
