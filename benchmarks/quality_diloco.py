"""Local steps with outer ones (DiLoCo) against a sum of gradients in every step: the loss, and what a link would cost.

    python benchmarks/quality_diloco.py tinyshakespeare.txt --sync-every 0 20 100 --ranks 4

0 is a sum in every step. Ranks are threads of one process. Over a link of --delay and --rate, `link` are the seconds
that a rank would wait in all: nobody waits here. First 90% training, last 10% validation, as characters.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import machine_record, print_machine, write_record

import soma_native as soma
from soma_native.parallel.slow import SlowComm
from soma_native.parallel.threads import ThreadComm, run_ranks


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--sync-every", type=int, nargs="+", default=[0, 20, 100])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32, help="windows of all ranks together")
    parser.add_argument("--preset", default="1m")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of TrainConfig, as JSON")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds from one rank to another")
    parser.add_argument("--rate", type=float, default=100e6, help="bits a second of a link")
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args()


def train(args: argparse.Namespace, text: str, every: int, seed: int) -> dict[str, Any]:
    """One run on all ranks: its lowest and last validation loss, and what rank 0 would have sent and waited."""
    alphabet, ids = np.unique(np.array(list(text)), return_inverse=True)
    cut = len(ids) * 9 // 10
    parts = [soma.TokenStore.from_arrays([part.astype(np.uint32)]) for part in (ids[:cut], ids[cut:])]
    shape = soma.ModelConfig.preset(args.preset, vocab_size=len(alphabet), max_seq_len=args.context)
    given = {name: json.loads(value) for name, _, value in (each.partition("=") for each in args.set)}
    config = soma.TrainConfig(
        **{
            "steps": args.steps, "batch_size": args.batch_size, "optimizer": "muon", "schedule": "wsd",
            "eval_every": max(1, args.steps // 6), "seed": seed, "sync_every": every or None, **given,
        }
    )  # fmt: skip

    def work(comm: ThreadComm) -> dict[str, Any]:
        link = SlowComm(comm, args.delay, args.rate / 8, sleep=lambda seconds: None)
        history = soma.Trainer(soma.Model(shape, seed=seed), None, config, comm=link).fit(*parts)
        losses = [record["val_loss"] for record in history.records]
        return {"best": min(losses), "last": losses[-1], "megabytes": link.bytes / 1e6, "link": link.seconds}

    return run_ranks(args.ranks, work)[0]


def main() -> None:
    """Train each, print a line for each."""
    args = arguments()
    soma.set_num_threads(args.threads)
    machine = machine_record(args.threads, None)
    print_machine(machine)
    text = args.text.read_text(encoding="utf-8")
    runs = []
    for every in args.sync_every:
        for seed in args.seeds:
            found = {"sync_every": every, "seed": seed, **train(args, text, every, seed)}
            runs.append(found)
            print(
                "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True
            )
        best = [run["best"] for run in runs if run["sync_every"] == every]
        print(f"sync_every {every}: mean best {np.mean(best):.4f}, from {min(best):.4f} to {max(best):.4f}")
    write_record(args.json, "quality_diloco", machine, runs)


if __name__ == "__main__":
    main()
