"""`train --resume`: the run in DIR goes on, unless the command line asks for anything that this run has otherwise."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from soma_native._checks import shown
from soma_native.cli.arguments import option_of
from soma_native.cli.corpus import named
from soma_native.cli.errors import CommandError, UsageError
from soma_native.cli.new_run import Run, existing_tokenizer, is_preset, recipe_settings, same_tokens
from soma_native.cli.tokenizer import train_on_files
from soma_native.data.documents import SPLITS, documents_of
from soma_native.data.token_store import TokenStore
from soma_native.errors import Difference, OtherRunError
from soma_native.model.config import ModelConfig
from soma_native.model.model import resolve_precision
from soma_native.model.presets import PRESETS
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import FREE_TO_CHANGE, TrainConfig
from soma_native.training.differences import complete, differences, precisions, trained_on
from soma_native.training.layout import Layout
from soma_native.training.phase import Phase
from soma_native.training.recipes import CLASSICS
from soma_native.training.state import read_state
from soma_native.training.trainer import Trainer

# The options that are settings of a run; --seq-len is the model's context.
_SETTINGS = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in FREE_TO_CHANGE | {"seq_len"}]
_SETTINGS.append("checkpoint_minutes")  # free to change


def resumed(arguments: argparse.Namespace, files: Sequence[Path]) -> Run:
    """The trainer of the run in DIR, with the options that were given, and the texts.

    Raises:
        OtherRunError: an option asks for another model, precision or tokenizer. `fit` compares the settings and texts.
    """
    given = {name: value for name in _SETTINGS if (value := getattr(arguments, name, None)) is not None}
    if arguments.recipe is not None:
        given = recipe_settings(CLASSICS[arguments.recipe][1], given)
    trainer = Trainer.resume(arguments.out, arguments.device, **given)
    if trainer.tokenizer is None:
        raise CommandError(
            f"{arguments.out}: its run has no tokenizer: the command goes on with texts alone, and only Python with ids"
        )
    end = trainer.config.end_of_document
    store = TokenStore.encode(documents_of(files, arguments.split), trainer.tokenizer, end)
    state, _ = read_state(arguments.out)
    identity = complete(state.identity)
    found = [*_of_the_model(arguments, trainer.model.config, identity)]
    found += _of_the_tokenizer(arguments, files, trainer, store, identity)
    if found:
        number = Phase(**(state.phase or {})).teacher
        layout = Layout(trainer.model, trainer.tokenizer, trainer.config, store, None, number=number)
        raise OtherRunError(Path(arguments.out), found + differences(layout, arguments.out, state))
    return Run(trainer, store, None)


def _of_the_model(arguments: argparse.Namespace, config: ModelConfig, identity: dict[str, Any]) -> Iterator[Difference]:
    preset, seq_len, precision = arguments.preset, arguments.seq_len, arguments.precision
    if preset is not None and not is_preset(config, preset):
        there = next((name for name in PRESETS if is_preset(config, name)), "a model of other sizes")
        yield Difference("preset", there, preset)
    if seq_len not in (None, config.max_seq_len):
        yield Difference("seq_len", config.max_seq_len, seq_len)
    begun = identity["precision"], identity["evaluation_precision"]
    if precision is not None and resolve_precision(precision, arguments.device) != begun:
        yield Difference("precision", precisions(identity), precision)


def _of_the_tokenizer(
    arguments: argparse.Namespace, files: Sequence[Path], trainer: Trainer, store: TokenStore, identity: dict[str, Any]
) -> Iterator[Difference]:
    tok, kind = trainer.tokenizer, arguments.tokenizer
    assert tok is not None  # as `resumed` has checked
    size, has = arguments.vocab_size, tok.vocab_size
    other = existing_tokenizer(arguments)
    if kind not in (None, tok.kind) if other is None else not same_tokens(tok, other):
        yield Difference("tokenizer", tok.kind if other is None else "another", kind)
    elif size is not None and size > has and trained_on(store, identity):  # the texts may have no more tokens
        has = train_on_files(files, arguments.split, tok.kind, size).vocab_size
    if size is not None and (tok.vocab_size > size or has != tok.vocab_size):
        yield Difference("vocab_size", tok.vocab_size, size)


def as_usage(arguments: argparse.Namespace, files: Sequence[Path], error: OtherRunError) -> UsageError:
    """The error in the words of the command line."""
    texts = Difference("texts", "other texts", None)
    if texts in error.differences and (split := _split_of_the_run(arguments, files)):
        at = error.differences.index(texts)
        error.differences[at] = Difference("split", split, arguments.split)

    def call(name: str, value: Any) -> str:
        if name == "texts":
            return named(arguments.corpus)
        if name == "teacher":  # the command has none to give
            return name
        return f"{option_of(arguments, name) or name} {shown(value) if isinstance(value, float) else value}"

    mend = (
        "Give what this run has, or leave the option out; to begin a new run, give another --out, or --overwrite in "
        "place of --resume"
    )
    if any(difference.name == "texts" for difference in error.differences):
        mend += f"; to train its model on other texts, give --from {arguments.out} and another --out"
    return UsageError(error.said(call, mend))


def _split_of_the_run(arguments: argparse.Namespace, files: Sequence[Path]) -> str | None:
    """Another --split with which the files give the texts of the run."""
    tok, identity = Tokenizer.load(arguments.out), complete(read_state(arguments.out)[0].identity)
    for split in SPLITS:
        if trained_on(TokenStore.encode(documents_of(files, split), tok, identity["end_of_document"]), identity):
            return split
    return None
