"""`soma-native export`: writes a saved model as a file of another program."""

from __future__ import annotations

import argparse
from typing import Any

from soma_native.checkpoint import load
from soma_native.checkpoint.gguf import DTYPES, MODELFILE, export_gguf
from soma_native.cli.arguments import add_command
from soma_native.cli.errors import CommandError
from soma_native.cli.output import print_json

_NOTES = """\
gguf is the file of llama.cpp. ollama also writes a Modelfile beside it, for `ollama create NAME -f Modelfile`. Both
need the package gguf: pip install 'soma-native[gguf]'. Models of the blocks gpt2 and llama can be exported, with
tokenizers of the kinds char, byte and bpe."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "export",
        run,
        "write a saved model for llama.cpp or ollama",
        "export runs/mine --to gguf --out mine.gguf",
        _NOTES,
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the model")
    parser.add_argument("--to", required=True, choices=("gguf", "ollama"), help="the program that will run it")
    parser.add_argument("--out", required=True, metavar="PATH", help="the GGUF to write; an existing one is replaced")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="f16",
        help="type of matrices: f32 is exact, q8_0 the smallest (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and say how to run it."""
    model, tok = load(arguments.folder)
    for_ollama = arguments.to == "ollama"
    try:
        path = export_gguf(arguments.out, model, tok, arguments.dtype, modelfile=for_ollama)
    except ImportError as error:
        raise CommandError(str(error)) from None
    modelfile = path.with_name(MODELFILE) if for_ollama else None
    result = {
        "out": str(path),
        "to": arguments.to,
        "dtype": arguments.dtype,
        "parameters": model.num_parameters,
        "bytes": path.stat().st_size,
        "modelfile": modelfile and str(modelfile),
    }
    if arguments.json:
        print_json(result)
        return
    print(f"{path}: {model.num_parameters:,} parameters, {arguments.dtype}, {result['bytes']:,} bytes")
    print(f"try: ollama create {path.stem} -f {modelfile}" if for_ollama else f"try: llama-server -m {path}")
