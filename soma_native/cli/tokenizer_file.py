"""Loads the tokenizer of the argument PATH, in any of the formats that can be read."""

from __future__ import annotations

import argparse

from soma_native.cli.errors import UsageError
from soma_native.tokenizer.tokenizer import Tokenizer


def load_tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    """The tokenizer of PATH, --pattern, --special-token and --merges."""
    path, pattern = arguments.path, arguments.pattern
    if pattern is not None:
        return Tokenizer.from_tiktoken(path, pattern=pattern, special_tokens=dict(arguments.special_token))
    if arguments.special_token:
        raise UsageError("--special-token goes with --pattern, for a rank file of tiktoken")
    if arguments.merges is not None:
        return Tokenizer.from_gpt2(path, arguments.merges)
    if path.endswith(".tiktoken"):
        raise UsageError(f"{path}: a rank file of tiktoken does not say how texts are split: give --pattern")
    return Tokenizer.load(path)
