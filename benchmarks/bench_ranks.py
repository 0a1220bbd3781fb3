"""Ranks of one core each against the threads of one process, in turns, with the same batch; tokens/s.

    python benchmarks/bench_ranks.py --workloads improved baby --rounds 7

Needs mpi4py, and an mpiexec beside this Python or on the path. Each turn is a run of its own. It reports the speed of
its second half; a rank keeps to one core. Both have as many cores as there are ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    WORKLOADS,
    isa_environment,
    machine_record,
    pairwise,
    print_machine,
    print_table,
    thread_environment,
    write_record,
)

import soma_native as soma


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["improved", "baby"], choices=list(WORKLOADS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of a turn; the first half is not timed")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "muon"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--isa")
    parser.add_argument("--json", help="write the record here")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    return parser.parse_args()


def turn(args: argparse.Namespace, name: str) -> None:
    """Train, and print tokens/s: as a rank where an mpiexec started this process, else alone."""
    comm = None
    if args.ranks > 1:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[comm.rank % len(cores)]})
    w = WORKLOADS[name]
    tokens = np.random.default_rng(7).integers(0, w.config.vocab_size, w.tokens * 8).astype(np.uint32)
    config = soma.TrainConfig(
        steps=args.steps, batch_size=w.batch, seq_len=w.seq_len, optimizer=args.optimizer, eval_every=args.steps // 2
    )
    model = soma.Model(w.config, precision=args.precision)
    history = soma.Trainer(model, None, config, comm=comm).fit(soma.TokenStore.from_arrays([tokens]))
    if comm is None or comm.rank == 0:
        print(
            json.dumps({"speed": history.records[-1]["tokens_per_second"], "loss": history.records[-1]["train_loss"]})
        )


def run_turn(args: argparse.Namespace, name: str, ranks: int) -> dict[str, float]:
    """A turn in processes of its own: so many ranks of one thread, or one process of as many threads."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    start = [] if ranks == 1 else [shutil.which("mpiexec", path=beside) or "mpiexec", "-n", str(ranks)]
    options = ["--steps", args.steps, "--optimizer", args.optimizer, "--precision", args.precision]
    environment = os.environ | thread_environment(args.ranks if ranks == 1 else 1) | isa_environment(args.isa)
    done = subprocess.run(
        [*start, sys.executable, __file__, "--turn", name, "--ranks", str(ranks), *map(str, options)],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure each workload in turns, and print a table."""
    args = arguments()
    if args.turn:
        turn(args, args.turn)
        return
    machine = machine_record(args.ranks, args.isa)
    print_machine(machine)
    results: list[dict[str, Any]] = []
    for name in args.workloads:
        speeds: dict[int, list[float]] = {1: [], args.ranks: []}
        losses = {}
        for number in range(args.rounds):
            for ranks in sorted(speeds, reverse=number % 2 == 1):
                answer = run_turn(args, name, ranks)
                speeds[ranks].append(answer["speed"])
                losses[ranks] = answer["loss"]
        ratio = pairwise(speeds[args.ranks], speeds[1])
        results.append(
            {"workload": name, "optimizer": args.optimizer, "ranks": speeds[args.ranks], "threads": speeds[1],
             "ratio": ratio, "losses": losses}
        )  # fmt: skip
        print_table(
            ["workload", f"{args.ranks} ranks", f"{args.ranks} threads", "ratio (range)", "losses"],
            [[
                name, *(f"{statistics.median(speeds[ranks]):,.0f}" for ranks in (args.ranks, 1)),
                f"{ratio['median']:.3f} ({ratio['min']:.3f}-{ratio['max']:.3f})",
                ", ".join(f"{losses[ranks]:.4f}" for ranks in (args.ranks, 1)),
            ]],
        )  # fmt: skip
    write_record(args.json, "bench_ranks", machine, results)


if __name__ == "__main__":
    main()
