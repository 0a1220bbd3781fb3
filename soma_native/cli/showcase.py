"""`soma-native showcase`: trains, saves, loads and samples a small model, and compares it with the reference."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from soma_native.checkpoint.folder import foreign_models, model_files
from soma_native.cli.arguments import add_command, add_device, fraction_type, seed_type
from soma_native.cli.errors import CommandError
from soma_native.cli.output import output_folder, print_json, print_table
from soma_native.cli.progress import ProgressDisplay
from soma_native.cli.signals import signals_as_ctrl_c
from soma_native.model.config import PRECISIONS
from soma_native.showcase.showcase import REPORT, SENTENCE_WORDS, comparison, run_showcase
from soma_native.training.recipes import VAL_FRACTION

OUT = "runs/showcase"


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "showcase",
        run,
        "train the showcase model, save it, load it, and generate samples",
        f"showcase --out {OUT} --seed 0",
        "Writes the model, report.json, history.csv, history.json and, if matplotlib is installed, loss.png into DIR.\n"
        "They replace the files of an earlier showcase.",
    )
    parser.add_argument("--out", default=OUT, metavar="DIR", help="the folder to write to (default: %(default)s)")
    parser.add_argument(
        "--seed", type=seed_type, default=0, metavar="N", help="of weights, order and samples (default: 0)"
    )
    parser.add_argument(
        "--tokenizer",
        choices=("word", "bpe"),
        default="word",
        help="kind of tokenizer (default: word, as the reference)",
    )
    parser.add_argument(
        "--val-fraction",
        type=fraction_type,
        nargs="?",
        const=VAL_FRACTION,
        default=0.0,
        metavar="X",
        help=f"keep this part of the sentences ({VAL_FRACTION} without X) from training and report its loss",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of matrix products (default: auto)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> None:
    """Train, and print the table and the samples."""
    with output_folder(arguments.out) as out, signals_as_ctrl_c(), ProgressDisplay(sys.stderr) as progress:
        if not (out / REPORT).exists() and (found := model_files(out) or foreign_models(out)):
            raise CommandError(f"{out}: holds a model of no showcase ({found[0]}): give another folder")
        report = run_showcase(
            arguments.out,
            seed=arguments.seed,
            val_fraction=arguments.val_fraction,
            callbacks=[progress],
            tokenizer=arguments.tokenizer,
            precision=arguments.precision,
            device=arguments.device,
        )
    if arguments.json:
        print_json(report)
        return
    print_table("", ("", "reference", "soma_native"), comparison(report))
    print(
        "\nreference: the NumPy program this project grew from, which trains on one pair at a time. Its losses and its"
        "\n40 to 60 minutes are from its own report, which does not name the machine."
    )
    length = f"at most {SENTENCE_WORDS} words, the length" if arguments.tokenizer == "word" else "up to the end"
    print(f"\nSamples from the saved folder, {length} of a sentence of the corpus:")
    for sample in report["samples"]:
        print(f"  {sample['prompt']!r}: {sample['text']}")
    print(
        "\nA loss this low means that the model knows its sentences by heart. For the loss on other sentences, use"
        "\n--val-fraction, which holds a tenth of the sentences out of the training."
    )
    print(
        f"\nThe model, report.json and the loss curve are in {arguments.out}; more text:"
        f' soma-native generate {arguments.out} "SOMA is"'
    )
