"""Generation of one sequence: prefill and decoding of 128 tokens, in tokens/s, beside llama.cpp if installed.

Contenders with the same bytes for each weight are compared.

    python benchmarks/bench_generate.py --workloads showcase gpt2-124m --rounds 7 --json out.json

llama.cpp (pip install llama-cpp-python gguf) has no soma block, so it runs a GPT-2 of the same sizes. Its logits are
compared with those of our gpt2 block with the same weights before anything is timed. As in llama-bench, tokens are
given and every step ends with logits. Our `sample` also chooses each token with top-k, top-p and repetition penalty.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from typing import Any

import numpy as np
from common import (
    WORKLOADS,
    Worker,
    WorkerError,
    Workload,
    add_device,
    alternate,
    describe,
    machine_record,
    pairwise,
    print_machine,
    print_table,
    write_record,
)

TASKS = ("prefill", "decode", "sample")
# Norm-wise relative difference to our float32. llama.cpp keeps its cache in F16 and rounds activations like weights.
LOGIT_TOLERANCE = {"F32": 1e-3, "F16": 1e-2, "BF16": 2e-2, "Q8_0": 3e-2, "float32": 1e-5, "bfloat16": 1e-2}
LOGIT_TOLERANCE |= {"int8": 3e-2}
BYTES = {"live": 4, "float32": 4, "F32": 4, "bfloat16": 2, "F16": 2, "BF16": 2, "int8": 1, "Q8_0": 1}  # a weight


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=["showcase", "gpt2-124m"])
    ours = ["live", "float32", "bfloat16", "int8"]
    theirs = ["F32", "F16", "BF16", "Q8_0"]
    parser.add_argument("--weights", nargs="+", choices=ours, default=["live", "bfloat16", "int8"], help="ours")
    parser.add_argument("--formats", nargs="*", choices=theirs, default=["F32", "F16", "Q8_0"], help="llama.cpp's")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one contender's turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold us to this instruction set")
    add_device(parser)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def difference(got: list[float], want: list[float]) -> float:
    """Norm-wise relative difference of two rows of logits."""
    a, b = np.array(got), np.array(want)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check(workers: dict[str, Worker], plans: dict[str, tuple[str, str, Workload]], ids: list[int]) -> dict[str, float]:
    """Compare the logits of every gpt2 block with our float32, on the same weights and tokens."""
    logits = {
        label: workers[label].call(do="logits", ids=ids)["logits"]
        for label, plan in plans.items()
        if plan[2].config.block == "gpt2"
    }
    exact = next((label for label in logits if plans[label][0] == "native" and BYTES[plans[label][1]] == 4), None)
    if exact is None:
        return {}
    found = {label: difference(row, logits[exact]) for label, row in logits.items() if label != exact}
    for label, off in found.items():
        if not off <= LOGIT_TOLERANCE[plans[label][1]]:
            raise WorkerError(f"{label}: its logits differ from those of {exact} by {off:.2e}")
    return found


def measure(args: argparse.Namespace, w: Workload, formats: list[str]) -> list[dict[str, Any]]:
    """Run all contenders on one workload in turns, task by task; return a result for each contender and task."""
    gpt2 = w.as_block("gpt2")
    plans: dict[str, tuple[str, str, Workload]] = {}
    for weights in args.weights:
        for shape in dict.fromkeys([w, gpt2] if formats else [w]):
            plans[f"soma_native {shape.config.block} {weights}"] = ("native", weights, shape)
    for form in formats:
        plans[f"llama.cpp gpt2 {form}"] = ("llama.cpp", form, gpt2)
    workers: dict[str, Worker] = {}
    ids = [
        int(i)
        for i in np.random.default_rng(3).integers(0, w.config.vocab_size, min(args.tokens, w.config.max_seq_len))
    ]
    results: list[dict[str, Any]] = []
    try:
        for label, (contender, mode, shape) in plans.items():
            options = {"contender": contender, "workload": w.name, "block": shape.config.block, "mode": mode}
            options["device"] = args.device
            workers[label] = Worker("decode", label, options, args.threads, args.isa)
        checks = check(workers, plans, ids)
        for task in args.tasks:
            able = [label for label in workers if task != "sample" or plans[label][0] == "native"]
            commands = {}
            for label in able:
                command: dict[str, Any] = {"do": task, "ids": ids}
                workers[label].call(**command)
                once = workers[label].call(**command)["seconds"]
                commands[label] = {**command, "repeat": max(1, round(args.seconds / once))}
            answers = alternate([workers[label] for label in able], args.rounds, commands)
            rates = {
                label: [len(ids) * commands[label]["repeat"] / answer["seconds"] for answer in answers[label]]
                for label in able
            }
            for label in able:
                mine = [
                    other
                    for other in able
                    if plans[other][0] == "native"
                    and other != label
                    and (plans[label][0] == "native" or BYTES[plans[other][1]] == BYTES[plans[label][1]])
                ]
                results.append(
                    {
                        "workload": w.name,
                        "shape": describe(plans[label][2]),
                        "task": task,
                        "label": label,
                        "parameters": workers[label].info["parameters"],
                        "tokens_per_second": statistics.median(rates[label]),
                        "rounds": rates[label],
                        "peak_rss_mb": answers[label][-1]["peak_rss_mb"],
                        "logits_difference": checks.get(label),
                        "ours_over_this": {other: pairwise(rates[other], rates[label]) for other in mine},
                    }
                )
    finally:
        for worker in workers.values():
            worker.close()
    return results


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    formats = args.formats if args.device == "cpu" else []  # llama.cpp runs on the processor here
    if formats and not (importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf")):
        print("llama.cpp is not installed (pip install llama-cpp-python gguf): ours alone", file=sys.stderr)
        formats = []
    machine = machine_record(args.threads, args.isa, args.device)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    for name in args.workloads:
        found = measure(args, WORKLOADS[name], formats)
        rows = []
        for r in found:
            over = r["ours_over_this"].items() if r["label"].startswith("llama") else ()
            ratios = [f"{other.split(' ', 1)[1]}: {p['median']:.2f}" for other, p in over]
            spread = f"{min(r['rounds']):,.0f}-{max(r['rounds']):,.0f}"
            cells = [f"{r['tokens_per_second']:,.0f}", spread, f"{r['peak_rss_mb']:,.0f}"]
            rows.append([r["label"], f"{r['parameters']:,}", r["task"], *cells, ", ".join(ratios) or "-"])
        tokens = min(args.tokens, WORKLOADS[name].config.max_seq_len)
        print(f"{name}: {tokens} tokens, one sequence")
        print_table(["contender", "parameters", "task", "tokens/s", "range", "peak MB", "we are x times"], rows)
        print(flush=True)
        results += found
    write_record(args.json, "generate", machine, results)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorkerError as error:
        sys.exit(f"bench_generate: {error}")
