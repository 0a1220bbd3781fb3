"""What recipes reach on the characters of a text: best and last loss over the whole validation set, in three seeds.

    python benchmarks/quality_recipes.py tinyshakespeare.txt --row 1.5e14
    python benchmarks/quality_recipes.py tinyshakespeare.txt --row small --seeds 1 --set dropout=0.1 weight_decay=0.5

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


MUON = {"optimizer": "muon", "schedule": "wsd", "cautious_decay": True, "warmup_steps": 100}
SMALL = {"d_ff": 344, "max_seq_len": 64}  # 0.81 million parameters
ROWS = {
    "1.5e14": Row("5m", {}, {**MUON, "steps": 2340, "batch_size": 8, "weight_decay": 0.5}),
    "3e14": Row("5m", {}, {**MUON, "steps": 4680, "batch_size": 8, "weight_decay": 0.5, "dropout": 0.1, "ema": 0.998}),
    "small": Row("1m", SMALL, {**MUON, "steps": 2000, "batch_size": 12, "weight_decay": 0.1}),
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args()


def train(text: str, row: Row, seed: int) -> dict[str, Any]:
    """One run."""
    tok = soma.Tokenizer.train([text], "char", special_tokens=())
    ids = tok.encode_array(text)
    cut = int(0.9 * len(text))
    parts = [soma.TokenStore.from_arrays([part.astype(np.uint8)]) for part in (ids[:cut], ids[cut:])]
    config = soma.ModelConfig.preset(row.preset, vocab_size=tok.vocab_size, **row.fields)
    settings = soma.TrainConfig(seed=seed, eval_every=max(1, row.settings["steps"] // 12), **row.settings)
    trainer = soma.Trainer(soma.Model(config, seed=seed), None, settings)
    began = time.perf_counter()
    history = trainer.fit(parts[0], validation=parts[1])
    tokens = row.settings["steps"] * settings.batch_size * config.max_seq_len
    assert history.best is not None
    return {
        "seed": seed, "best": history.best["val_loss"], "best_step": history.best["step"],
        "last": history.records[-1]["val_loss"], "train": history.records[-1]["train_loss"],
        "parameters": config.num_parameters, "flops": tokens * flops_per_token(config, config.max_seq_len),
        "epochs": tokens / cut, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def main() -> int:
    """Train with each seed, print a line for each."""
    args = arguments()
    soma.set_num_threads(args.threads)
    machine = machine_record(args.threads, None)
    print_machine(machine)
    row = ROWS[args.row]
    row.settings.update((name, json.loads(value)) for name, _, value in (word.partition("=") for word in args.set))
    text = args.text.read_text(encoding="utf-8")
    results = []
    for seed in args.seeds:
        done = train(text, row, seed)
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
