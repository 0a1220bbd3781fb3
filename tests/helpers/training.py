"""Shared by the tests of training: a corpus of short sentences, a tiny model, ways to compare two runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import soma_native as soma

NAMES = ["cat", "dog", "hen", "cow", "owl", "fox", "bee", "ant"]
SENTENCES = [f"the {a} saw the {b} and the {b} ran" + " away" * (i % 3) for i, a in enumerate(NAMES) for b in NAMES]
WORDS = soma.Tokenizer.train(SENTENCES, kind="word", vocab_size=30)


def make_model(seed: int = 0, block: str = "soma", **overrides: int) -> soma.Model:
    shape = {"vocab_size": WORDS.vocab_size, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_seq_len": 16}
    return soma.Model(soma.ModelConfig(**{**shape, **overrides}, block=block), seed=seed)


def make_trainer(model_seed: int = 0, **settings: Any) -> soma.Trainer:
    return soma.Trainer(make_model(model_seed), WORDS, soma.TrainConfig(**{"epochs": 3, "lr": 1e-2, **settings}))


def weights(model: soma.Model) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.parameters().items()}


def losses(history: soma.History) -> list[tuple[Any, ...]]:
    """The records without times and rates."""
    return [(r["epoch"], r["step"], r["train_loss"], r["val_loss"], r["lr"]) for r in history.records]


def at_step(step: int, action: Callable[[], object]) -> Callable[[soma.Event], None]:
    def callback(event: soma.Event) -> None:
        if event.kind == "step" and event.step == step:
            action()

    return callback


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
