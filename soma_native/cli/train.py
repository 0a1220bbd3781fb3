"""`soma-native train`: trains a model on the user's texts."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from soma_native.cli.arguments import add_command, number
from soma_native.cli.corpus import add_corpus, check_not_empty, corpus_files
from soma_native.cli.errors import PROGRAM, CommandError
from soma_native.cli.new_run import Run, new_run
from soma_native.cli.output import output_folder, print_json
from soma_native.cli.progress import ProgressDisplay
from soma_native.cli.ranks import join_ranks, run_of_all, say_of_ranks, say_where
from soma_native.cli.resume import as_usage, resumed
from soma_native.cli.run_options import add_run_options
from soma_native.cli.signals import signals_as_ctrl_c
from soma_native.errors import OtherRunError
from soma_native.planning.train import TellPlan
from soma_native.training.against_floor import AgainstFloor
from soma_native.training.callbacks import Callback
from soma_native.training.history import History, Record, bits_text
from soma_native.training.samples import Samples
from soma_native.training.state import RUN, held_by
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
for bit. DIR gets the model (with validation, the one of the lowest loss; after Ctrl-C the average of that moment, if
the loss still fell), its tokenizer, history.csv, history.json, events.jsonl (one JSON object a line, while it trains),
the state to resume from and, if matplotlib is installed, loss.png."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "train",
        run,
        "train a model on your own texts",
        "train my_text.txt --out my_model --minutes 4\n"
        f"  {PROGRAM} train more.txt --from my_model --out my_next_model\n"
        f"  {PROGRAM} train my_text.txt --tokenizer tokenizer.json --out another_model\n"
        f"  mpiexec -n 4 {PROGRAM} train my_text.txt --out my_model      # four processes: docs/machines.md",
        _NOTES,
    )
    add_corpus(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to save into")
    watching = add_run_options(parser)
    watching.add_argument(
        "--checkpoint-minutes",
        type=number(least=0),
        metavar="M",
        help="minutes between two saves; 0: at the end and at Ctrl-C alone (default: 5)",
    )
    existing = watching.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in DIR")
    existing.add_argument("--overwrite", action="store_true", help="replace the model or the run in DIR")


def run(arguments: argparse.Namespace) -> None:
    """Train, and print the result."""
    world = join_ranks()
    arguments.ranks = world.size
    if world.alone and arguments.sync_every is not None:
        print("--sync-every is for several ranks: here one process takes the outer steps", file=sys.stderr)
    if not world.alone and not arguments.resume and arguments.teachers is None:
        arguments.teachers = 0  # a plan may want some
    with world.watched(say_of_ranks), contextlib.ExitStack() as stack:
        say_where(world)
        arguments.ranks_here = len(world.by_machine(None)[0])  # beside rank 0, which plans
        files = world.together(lambda: _files(arguments))
        out = Path(arguments.out)
        world.together(lambda: stack.enter_context(_output_folder(arguments)) if world.first else None)
        stack.enter_context(signals_as_ctrl_c())
        try:
            run = run_of_all(world, lambda: _begin(arguments, files), arguments, files)
            trainer = run.trainer
            history = _fit(run, quiet=arguments.json, display=world.first)
        except OtherRunError as error:
            raise as_usage(arguments, files, error) from None
        if not world.first:
            return
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
    if history.best_teacher is not None:
        print(f"the best of its {len(history.teachers)} teachers: validation {history.best_teacher:.4f}")
    last = history.records[-1]
    if saved is not last:
        print(
            f"validation was lowest at {_when(saved, trainer)}; that is the model saved, not the last "
            f"({_when(last, trainer)}: loss {last['train_loss']:.4f}"
            + (")" if last["val_loss"] is None else f", validation {last['val_loss']:.4f}{bits_text(last)})")
        )
    for warning in history.warnings:
        print(f"warning: {warning}")


def _files(arguments: argparse.Namespace) -> list[Path]:
    files = corpus_files(arguments.corpus)
    check_not_empty(files)
    for file in files:
        if not file.is_file():
            raise CommandError(f"{file}: is not an ordinary file, and training reads its texts twice: write it to one")
    return files


@contextlib.contextmanager
def _output_folder(arguments: argparse.Namespace) -> Iterator[None]:
    with output_folder(arguments.out) as out:
        if not (arguments.resume or arguments.overwrite):
            _refuse_to_replace(out)
        yield


def _refuse_to_replace(out: Path) -> None:
    if found := held_by(out):
        mend = "--resume goes on with it, --overwrite replaces it"
        raise CommandError(f"{out}: holds {found}: {mend if found == RUN else 'give another folder, or --overwrite'}")


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


def _fit(run: Run, quiet: bool, display: bool) -> History:
    if not display:
        return run.trainer.fit(run.store)
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
        "teachers": [{name: record[name] for name in _AT} for record in history.teachers],
        "epochs": [{name: record[name] for name in _AT} for record in history.records],
    }
