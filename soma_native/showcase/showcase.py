"""The showcase: trains a model on its 400 sentences, saves it, loads it, generates samples and writes a report."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from importlib import resources
from typing import Any

from soma_native import _checks
from soma_native.checkpoint import load, save
from soma_native.core import _core
from soma_native.files.atomic_folder import replace_files
from soma_native.generation.generator import Generator
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import TrainConfig
from soma_native.training.recipes import RECIPES
from soma_native.training.trainer import Trainer
from soma_native.version import __version__

PROMPTS = ("SOMA is", "SOMA tokenization", "SOMA Cognitive", "What is SOMA?")
RECIPE = RECIPES["showcase"]
REPORT = "report.json"
SAMPLE_TOKENS = 64  # most tokens of a sample with a tokenizer of parts of words
# The sentences of the corpus have 13 words (14 of them have 3 or 4), and a window is one sentence. The model never
# learned a fourteenth word, so a sample ends after 13 words, prompt included.
SENTENCE_WORDS = 13
TEMPERATURE = 0.4  # at the generator's 0.7, one sample in four changes from one sentence of the corpus into another

# The reference's report on a corpus of the same size, the same model and prompts. It names only these two losses.
REFERENCE: dict[str, Any] = {
    "vocab_size": 576,
    "parameters": 771_968,
    "pairs": 4_666,
    "losses": {1: 6.2542, 20: 2.9922},
    "time": "40-60 min",
}


def corpus() -> list[str]:
    """The 400 sentences; each is a document."""
    text = resources.files("soma_native.showcase").joinpath("corpus.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def run_showcase(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    val_fraction: float = 0.0,
    callbacks: Callable[..., Any] | Any = (),
    tokenizer: str = "word",
    precision: str = "auto",
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, save, load and sample; write `report.json` into `out`, and return its content.

    Also writes the history, as `history.json`, `history.csv` and, if matplotlib is installed, `loss.png`.

    Args:
        out: the folder of the model and the report.
        seed: the seed of the weights, the order of the sentences, and the samples.
        val_fraction: part of the sentences held out of the training, whose loss is reported.
        callbacks: as for `Trainer.fit`.
        tokenizer: "word", as the reference's, or "bpe".
        precision: as for `Model`.
        device: as for `Model`.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    out = _checks.path("out", out, "folder")
    sentences = corpus()
    tok = Tokenizer.train(sentences, kind=tokenizer, vocab_size=RECIPE.vocab_size(tokenizer))
    model = Model(
        ModelConfig.preset("showcase", vocab_size=tok.vocab_size), seed=seed, precision=precision, device=device
    )
    fixed = {"seed": seed, "val_fraction": val_fraction, "end_of_document": None}  # no ends: the reference's pairs
    settings = TrainConfig(**RECIPE.settings() | fixed)
    trainer = Trainer(model, tok, settings)
    began = time.perf_counter()
    history = trainer.fit(sentences, callbacks=callbacks)
    train_seconds = time.perf_counter() - began
    save(out, model, tok)

    loaded, loaded_tok = load(out, device=device)  # from here on only the saved model is used
    generator = Generator(loaded, loaded_tok)
    samples = [{"prompt": prompt, "text": _sample(generator, loaded_tok, prompt, seed)} for prompt in PROMPTS]
    pairs = history.data["train"]["pairs"]
    report = {
        "vocab_size": loaded_tok.vocab_size,
        "parameters": loaded.num_parameters,
        "pairs": pairs,
        "sentences": len(sentences),
        "epochs": [
            {"epoch": r["epoch"], "train_loss": r["train_loss"], "val_loss": r["val_loss"]} for r in history.records
        ],
        "train_seconds": train_seconds,
        "tokens_per_second": pairs * RECIPE.epochs / train_seconds,
        "checkpoint_bytes": (out / "model.safetensors").stat().st_size,
        "samples": samples,
        "isa": _core.active_isa(),
        "threads": _core.get_num_threads(),
        "precision": model.precision,
        "evaluation_precision": model.evaluation_precision,
        "version": __version__,
    }
    with replace_files(out) as staging:
        (staging.path / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        history.to_json(staging.path / "history.json")
        history.to_csv(staging.path / "history.csv")
        history.plot_if_possible(staging.path / "loss.png")
    return report


def _sample(generator: Generator, tok: Tokenizer, prompt: str, seed: int) -> str:
    """A sentence that begins with the prompt."""
    if tok.kind == "word":
        return generator.generate(
            prompt, max_tokens=SENTENCE_WORDS - len(tok.encode(prompt)), temperature=TEMPERATURE, seed=seed
        )
    text = prompt
    for piece in generator.stream(
        prompt, max_tokens=SAMPLE_TOKENS - len(tok.encode(prompt)), temperature=TEMPERATURE, seed=seed
    ):
        text += piece
        if piece.endswith((".", "!", "?")):
            break
    return text


def comparison(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The rows (what, the reference's, ours) of the showcase's table."""
    rows = [
        ("vocabulary", f"{REFERENCE['vocab_size']:,}", f"{report['vocab_size']:,}"),
        ("parameters", f"{REFERENCE['parameters']:,}", f"{report['parameters']:,}"),
        ("training pairs", f"{REFERENCE['pairs']:,}", f"{report['pairs']:,}"),
    ]
    by_epoch = {record["epoch"]: record for record in report["epochs"]}
    validated = any(record["val_loss"] is not None for record in report["epochs"])
    for epoch in (1, 5, 10, 15, 20):
        record = by_epoch[epoch]
        theirs = REFERENCE["losses"].get(epoch)
        ours = f"{record['train_loss']:.4f}"
        if validated:
            ours += f" (held out: {record['val_loss']:.4f})"
        rows.append((f"loss, epoch {epoch}", "-" if theirs is None else f"{theirs:.4f}", ours))
    last = report["epochs"][-1]["train_loss"]
    rows += [
        ("perplexity at the end", f"{math.exp(REFERENCE['losses'][20]):.1f}", f"{math.exp(last):.2f}"),
        ("training time", REFERENCE["time"], f"{report['train_seconds']:.2f} s"),
        ("tokens per second", "-", f"{report['tokens_per_second']:,.0f}"),
        ("model.safetensors", "-", f"{report['checkpoint_bytes'] / 1e6:.2f} MB"),
    ]
    return rows
