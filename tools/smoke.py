"""Proves that an installed soma_native works: trains a tiny model, saves it, loads it and generates with it.

It runs on every built wheel, in an environment with the wheel and its dependencies alone.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

import soma_native as soma

TEXTS = ["the cat sits on the mat", "the dog sits on the rug", "a bird sings in the tree", "a fish swims in the sea"]


def main() -> int:
    """Train, save, load and generate once; return the exit status."""
    tokenizer = soma.Tokenizer.train(TEXTS, kind="word", vocab_size=64)
    config = soma.ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, d_ff=64, max_seq_len=16, block="soma"
    )
    model = soma.Model(config, seed=0)
    trainer = soma.Trainer(model, tokenizer, soma.TrainConfig(epochs=40, batch_size=4, lr=3e-3, seed=0))
    records = trainer.fit(TEXTS).records
    first, last = records[0]["train_loss"], records[-1]["train_loss"]
    print(f"loss {first:.3f} -> {last:.3f} in {len(records)} epochs, ISA {soma.active_isa()}")
    if not (math.isfinite(last) and last < 0.5 * first):
        print("the toy model did not learn")
        return 1
    said = soma.Generator(model, tokenizer).generate("the cat", max_tokens=4, temperature=0)
    with tempfile.TemporaryDirectory() as folder:
        soma.save(Path(folder) / "model", model, tokenizer)
        loaded, loaded_tokenizer = soma.load(Path(folder) / "model")
    again = soma.Generator(loaded, loaded_tokenizer).generate("the cat", max_tokens=4, temperature=0)
    print(f"generated: {said}")
    if again != said:
        print(f"after saving and loading it says something else: {again}")
        return 1
    for name, value in model.parameters().items():
        if not np.array_equal(value, loaded.parameters()[name]):
            print(f"{name} changed on its way through the file")
            return 1
    print(f"soma_native {soma.__version__} works")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
