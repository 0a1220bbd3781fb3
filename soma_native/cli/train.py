"""`soma-native train`: trains a model on the user's texts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from soma_native.checkpoint.folder import foreign_models, model_files
from soma_native.cli.arguments import add_command, fraction_type, integer, positive_type, seed_type
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files, named
from soma_native.cli.errors import CommandError
from soma_native.cli.output import output_folder, print_json
from soma_native.cli.progress import ProgressDisplay
from soma_native.cli.resume import as_usage, resumed
from soma_native.cli.signals import signals_as_ctrl_c
from soma_native.cli.tokenizer import train_on_files
from soma_native.data.documents import documents_of
from soma_native.data.token_store import TokenStore
from soma_native.errors import OtherRunError
from soma_native.files.atomic_folder import FolderView
from soma_native.model.config import PRECISIONS, ModelConfig
from soma_native.model.model import Model
from soma_native.optim.schedule import SCHEDULES
from soma_native.tokenizer.train import KINDS
from soma_native.training.config import OPTIMIZERS, TrainConfig
from soma_native.training.history import History, Record, bits_text
from soma_native.training.recipes import RECIPES, VAL_FRACTION
from soma_native.training.state import STATE_FILE
from soma_native.training.trainer import Trainer

DEFAULT_PRESET = "showcase"
_AT: tuple[Literal["epoch", "step", "train_loss", "val_loss", "val_bits_per_byte"], ...] = (
    "epoch", "step", "train_loss", "val_loss", "val_bits_per_byte",
)  # fmt: skip

_NOTES = """\
A window never holds text of two documents. While training, Ctrl-C saves a checkpoint and prints its place; the same
command with --resume continues from it, bit for bit. DIR gets the model (with validation, the one of the lowest loss),
its tokenizer, history.csv, history.json, the state to resume from and, if matplotlib is installed, loss.png."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "train",
        run,
        "train a model on your own texts",
        "train my_texts/ --out runs/mine --preset showcase --epochs 20",
        _NOTES,
    )
    add_corpus(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to save into")
    parser.add_argument("--preset", choices=tuple(RECIPES), help=f"size of the model (default: {DEFAULT_PRESET})")
    parser.add_argument("--tokenizer", choices=KINDS, help="kind of tokenizer (default: by preset)")
    parser.add_argument("--vocab-size", type=integer(2), metavar="N", help="most tokens (default: by preset)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=integer(1), metavar="N", help="times through the texts (default: by preset)")
    length.add_argument(
        "--steps", type=integer(1), metavar="N", help="optimizer steps instead of epochs, with ten validations"
    )
    parser.add_argument("--batch-size", type=integer(1), metavar="N", help="windows in a step (default: by preset)")
    parser.add_argument(
        "--seq-len",
        type=integer(1),
        metavar="N",
        help="tokens in a window, and the model's context (default: by preset)",
    )
    parser.add_argument(
        "--lr",
        type=positive_type,
        metavar="X",
        help="highest learning rate (default: by preset; 0.003 with --optimizer muon)",
    )
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="muon: Muon for the matrices inside blocks, AdamW for the rest (default: adamw)",
    )
    parser.add_argument(
        "--schedule", choices=SCHEDULES, help="course of the learning rate after its warm-up (default: cosine)"
    )
    parser.add_argument(
        "--val-fraction",
        type=fraction_type,
        metavar="X",
        help=f"part held out to validate on (default: {VAL_FRACTION}, or 0 if the texts are too short)",
    )
    parser.add_argument(
        "--max-eval-windows",
        type=integer(1),
        metavar="N",
        help="most windows in a validation, evenly spread over the held-out part (default: all, which with few --steps "
        "can take longer than the training)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of matrix products: float32, bfloat16, or auto: bfloat16 for training steps if the processor multiplies "
        "it faster, and float32 to validate (default: auto)",
    )
    parser.add_argument(
        "--checkpoint-minutes", type=positive_type, metavar="M", help="minutes between two saves (default: 5)"
    )
    parser.add_argument(
        "--seed", type=seed_type, metavar="N", help="seed of the weights and of the order of the texts (default: 0)"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in DIR")
    existing.add_argument("--overwrite", action="store_true", help="replace the model or the run in DIR")


def run(arguments: argparse.Namespace) -> None:
    """Train, and print the result."""
    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    for file in files:
        if not file.is_file():
            raise CommandError(f"{file}: is not an ordinary file, and training reads its texts twice: write it to one")
    with output_folder(arguments.out) as out, signals_as_ctrl_c():
        if not (arguments.resume or arguments.overwrite):
            _refuse_to_replace(out)
        try:
            trainer, store = resumed(arguments, files) if arguments.resume else _fresh(arguments, files)
            history = _fit(trainer, store)
        except OtherRunError as error:
            raise as_usage(arguments, files, error) from None
        history.plot_if_possible(out / "loss.png")  # without matplotlib the training still succeeds
    result = _result(trainer, history, arguments.out)
    if arguments.json:
        print_json(result)
        return
    saved = history.best or history.records[-1]
    validation = "" if result["val_loss"] is None else f", validation {result['val_loss']:.4f}{bits_text(saved)}"
    print(
        f"{arguments.out}: {result['parameters']:,} parameters, {result['vocab_size']:,} tokens; "
        f"after {_when(saved, trainer)}: loss {result['train_loss']:.4f}{validation}; "
        f"{result['seconds']:.1f} s"
    )
    last = history.records[-1]
    if saved is not last:
        print(
            f"validation was lowest at {_when(saved, trainer)}; that is the model saved, not the last "
            f"({_when(last, trainer)}: loss {last['train_loss']:.4f}"
            + (")" if last["val_loss"] is None else f", validation {last['val_loss']:.4f}{bits_text(last)})")
        )
    for warning in history.warnings:
        print(f"warning: {warning}")


def _refuse_to_replace(out: Path) -> None:
    if os.path.lexists(FolderView(out).path(STATE_FILE)):
        raise CommandError(f"{out}: holds a training run: --resume goes on with it, --overwrite replaces it")
    found = model_files(out) or [name for name in ("history.json", "history.csv") if os.path.lexists(out / name)]
    if found:
        raise CommandError(
            f"{out}: holds {found[0]}, which training would replace: give another folder, or --overwrite"
        )
    if found := foreign_models(out):
        raise CommandError(
            f"{out}: holds another model, {found[0]}: give another folder, or --overwrite to add this one"
        )


def _fit(trainer: Trainer, store: TokenStore) -> History:
    try:
        with ProgressDisplay(sys.stderr) as progress:
            return trainer.fit(store, callbacks=[progress])
    except KeyboardInterrupt:
        saved = trainer.history.checkpoint
        where = f"saved in {saved}; --resume goes on from there" if saved else "nothing was saved yet"
        raise KeyboardInterrupt(f"interrupted; {where}") from None


def _fresh(arguments: argparse.Namespace, files: Sequence[Path]) -> tuple[Trainer, TokenStore]:
    preset = arguments.preset or DEFAULT_PRESET
    recipe = RECIPES[preset]
    kind = arguments.tokenizer or recipe.tokenizer
    vocab_size = arguments.vocab_size or recipe.vocab_size(kind)
    tok = train_on_files(files, arguments.split, kind, vocab_size)
    config = _config(arguments, preset, tok.vocab_size)
    store = TokenStore.encode(documents_of(files, arguments.split), tok, "auto")
    store.require_pairs(named(files))
    seed = arguments.seed or 0
    lr = arguments.lr or (recipe.lr if arguments.optimizer in (None, "adamw") else None)  # presets' are AdamW's
    chosen: dict[str, Any] = {"lr": lr, "optimizer": arguments.optimizer, "schedule": arguments.schedule}
    settings = TrainConfig(
        epochs=None if arguments.steps else arguments.epochs or recipe.epochs,
        steps=arguments.steps,
        batch_size=arguments.batch_size or recipe.batch_size,
        seed=seed,
        val_fraction=_val_fraction(arguments.val_fraction, store),
        max_eval_windows=arguments.max_eval_windows,
        checkpoint_dir=arguments.out,
        checkpoint_minutes=arguments.checkpoint_minutes or TrainConfig.checkpoint_minutes,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return Trainer(Model(config, seed=seed, precision=arguments.precision or "auto"), tok, settings), store


def _config(arguments: argparse.Namespace, preset: str, vocab_size: int) -> ModelConfig:
    context = {} if arguments.seq_len is None else {"max_seq_len": arguments.seq_len}
    return ModelConfig.preset(preset, vocab_size=vocab_size, **context)


def _val_fraction(asked: float | None, store: TokenStore) -> float:
    if asked is not None:
        if asked:
            store.split(asked)  # raises for a bad fraction before a model is made
        return asked
    try:
        store.split(VAL_FRACTION)
    except ValueError:
        print("too little text to hold out a part: no validation", file=sys.stderr)
        return 0.0
    return VAL_FRACTION


def _when(record: Record, trainer: Trainer) -> str:
    step = f"step {record['step']}"
    return step if trainer.config.steps else f"epoch {record['epoch']}, {step}"


def _result(trainer: Trainer, history: History, out: str) -> dict[str, Any]:
    last, saved = history.records[-1], history.best or history.records[-1]
    return {
        "out": out,
        "parameters": trainer.model.num_parameters,
        "vocab_size": trainer.model.config.vocab_size,
        "pairs": history.data["train"]["pairs"],
        **{name: saved[name] for name in _AT},
        "seconds": last["seconds"],
        "tokens_per_second": last["tokens_per_second"],
        "precision": trainer.model.precision,
        "evaluation_precision": trainer.model.evaluation_precision,
        "stop_reason": history.stop_reason,
        "warnings": history.warnings,
        "epochs": [{name: record[name] for name in _AT} for record in history.records],
    }
