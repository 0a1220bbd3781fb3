"""Time to nanoGPT's CPU loss on tinyshakespeare's characters: this library against that recipe in PyTorch, in turns.

    python benchmarks/quality_time.py tinyshakespeare.txt

The peer: nanoGPT's CPU recipe (see quality_plain.py), float32, 2,000 steps. Its time is that of the first of its
validations at or below the loss, which begin at half of its steps; else that of all steps. Ours: a run that is planned
to end at the loss, with its schedule complete. Validation over all windows of 64 of the last tenth; its time is not
counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import machine_record, print_machine, write_record
from quality_plain import LENGTH, WARM_UP, peer, peer_step, whole_loss

import soma_native as soma

STEPS = 2000  # of the peer
OURS = {
    "steps": 250, "batch_size": 12, "lr": 5e-3, "warmup_steps": 30, "weight_decay": 0.1, "optimizer": "muon",
    "schedule": "wsd", "cautious_decay": True,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="path of tinyshakespeare.txt")
    parser.add_argument("--loss", type=float, default=1.9095, help="nats a character (default: nanoGPT's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of TrainConfig, as JSON")
    parser.add_argument("--mode", default="fp32-eager", help="of PyTorch, as in bench_train.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args()


def ours(train: np.ndarray, validation: np.ndarray, vocab: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run with 0.81 million parameters."""
    config = soma.ModelConfig.preset("1m", vocab_size=vocab, d_ff=344, max_seq_len=LENGTH)
    trainer = soma.Trainer(soma.Model(config, seed=seed), None, soma.TrainConfig(seed=seed, **settings))
    began = time.perf_counter()
    trainer.fit(soma.TokenStore.from_arrays([train]))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "loss": trainer.evaluate(soma.TokenStore.from_arrays([validation]))}


def theirs(
    train: np.ndarray, validation: np.ndarray, vocab: int, seed: int, target: float, threads: int, mode: str
) -> dict[str, Any]:
    """nanoGPT's recipe in PyTorch; stops where its loss is reached."""
    trainer = peer(vocab, seed, mode, threads)
    rng = np.random.default_rng(seed)
    seconds = 0.0
    for step in range(STEPS):
        began = time.perf_counter()
        peer_step(trainer, train, rng, step, max(0.0, (step - WARM_UP) / (STEPS - WARM_UP)))
        seconds += time.perf_counter() - began
        if step + 1 >= STEPS // 2 and (step + 1) % (STEPS // 40) == 0:
            loss = whole_loss(trainer, validation)
            if loss <= target:
                break
    return {"seconds": seconds, "loss": loss, "steps": step + 1}


def main() -> int:
    """Both in turns with each seed; a row for each."""
    args = arguments()
    soma.set_num_threads(args.threads)
    machine = machine_record(args.threads, None)
    print_machine(machine)
    settings = OURS | {name: json.loads(value) for name, _, value in (word.partition("=") for word in args.set)}
    alphabet, ids = np.unique(np.array(list(args.text.read_text(encoding="utf-8"))), return_inverse=True)
    ids = ids.astype(np.int64)
    train, validation = np.split(ids, [int(0.9 * len(ids))])
    rows = []
    for seed in args.seeds:
        row: dict[str, Any] = {"seed": seed, "ours": ours(train, validation, len(alphabet), settings, seed)}
        row |= {"peer": theirs(train, validation, len(alphabet), seed, args.loss, args.threads, args.mode)}
        rows.append(row)
        print(
            f"seed {seed}: ours {row['ours']['loss']:.4f} after {row['ours']['seconds']:.2f} s, PyTorch "
            f"{row['peer']['loss']:.4f} after {row['peer']['seconds']:.1f} s ({row['peer']['steps']:,} steps): "
            f"{row['peer']['seconds'] / row['ours']['seconds']:.1f} times as long", flush=True,
        )  # fmt: skip
    write_record(args.json, "quality_time", machine, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
