"""What recipes reach on the characters of a text: best and last loss over the whole validation set, in three seeds.

    python benchmarks/quality_recipes.py tinyshakespeare.txt --row 1.5e14
    python benchmarks/quality_recipes.py tinyshakespeare.txt --row small --seeds 1 --set dropout=0.1 weight_decay=0.5
    python benchmarks/quality_recipes.py tinyshakespeare.txt --row 3e14 --keep runs            # stopped: goes on there
    python benchmarks/quality_recipes.py tinyshakespeare.txt --row 3e14 --seeds 5 --teachers runs/3e14-1 runs/3e14-2

With teachers, their loss together is said first: that of the mean of their probabilities. Their work counts.
First 90% training, last 10% validation, without an end token. Validation runs in float32 over all of it, in windows of
the model's context side by side. Floating-point operations: 6 x multiplied parameters (head included) and attention.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import machine_record, print_machine, write_record

import soma_native as soma
from soma_native.model.flops import flops_per_token


class Row(NamedTuple):
    """A preset with other fields, and the settings of its training."""

    preset: str
    fields: dict[str, Any]
    settings: dict[str, Any]


class Parts(NamedTuple):
    """The text as ids."""

    vocab_size: int
    training: soma.TokenStore
    validation: soma.TokenStore


MUON = {"optimizer": "muon", "schedule": "wsd", "cautious_decay": True, "warmup_steps": 100}
SMALL = {"d_ff": 344, "max_seq_len": 64}  # 0.81 million parameters
ROWS = {
    "1.5e14": Row("5m", {}, {**MUON, "steps": 2340, "batch_size": 8, "weight_decay": 0.5}),
    "3e14": Row("5m", {}, {**MUON, "steps": 4680, "batch_size": 8, "weight_decay": 0.5, "dropout": 0.1, "ema": 0.998}),
    "small": Row("1m", SMALL, {**MUON, "steps": 2000, "batch_size": 12, "weight_decay": 0.1, "decay_fraction": 1.0}),
    "small-long": Row(
        "1m", SMALL, {**MUON, "steps": 40000, "batch_size": 12, "weight_decay": 0.5, "dropout": 0.1, "ema": 0.999}
    ),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="path of tinyshakespeare.txt, or of another text")
    parser.add_argument("--row", choices=ROWS, default="1.5e14")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of TrainConfig, as JSON")
    parser.add_argument("--keep", type=Path, help="folder of checkpoints, ROW-SEED; a run that is there goes on")
    parser.add_argument("--teachers", type=Path, nargs="+", default=[], help="folders of models to learn from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args()


def train(args: argparse.Namespace, parts: Parts, seed: int, teachers: list[soma.Model]) -> dict[str, Any]:
    """One run, or the rest of it."""
    row = ROWS[args.row]
    config = soma.ModelConfig.preset(row.preset, vocab_size=parts.vocab_size, **row.fields)
    name = f"{args.row}-{seed}" + f"-of-{len(teachers)}" * bool(teachers)
    folder = None if args.keep is None else args.keep / name
    settings = {
        "eval_every": max(1, row.settings["steps"] // 12),
        **row.settings,
        "seed": seed,
        "checkpoint_dir": folder,
    }
    if folder is not None and (folder / "training_state.safetensors").exists():
        trainer = soma.Trainer.resume(folder)
    else:
        trainer = soma.Trainer(soma.Model(config, seed=seed), None, soma.TrainConfig(**settings))
    began = time.perf_counter()
    history = trainer.fit(parts.training, parts.validation, teacher=teachers or None)
    tokens = row.settings["steps"] * trainer.config.batch_size * config.max_seq_len
    passes = 1 + sum(flops_per_token(one.config, config.max_seq_len) for one in teachers) / 3 / flops_per_token(
        config, config.max_seq_len
    )  # a forward pass of a teacher is a third of a step
    assert history.best is not None
    return {
        "seed": seed, "best": history.best["val_loss"], "best_step": history.best["step"],
        "last": history.records[-1]["val_loss"], "train": history.records[-1]["train_loss"],
        "parameters": config.num_parameters, "flops": passes * tokens * flops_per_token(config, config.max_seq_len),
        "epochs": tokens / parts.training.pairs, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def together(teachers: list[soma.Model], ids: np.ndarray) -> float:
    """The loss of the mean of the models' probabilities over all pairs of ids."""
    length = teachers[0].config.max_seq_len
    total = 0.0
    for at in range(0, len(ids) - 1, 32 * length):
        part = ids[at : at + 32 * length + 1]
        whole = (len(part) - 1) // length * length
        for begin, end in ((0, whole), (whole, len(part) - 1)):
            if end > begin:
                inputs = part[begin:end].reshape(-1, min(length, end - begin))
                targets = part[begin + 1 : end + 1].reshape(inputs.shape)
                q: Any = sum(softmax(model.forward(inputs)) for model in teachers) / len(teachers)
                total -= float(np.log(np.take_along_axis(q, targets[..., None], -1)).sum())
    return total / (len(ids) - 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, in float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    probabilities: np.ndarray = e / e.sum(-1, keepdims=True)
    return probabilities


def main() -> int:
    """Train with each seed, print a line for each."""
    args = arguments()
    soma.set_num_threads(args.threads)
    machine = machine_record(args.threads, None)
    print_machine(machine)
    row = ROWS[args.row]
    row.settings.update((name, json.loads(value)) for name, _, value in (word.partition("=") for word in args.set))
    alphabet, ids = np.unique(np.array(list(args.text.read_text(encoding="utf-8"))), return_inverse=True)
    cut = int(0.9 * len(ids))
    stores = [soma.TokenStore.from_arrays([part.astype(np.uint32)]) for part in (ids[:cut], ids[cut:])]
    parts = Parts(len(alphabet), *stores)
    teachers = [soma.load_model(folder) for folder in args.teachers]
    if teachers:
        print(f"the teachers together: {together(teachers, ids[cut:].astype(np.int64)):.4f}", flush=True)
    results = []
    for seed in args.seeds:
        done = train(args, parts, seed, teachers)
        results.append({"row": args.row, "settings": row.settings, **done})
        print(
            f"{args.row} seed {seed}: best {done['best']:.4f} (step {done['best_step']:,}), last {done['last']:.4f}, "
            f"training {done['train']:.4f}; {done['parameters']:,} parameters, {done['flops']:.2e} operations, "
            f"{done['epochs']:.1f} epochs, {done['seconds'] / 60:.1f} minutes", flush=True,
        )  # fmt: skip
    write_record(args.json, "quality_recipes", machine, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
