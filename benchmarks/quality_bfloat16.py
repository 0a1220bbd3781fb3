"""How closely training in bfloat16 follows training in float32: the same model, batches and schedule, step by step.

    python benchmarks/quality_bfloat16.py tinyshakespeare.txt --workloads nano-cpu baby --steps 500

It trains on the first 90% of the text, by characters. AdamW and schedule are those of quality_shakespeare.py. The exit
status is 1 if the mean loss of any 20 steps in a row differs by more than 0.5%.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import WORKLOADS, Workload, machine_record, print_machine, print_table, write_record
from quality_shakespeare import learning_rate

import soma_native as soma

SMOOTHED = 20  # steps whose mean loss is compared, because a single step also differs by chance
ALLOWED = 0.005  # relative


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="path of tinyshakespeare.txt")
    parser.add_argument("--workloads", nargs="+", choices=["nano-cpu", "baby"], default=["nano-cpu"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def train(w: Workload, ids: np.ndarray, precision: str, args: argparse.Namespace) -> np.ndarray:
    """The loss of every step."""
    model = soma.Model(w.config, seed=args.seed, precision=precision)
    optimizer = soma.AdamW(model, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=1.0)
    rng = np.random.default_rng(args.seed)
    losses = []
    for step in range(args.steps):
        at = rng.integers(0, len(ids) - w.seq_len, w.batch)[:, None] + np.arange(w.seq_len)
        losses.append(model.loss_and_grad(ids[at], ids[at + 1]))
        optimizer.step(lr=learning_rate(step, args.steps, args.lr))
    return np.array(losses)


def smooth(losses: np.ndarray) -> np.ndarray:
    """The mean of every SMOOTHED steps in a row, or of all steps if they are fewer."""
    n = min(SMOOTHED, len(losses))
    return np.convolve(losses, np.full(n, 1 / n), mode="valid")


def compare(w: Workload, ids: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Both curves, and their differences."""
    exact, rounded = (train(w, ids, precision, args) for precision in ("float32", "bfloat16"))
    apart = np.abs(smooth(rounded) - smooth(exact)) / smooth(exact)
    return {
        "workload": w.name,
        "label": "soma_native bfloat16 against float32",
        "steps": args.steps,
        "float32": exact.tolist(),
        "bfloat16": rounded.tolist(),
        "largest_difference": float(apart.max()),
        "last_difference": float(apart[-1]),
        "largest_difference_of_a_step": float((np.abs(rounded - exact) / exact).max()),
    }


def main(argv: list[str] | None = None) -> int:
    """Train in both precisions, compare, print."""
    args = arguments(argv)
    soma.set_num_threads(args.threads)
    machine = machine_record(args.threads, None)
    print_machine(machine)
    characters = np.array(list(Path(args.text).read_text(encoding="utf-8")))
    alphabet, ids = np.unique(characters, return_inverse=True)
    ids = ids[: int(0.9 * len(ids))].astype(np.int32)
    if len(alphabet) > 65:
        sys.exit(f"{args.text} has {len(alphabet)} different characters; the workloads' vocabulary is 65")
    results = [compare(WORKLOADS[name], ids, args) for name in args.workloads]
    rows = [
        [r["workload"], r["steps"], f"{smooth(np.array(r['float32']))[-1]:.4f}"]
        + [f"{smooth(np.array(r['bfloat16']))[-1]:.4f}"]
        + [f"{r[key]:.3%}" for key in ("last_difference", "largest_difference", "largest_difference_of_a_step")]
        for r in results
    ]
    print_table(
        ["workload", "steps", f"float32, last {SMOOTHED}", "bfloat16", "apart", "at most", "a single step"], rows
    )
    write_record(args.json, "quality_bfloat16", machine, results)
    return int(any(r["largest_difference"] > ALLOWED for r in results))


if __name__ == "__main__":
    sys.exit(main())
