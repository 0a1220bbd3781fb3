"""`soma-native train`: trains a model on the user's texts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from soma_native.checkpoint.folder import foreign_models, model_files
from soma_native.cli.arguments import add_command, add_device, fraction_type, integer, positive_type, seed_type
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files
from soma_native.cli.errors import PROGRAM, CommandError
from soma_native.cli.new_run import FROM_CONTEXT, FROM_LR, Run, new_run
from soma_native.cli.output import output_folder, print_json
from soma_native.cli.progress import ProgressDisplay
from soma_native.cli.resume import as_usage, resumed
from soma_native.cli.signals import signals_as_ctrl_c
from soma_native.errors import OtherRunError
from soma_native.files.atomic_folder import FolderView
from soma_native.model.config import PRECISIONS
from soma_native.model.presets import PRESETS
from soma_native.optim.schedule import SCHEDULES
from soma_native.planning.train import TellPlan
from soma_native.tokenizer.train import KINDS
from soma_native.training.against_floor import AgainstFloor
from soma_native.training.callbacks import Callback
from soma_native.training.config import OPTIMIZERS
from soma_native.training.history import History, Record, bits_text
from soma_native.training.recipes import CLASSICS, VAL_FRACTION
from soma_native.training.samples import Samples
from soma_native.training.state import STATE_FILE
from soma_native.training.trainer import Trainer

_AT: tuple[Literal["epoch", "step", "train_loss", "val_loss", "val_bits_per_byte"], ...] = (
    "epoch", "step", "train_loss", "val_loss", "val_bits_per_byte",
)  # fmt: skip

_NOTES = """\
With nothing but CORPUS and --out, a plan chooses tokenizer, model, settings and time (`plan` says it and trains
nothing); an option fixes what it names. --preset of a classic (showcase, improved, full, nano-cpu, baby, gpt2-124m) and
--recipe take the settings of that classic instead.

After an evaluation, every half minute at most, the model writes a line. A window never holds text of two documents.
While training, Ctrl-C saves a checkpoint and prints its place; the same command with --resume continues from it, bit
for bit. DIR gets the model (with validation, the one of the lowest loss), its tokenizer, history.csv, history.json,
events.jsonl (one JSON object a line, while it trains), the state to resume from and, if matplotlib is installed,
loss.png."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "train",
        run,
        "train a model on your own texts",
        "train my_text.txt --out my_model --minutes 4\n"
        f"  {PROGRAM} train more.txt --from my_model --out my_next_model\n"
        f"  {PROGRAM} train my_text.txt --tokenizer tokenizer.json --out another_model",
        _NOTES,
    )
    add_corpus(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to save into")
    model = parser.add_argument_group("the model and its tokenizer")
    model.add_argument(
        "--from", dest="source", metavar="DIR", help="train the model in this folder further; it stays as it is"
    )
    model.add_argument(
        "--tokenizer",
        metavar="KIND|FILE|DIR",
        help=f"a kind to train ({', '.join(KINDS)}), or a tokenizer that exists: tokenizer.json or its folder",
    )
    model.add_argument("--vocab-size", type=integer(2), metavar="N", help="most tokens of the vocabulary")
    model.add_argument("--preset", choices=tuple(PRESETS), help="size of the model; a classic one has its own recipe")
    model.add_argument("--recipe", choices=tuple(CLASSICS), help="settings of a classic, in the place of a plan")
    model.add_argument(
        "--seq-len",
        type=integer(1),
        metavar="N",
        help="tokens in a window, and the model's context; "
        f"with --from at most its context (default then: {FROM_CONTEXT}, or less if it is shorter)",
    )
    model.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of matrix products: float32, bfloat16, or auto: bfloat16 for training steps if the processor multiplies "
        "it faster, and float32 to validate (default: auto)",
    )
    add_device(model)
    training = parser.add_argument_group("the training")
    length = training.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=positive_type,
        metavar="M",
        help="time of the whole run; the plan makes the best of it (default: what the corpus is worth, at most 10)",
    )
    length.add_argument("--epochs", type=integer(1), metavar="N", help="times through the texts, instead of a time")
    length.add_argument("--steps", type=integer(1), metavar="N", help="optimizer steps, with ten validations")
    training.add_argument("--batch-size", type=integer(1), metavar="N", help="windows in a step")
    training.add_argument(
        "--lr",
        type=positive_type,
        metavar="X",
        help=f"highest learning rate (default: by plan or recipe; with --from, {FROM_LR} of the usual)",
    )
    training.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="muon: Muon for the matrices inside blocks, AdamW for the rest (default: muon, adamw in a classic recipe)",
    )
    training.add_argument(
        "--schedule",
        choices=SCHEDULES,
        help="course of the learning rate after its warm-up (default: wsd, cosine in a classic recipe)",
    )
    training.add_argument(
        "--dropout", type=fraction_type, metavar="X", help="part of the activations that is dropped (default: by plan)"
    )
    training.add_argument(
        "--seed", type=seed_type, metavar="N", help="seed of the weights and of the order of the texts (default: 0)"
    )
    watching = parser.add_argument_group("validation and saves")
    watching.add_argument(
        "--val-fraction",
        type=fraction_type,
        metavar="X",
        help=f"part held out to validate on (default: {VAL_FRACTION}, or 0 if the texts are too short)",
    )
    watching.add_argument(
        "--max-eval-windows",
        type=integer(1),
        metavar="N",
        help="most windows in a validation, evenly spread over the held-out part (default: all, which with few --steps "
        "can take longer than the training)",
    )
    watching.add_argument(
        "--patience",
        type=integer(1),
        metavar="N",
        help="validations without a lower loss that end the run, once its learning rate has fallen",
    )
    watching.add_argument(
        "--checkpoint-minutes", type=positive_type, metavar="M", help="minutes between two saves (default: 5)"
    )
    existing = watching.add_mutually_exclusive_group()
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
            run = _begin(arguments, files)
            trainer = run.trainer
            history = _fit(run, quiet=arguments.json)
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
    if history.compared is not None:
        print(f"beside what needs no training: {history.compared}")
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


def _begin(arguments: argparse.Namespace, files: Sequence[Path]) -> Run:
    try:
        return resumed(arguments, files) if arguments.resume else new_run(arguments, files)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted before the first step; nothing was saved") from None


def _callbacks(run: Run, progress: Callback, quiet: bool) -> list[Callback]:
    """The callbacks of the command; the display shows what the floor has measured."""
    fraction = run.trainer.config.val_fraction
    parts = run.store.split(fraction) if fraction else (run.store,)
    return [
        *([] if run.plan is None else [TellPlan(run.plan)]),
        *([AgainstFloor(*parts)] if fraction else []),
        progress,
        *([] if quiet else [Samples(parts[-1])]),
    ]


def _fit(run: Run, quiet: bool) -> History:
    if run.plan is not None and not quiet:
        print(run.plan, file=sys.stderr)
    try:
        with ProgressDisplay(sys.stderr) as progress:
            return run.trainer.fit(run.store, callbacks=_callbacks(run, progress, quiet))
    except KeyboardInterrupt:
        saved = run.trainer.history.checkpoint
        where = f"saved in {saved}; --resume goes on from there" if saved else "nothing was saved yet"
        raise KeyboardInterrupt(f"interrupted; {where}") from None


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
        "floor": None if history.floor is None else {**asdict(history.floor), "sentence": history.compared},
        "stop_reason": history.stop_reason,
        "warnings": history.warnings,
        "epochs": [{name: record[name] for name in _AT} for record in history.records],
    }
