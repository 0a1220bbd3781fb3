"""Training step (forward, backward, clip, AdamW) in tokens/s: ours against PyTorch, alternating in one run.

python benchmarks/bench_train.py --workloads showcase nano-cpu --modes fp32-eager fp32-compile --json out.json
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
from dataclasses import replace
from typing import Any

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

from soma_native.model.config import BLOCKS

MODES = ("fp32-eager", "fp32-compile", "bf16-eager", "bf16-compile")
CHECKED_STEPS = 5
LOSS_TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}  # relative, over the checked steps, from the same weights
CURVE_TOLERANCE = 0.05  # relative, of the mean loss over the steps that two contenders of one model have in common
TOGETHER_BELOW = 50_000_000  # parameters up to which all contenders of a workload fit in memory at once


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=["showcase", "nano-cpu"])
    parser.add_argument("--modes", nargs="*", choices=MODES, default=["fp32-eager", "fp32-compile"], help="PyTorch's")
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32"], help="ours")
    parser.add_argument("--block", choices=BLOCKS, help="train this block instead of the workload's own")
    parser.add_argument("--batch", type=int, help="sequences of a step, instead of the workload's")
    parser.add_argument("--length", type=int, help="tokens of a sequence, instead of the workload's")
    parser.add_argument("--same-block", action="store_true", help="PyTorch trains our block too, not always gpt2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one contender's turn")
    parser.add_argument("--steps", type=int, help="steps of one turn, instead of --seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="hold both to this instruction set (avx2)")
    add_device(parser)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def start(args: argparse.Namespace, w: Workload, contender: str, mode: str) -> Worker:
    """A worker that trains w."""
    options = {"contender": contender, "workload": w.name, "block": w.config.block, "mode": mode, "lr": args.lr}
    options |= {"device": args.device, "batch": w.batch, "seq_len": w.seq_len}
    label = f"soma_native {mode}" if contender == "native" else f"torch {mode}"
    return Worker("train", label, options, args.threads, args.isa)


def check_losses(label: str, got: list[float], want: list[float], tolerance: float) -> float:
    """The largest relative difference of losses; too large a difference raises, and nothing is timed."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(got, want, strict=True))
    if not worst <= tolerance:
        raise WorkerError(f"{label}: losses {got} differ from the reference's {want} by {worst:.2e} > {tolerance:.0e}")
    return worst


