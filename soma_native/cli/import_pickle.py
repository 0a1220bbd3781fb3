"""`soma-native import`: makes a folder of the model that the reference saved as a pickle."""

from __future__ import annotations

import argparse
from typing import Any

from soma_native.checkpoint import save
from soma_native.checkpoint.folder import foreign_models, model_files
from soma_native.checkpoint.soma_pickle import import_soma_pickle
from soma_native.cli.arguments import add_command
from soma_native.cli.errors import CommandError
from soma_native.cli.output import output_folder, print_json

_NOTES = """\
OLD.pkl is a file of the reference, such as soma_showcase_slm.pkl. It is read without running anything in it. A file
that names anything beside the reference's classes and NumPy's arrays is refused."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "import",
        run,
        "make a folder of a model that the reference saved as a pickle",
        "import soma_showcase_slm.pkl --out runs/old",
        _NOTES,
    )
    parser.add_argument("path", metavar="OLD.pkl", help="the file")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")


def run(arguments: argparse.Namespace) -> None:
    """Read the file, and save the model."""
    model, tok = import_soma_pickle(arguments.path)
    with output_folder(arguments.out) as out:
        if found := model_files(out) or foreign_models(out):
            raise CommandError(f"{out}: holds {found[0]}, which the import would replace: give another folder")
        save(out, model, tok)
    result = {"out": str(out), "parameters": model.num_parameters, "vocab_size": tok.vocab_size}
    if arguments.json:
        print_json(result)
    else:
        print(f"{out}: {model.num_parameters:,} parameters, {tok.vocab_size:,} words")
        print(f"try: soma-native generate {out} PROMPT")
