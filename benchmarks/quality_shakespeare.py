"""nanoGPT's CPU recipe on tinyshakespeare's characters with our gpt2 block: loss over the whole validation set.

    python benchmarks/quality_shakespeare.py tinyshakespeare.txt

First 90% training, last 10% validation, 65 characters; 4 layers, d 128, 4 heads, T 64, batch 12, 2,000 steps; AdamW
lr 1e-3, betas 0.9 and 0.99, weight decay 0.1, clip 1; 100 steps of warm-up, cosine to a tenth; no dropout, seed 1337.
PyTorch reaches 1.9095 this way; seeds differ by about 0.01.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
from common import machine_record, print_machine, write_record

import soma_native as soma
from soma_native.model.config import BLOCKS

LENGTH, BATCH, WARM_UP = 64, 12, 100


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="path of tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--block", choices=BLOCKS, default="gpt2")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "auto"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="write the record here")
    return parser.parse_args(argv)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine from peak to a tenth of it at the last step (nanoGPT's train.py)."""
    if step < WARM_UP:
        return peak * (step + 1) / (WARM_UP + 1)
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def windows(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive windows over ids, without the last incomplete one: (N, 64) inputs and targets."""
    count = (len(ids) - 1) // LENGTH
    inputs, targets = ids[: count * LENGTH], ids[1 : count * LENGTH + 1]
    return inputs.reshape(count, LENGTH), targets.reshape(count, LENGTH)


def whole_loss(model: soma.Model, ids: np.ndarray) -> float:
    """Mean loss over every window of ids."""
    inputs, targets = windows(ids)
    total = sum(
        model.loss(inputs[i : i + 64], targets[i : i + 64], normalizer=1) for i in range(0, len(inputs), 64)
    )  # normalizer 1: the sum over the tokens
    return total / targets.size


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, print."""
    args = arguments(argv)
    soma.set_num_threads(args.threads)
    machine = machine_record(args.threads, None)
    print_machine(machine)
    text = Path(args.text).read_text(encoding="utf-8")
    alphabet = np.unique(np.array(list(text)))
    ids = np.searchsorted(alphabet, np.array(list(text))).astype(np.int32)
    cut = int(0.9 * len(ids))
    train, validation = ids[:cut], ids[cut:]
    config = soma.ModelConfig.preset("nano-cpu", vocab_size=len(alphabet), block=args.block)
    model = soma.Model(config, seed=args.seed, precision=args.precision)
    optimizer = soma.AdamW(model, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.1, max_grad_norm=1.0)
    rng = np.random.default_rng(args.seed)
    print(
        f"{len(alphabet)} characters, {len(train):,} for training, {len(windows(validation)[0]):,} windows of {LENGTH} "
        f"for validation; {args.block} block, {model.num_parameters:,} parameters, {model.precision}"
    )
    offsets = np.arange(LENGTH)
    curve: list[dict[str, float]] = []
    seconds = recent = 0.0
    for step in range(args.steps):
        begin = time.perf_counter()
        at = rng.integers(0, len(train) - LENGTH, BATCH)[:, None] + offsets
        recent += model.loss_and_grad(train[at], train[at + 1])
        optimizer.step(lr=learning_rate(step, args.steps, args.lr))
        seconds += time.perf_counter() - begin
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            print(f"step {step + 1:5d}  training loss {recent / (step % 100 + 1):.4f}  {seconds:7.1f} s", flush=True)
            recent = 0.0
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            loss = whole_loss(model, validation)
            curve.append({"step": step + 1, "validation_loss": loss, "seconds": seconds})
            print(f"step {step + 1:5d}  validation loss {loss:.4f}", flush=True)
    tokens = args.steps * BATCH * LENGTH
    print(f"\nvalidation loss {curve[-1]['validation_loss']:.4f} after {tokens:,} characters, training {seconds:.1f} s")
    result = {
        "workload": "tinyshakespeare",
        "label": f"soma_native {args.block} {args.precision}",
        "curve": curve,
        "tokens_per_second": tokens / seconds,
        **{name: getattr(args, name) for name in ("steps", "lr", "seed")},
    }
    write_record(args.json, "quality", machine, [result])
    return 0


if __name__ == "__main__":
    sys.exit(main())
