"""Sixteen texts at once: soma.Engine beside one generate() after the other, and beside llama.cpp's batches; tokens/s.

    python benchmarks/bench_engine.py --workloads showcase 10m --rounds 7 --json out.json

Our figures are of whole texts, from the prompt to the last character, with top-k, top-p and repetition penalty.
llama.cpp (pip install xllamacpp gguf) is given the tokens, and each of its batches ends with logits: it neither samples
nor writes text. It reads the GGUF that export_gguf writes, in the format with as many bytes a weight. It has no soma
block, so beside it we run a GPT-2 of the same sizes. Our texts must be equal at once and one by one, and its logits
near ours, before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Worker,
    WorkerError,
    alternate,
    machine_record,
    pairwise,
    print_machine,
    print_table,
    write_record,
)

FORMATS = {"live": "f32", "float32": "f32", "bfloat16": "f16", "int8": "q8_0"}  # of as many bytes a weight
TOLERANCE = {"f32": 2e-3, "f16": 2e-2, "q8_0": 5e-2}  # of logits, norm-wise: llama.cpp keeps keys and values in F16


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["showcase", "10m"], help="names of presets")
    parser.add_argument("--weights", nargs="+", choices=list(FORMATS), default=["live", "bfloat16", "int8"])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold us to this instruction set")
    parser.add_argument("--no-peer", action="store_true", help="ours alone")
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, name: str, weights: str, folder: Path | None) -> list[dict[str, Any]]:
    """Run the contenders on one model in turns. With a folder for its file, llama.cpp is one of them."""
    work = {key: getattr(args, key) for key in ("sequences", "prompt", "tokens")}
    ours = {**work, "preset": name, "weights": weights, "peer_block": False}
    plans = {"soma_native one by one": ("alone", ours), "soma_native at once": ("together", ours)}
    form, workers = FORMATS[weights], {}
    at_once = "soma_native at once"
    try:
        for label, (_, options) in plans.items():
            workers[label] = Worker("engine", label, options, args.threads, args.isa)
        if folder is not None:
            at_once = "soma_native at once, beside llama.cpp"
            workers[at_once] = Worker("engine", at_once, {**ours, "peer_block": True}, args.threads, args.isa)
            path = str(folder / f"{name}-{form}.gguf")
            made = workers[at_once].call(do="export", path=path, form=form)
            options = {**work, "path": path, "context": made["context"], "vocab_size": made["vocab_size"]}
            workers["llama.cpp at once"] = Worker("llama-batch", "llama.cpp at once", options, args.threads)
            theirs = np.array(workers["llama.cpp at once"].call(do="logits", ids=made["ids"])["logits"])
            off = float(np.linalg.norm(theirs - made["logits"]) / np.linalg.norm(made["logits"]))
            if not off <= TOLERANCE[form]:
                raise WorkerError(f"llama.cpp: its logits for {form} differ from ours by {off:.2e}")
        found = {label: workers[label].call(do=task)["texts"] for label, (task, _) in plans.items()}
        if len(set(map(tuple, found.values()))) != 1:
            raise WorkerError("texts at once differ from texts one by one")
        commands = {label: {"do": plans[label][0] if label in plans else "together"} for label in workers}
        for label in workers:
            workers[label].call(**commands[label])
        answers = alternate(list(workers.values()), args.rounds, commands)
        total = args.sequences * args.tokens
        rates = {label: [total / answer["seconds"] for answer in answers[label]] for label in workers}
        return [
            {
                "workload": f"{name} {weights}",
                "task": f"{args.sequences} texts of {args.tokens} tokens after {args.prompt}",
                "label": label,
                "parameters": workers[label].info["parameters"],
                "tokens_per_second": statistics.median(rates[label]),
                "rounds": rates[label],
                "peak_rss_mb": answers[label][-1]["peak_rss_mb"],
                "ours_over_this": {}
                if label.startswith("soma_native at once")
                else {"at once": pairwise(rates[at_once if "llama" in label else "soma_native at once"], rates[label])},
            }
            for label in workers
        ]
    finally:
        for worker in workers.values():
            worker.close()


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    peer = not args.no_peer and bool(importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf"))
    if not peer and not args.no_peer:
        print("llama.cpp is not installed (pip install xllamacpp gguf): ours alone", file=sys.stderr)
    machine = machine_record(args.threads, args.isa)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.workloads:
            for weights in args.weights:
                found = measure(args, name, weights, Path(folder) if peer else None)
                rows = []
                for r in found:
                    over = r["ours_over_this"].values()
                    ratios = [f"{p['median']:.2f} ({p['min']:.2f}-{p['max']:.2f})" for p in over] or ["-"]
                    spread = f"{min(r['rounds']):,.0f}-{max(r['rounds']):,.0f}"
                    speed = f"{r['tokens_per_second']:,.0f}"
                    rows.append([r["label"], f"{r['parameters']:,}", speed, spread, *ratios])
                print(f"{found[0]['workload']}: {found[0]['task']}")
                print_table(["contender", "parameters", "tokens/s", "range", "at once is x times"], rows)
                print(flush=True)
                results += found
    write_record(args.json, "engine", machine, results)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorkerError as error:
        sys.exit(f"bench_engine: {error}")