def check_curve(label: str, losses: list[float]) -> None:
    """Raise if the timed steps did not learn, or a loss is not finite."""
    edge = max(1, min(10, len(losses) // 3))
    if not all(map(math.isfinite, losses)) or not statistics.mean(losses[-edge:]) < statistics.mean(losses[:edge]):
        raise WorkerError(f"{label}: the timed steps do not learn: {losses[:edge]} ... {losses[-edge:]}")


def measure(args: argparse.Namespace, ours: Workload, theirs: Workload, modes: list[str]) -> list[dict[str, Any]]:
    """Run our precisions and PyTorch's modes on one workload in turns; return a result for each contender."""
    workers: list[Worker] = []
    try:
        plans = [("native", p, ours) for p in args.precision] + [("torch", mode, theirs) for mode in modes]
        contenders = {}
        for contender, mode, w in plans:
            try:
                worker = start(args, w, contender, mode)
                workers.append(worker)
                contenders[worker.label] = (contender, mode, w, worker, worker.call(do="steps", n=CHECKED_STEPS))
            except WorkerError as error:
                if contender == "native":
                    raise
                print(f"left out: {error}", file=sys.stderr)
        workers = [entry[3] for entry in contenders.values()]
        checks = check_first_steps(args, ours, contenders)
        commands = {}
        for label, (_, _, _, worker, _) in contenders.items():
            probe = worker.call(do="steps", n=2)
            n = args.steps or max(1, round(args.seconds / (probe["seconds"] / 2)))
            commands[label] = {"do": "steps", "n": n}
        answers = alternate(workers, args.rounds, commands)
        results = []
        for label, (contender, mode, w, worker, first) in contenders.items():
            losses = first["losses"] + [x for answer in answers[label] for x in answer["losses"]]
            try:
                check_curve(label, losses)
            except WorkerError as error:
                if contender == "native":
                    raise
                print(f"left out, because its losses are wrong: {error}", file=sys.stderr)
                continue
            rates = [w.tokens * len(answer["losses"]) / answer["seconds"] for answer in answers[label]]
            results.append(
                {
                    "workload": w.name,
                    "shape": describe(w),
                    "label": label,
                    "contender": contender,
                    "mode": mode,
                    "parameters": worker.info["parameters"],
                    "tokens_per_second": statistics.median(rates),
                    "gflops": statistics.median(rates) * w.flops_per_token / 1e9,
                    "rounds": rates,
                    "steps_per_round": commands[label]["n"],
                    "peak_rss_mb": answers[label][-1]["peak_rss_mb"],
                    "check": checks.get(label),
                    "last_loss": losses[-1],
                    "losses": losses,
                }
            )
    finally:
        for worker in workers:
            worker.close()
    compare_curves(results)
    mine = [r for r in results if r["contender"] == "native"]
    for result in results:
        result["ours_over_this"] = {
            r["label"]: pairwise(r["rounds"], result["rounds"]) for r in mine if r is not result
        }
        del result["losses"]
    return results


def check_first_steps(args: argparse.Namespace, ours: Workload, contenders: dict[str, Any]) -> dict[str, Any]:
    """Compare our first losses with those of PyTorch's fp32 eager on the same model, weights and batches."""
    referee = contenders.get("torch fp32-eager")
    if referee is not None and referee[2] == ours:
        want = referee[4]["losses"]
    elif importlib.util.find_spec("torch") is not None:
        worker = start(args, ours, "torch", "fp32-eager")
        want = worker.call(do="steps", n=CHECKED_STEPS)["losses"]
        worker.close()
    else:
        print("PyTorch is not installed: losses are only checked to fall", file=sys.stderr)
        return {}
    return {
        label: {
            "against": f"torch fp32-eager, block {ours.config.block}",
            "steps": CHECKED_STEPS,
            "worst_relative_difference": check_losses(label, first["losses"], want, LOSS_TOLERANCE[mode]),
        }
        for label, (contender, mode, _, _, first) in contenders.items()
        if contender == "native"
    }


def compare_curves(results: list[dict[str, Any]]) -> None:
    """Contenders that train the same model must have the same mean loss over the same steps.

    All steps count, not only the last ones. The batches repeat, and a model that knows them by heart has a loss near
    0.02, which depends on rounding more than on training.
    """
    first = results[0]
    for other in results[1:]:
        n = min(len(first["losses"]), len(other["losses"]))
        if other["shape"] == first["shape"] and n >= 20:
            a, b = (statistics.mean(r["losses"][:n]) for r in (first, other))
            if abs(a - b) > CURVE_TOLERANCE * b:
                raise WorkerError(f"mean loss of {n} steps: {first['label']} {a:.4f}, {other['label']} {b:.4f}")


def report(results: list[dict[str, Any]]) -> None:
    """Print the table of one workload, then the ratio to the best peer."""
    mine = [r for r in results if r["contender"] == "native"]
    shape = mine[0]["shape"]
    sizes = ("vocab_size", "seq_len", "n_layers", "n_heads", "d_model", "d_ff", "batch")
    print(f"{shape['name']}: " + ", ".join(f"{key} {shape[key]}" for key in sizes))
    rows = []
    for r in results:
        ratios = [
            "-"
            if not (p := r["ours_over_this"].get(m["label"]))
            else f"{p['median']:.2f} ({p['min']:.2f}-{p['max']:.2f})"
            for m in mine
        ]
        rate, spread = f"{r['tokens_per_second']:,.0f}", f"{min(r['rounds']):,.0f}-{max(r['rounds']):,.0f}"
        block = f"{r['shape']['block']} {r['parameters']:,}"
        rows.append([r["label"], block, rate, spread, f"{r['gflops']:.0f}", f"{r['peak_rss_mb']:,.0f}", *ratios])
    header = ["contender", "block, parameters", "tokens/s", "range", "GFLOP/s", "peak MB"]
    print_table([*header, *(f"{m['label']} is x times" for m in mine)], rows)
    for m in mine:
        peers = [(r["ours_over_this"][m["label"]]["median"], r["label"]) for r in results if r["contender"] == "torch"]
        if peers:
            print(f"{m['label']}: {min(peers)[0]:.2f} times the best peer, {min(peers)[1]}")
    print(flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run, print, record."""
    args = arguments(argv)
    if args.modes and importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install torch==2.13.0): timing soma_native alone", file=sys.stderr)
        args.modes = []
    machine = machine_record(args.threads, args.isa, args.device)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    for name in args.workloads:
        w = WORKLOADS[name].as_block(args.block or WORKLOADS[name].config.block)
        ours = replace(w, batch=args.batch or w.batch, seq_len=args.length or w.seq_len)
        theirs = ours if args.same_block else ours.as_block("gpt2")
        together = describe(ours)["parameters"] < TOGETHER_BELOW
        groups = [args.modes] if together or not args.modes else [[mode] for mode in args.modes]
        for modes in groups:
            found = measure(args, ours, theirs, modes)
            report(found)
            results += found
    write_record(args.json, "train", machine, results)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorkerError as error:
        sys.exit(f"bench_train: {error}")
