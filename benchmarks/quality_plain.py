"""The plain command against nanoGPT's CPU recipe in PyTorch, for the same minutes: bits a byte on the last tenth.

    python benchmarks/quality_plain.py novel.txt tinyshakespeare.txt --minutes 4
    python benchmarks/quality_plain.py poems.txt --minutes 4 --folds 5    # a rotation of the text for each fold

The peer: 4 layers, d 128, 4 heads, windows of 64 characters, batches of 12, AdamW lr 1e-3, betas 0.9 and 0.99, decay
0.1, clip 1, warm-up of 100 steps. Its cosine falls to a tenth over the whole time. The figure of each is its best of
ten validations on the last tenth of the characters, each model with windows of its own length; the last is beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Workload, machine_record, print_machine, write_record
from torch_peer import TorchTrainer

import soma_native as soma
from soma_native.analysis.floor import text_floor

LENGTH, BATCH, WARM_UP, PEAK = 64, 12, 100, 1e-3


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args()


def ours(text: str, minutes: float, seed: int, threads: int) -> dict[str, Any]:
    """What `soma-native train TEXT --minutes M` reports."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        began = time.perf_counter()
        command = [sys.executable, "-m", "soma_native", "train", path, "--out", f"{folder}/model", "--json"]
        command += ["--minutes", minutes, "--seed", seed]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        printed = subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, text=True, env=environment, cwd=folder
        ).stdout
        seconds = time.perf_counter() - began
        history = soma.History.from_json(f"{folder}/model/history.json")
    figures = [record["val_bits_per_byte"] for record in history.records if record["val_bits_per_byte"] is not None]
    parameters = json.loads(printed)["parameters"]
    return {"best": min(figures), "last": figures[-1], "seconds": seconds, "parameters": parameters}


def peer(vocab_size: int, seed: int, mode: str, threads: int) -> TorchTrainer:
    """The model and the optimizer of nanoGPT's CPU recipe in PyTorch, with our initial values."""
    config = soma.ModelConfig.preset("nano-cpu", vocab_size=vocab_size)
    weights = {name: array.copy() for name, array in soma.Model(config, seed=seed).parameters().items()}
    return TorchTrainer(Workload("nano-cpu", config, LENGTH, BATCH), mode, threads, PEAK, weights)


def peer_step(trainer: TorchTrainer, train: np.ndarray, rng: np.random.Generator, step: int, passed: float) -> None:
    """A step of that recipe, whose cosine has `passed` this part of its way."""
    rate = PEAK * (0.1 + 0.45 * (1 + math.cos(math.pi * passed)))
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
    at = rng.integers(0, len(train) - LENGTH, BATCH)[:, None] + np.arange(LENGTH)
    trainer.step(trainer.batch(train[at], train[at + 1]))


def nanogpt(text: str, minutes: float, seed: int, threads: int) -> dict[str, Any]:
    """nanoGPT's CPU recipe in PyTorch, float32, for this time with its validations."""
    alphabet, ids = np.unique(np.array(list(text)), return_inverse=True)
    ids = ids.astype(np.int64)
    cut = int(0.9 * len(ids))
    train, validation = ids[:cut], ids[cut:]
    trainer = peer(len(alphabet), seed, "fp32-eager", threads)
    per_byte = len(validation) / len("".join(alphabet[validation]).encode()) / math.log(2)
    rng = np.random.default_rng(seed)
    figures: list[float] = []
    seconds, step, began = 60 * minutes, 0, time.perf_counter()
    while (passed := (time.perf_counter() - began) / seconds) < 1:
        peer_step(trainer, train, rng, step, passed)
        step += 1
        if passed >= (len(figures) + 1) / 10:
            figures.append(per_byte * whole_loss(trainer, validation))
    figures.append(per_byte * whole_loss(trainer, validation))
    return {"best": min(figures), "last": figures[-1], "seconds": time.perf_counter() - began, "steps": step}


def whole_loss(trainer: TorchTrainer, ids: np.ndarray) -> float:
    """Mean loss over all pairs of ids, in windows side by side."""
    total = 0.0
    with torch.no_grad():
        for at in range(0, len(ids) - 1, 64 * LENGTH):
            part = ids[at : at + 64 * LENGTH + 1]
            whole = (len(part) - 1) // LENGTH * LENGTH
            for begin, end in ((0, whole), (whole, len(part) - 1)):
                if end > begin:
                    length = min(LENGTH, end - begin)
                    inputs, targets = part[begin:end].reshape(-1, length), part[begin + 1 : end + 1].reshape(-1, length)
                    loss = trainer.model(torch.from_numpy(inputs), torch.from_numpy(targets))
                    total += float(loss) * targets.size
    return total / (len(ids) - 1)


def main() -> int:
    """Train each text both ways, print a row for each."""
    args = arguments()
    machine = machine_record(args.threads, None)
    print_machine(machine)
    rows = []
    for path in args.texts:
        whole = path.read_text(encoding="utf-8")
        for fold in range(args.folds):
            turn = len(whole) * fold // args.folds
            text = whole[turn:] + whole[:turn]
            cut = int(0.9 * len(text))
            row = {"text": path.name, "fold": fold, "ours": ours(text, args.minutes, args.seed, args.threads)}
            row |= {"nanogpt": nanogpt(text, args.minutes, args.seed, args.threads)}
            floor = text_floor([text[:cut]], [text[cut:]])
            row |= {"ngram": floor.ngram, "xz": floor.xz}
            rows.append(row)
            lower = 100 * (1 - row["ours"]["best"] / row["nanogpt"]["best"])
            print(
                f"{path.name} fold {fold}: ours {row['ours']['best']:.4f} (last {row['ours']['last']:.4f}, "
                f"{row['ours']['seconds']:.0f} s), nanoGPT {row['nanogpt']['best']:.4f} (last "
                f"{row['nanogpt']['last']:.4f}, {row['nanogpt']['steps']:,} steps), {lower:.1f}% lower; "
                f"5-gram {floor.ngram:.4f}, xz {floor.xz:.4f}", flush=True,
            )  # fmt: skip
    write_record(args.json, "quality_plain", machine, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
