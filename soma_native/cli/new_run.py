"""How a run of `train` begins: its model, tokenizer and settings, from a folder, a classic recipe, or a plan."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from soma_native.checkpoint import load, load_model
from soma_native.checkpoint.folder import load_config
from soma_native.checkpoint.hf_config import json_to_config
from soma_native.cli.corpus import named
from soma_native.cli.errors import CommandError, UsageError
from soma_native.cli.tokenizer import train_on_files
from soma_native.data.documents import documents_of
from soma_native.data.token_store import TokenStore
from soma_native.errors import CheckpointError
from soma_native.files.atomic_folder import FolderView
from soma_native.files.untrusted import parse_json, read_regular
from soma_native.model.config import ModelConfig
from soma_native.model.device import checked_device
from soma_native.model.model import Model
from soma_native.model.presets import PRESETS
from soma_native.planning.corpus import survey
from soma_native.planning.plan import Plan, choose
from soma_native.planning.speed import measure_speed
from soma_native.planning.tokens import characters_per_token
from soma_native.planning.train import LEAST_HELD_OUT, held_out
from soma_native.tokenizer.formats.gpt2_folder import is_gpt2_folder
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.tokenizer.train import KINDS
from soma_native.training.config import TrainConfig
from soma_native.training.memory import free_memory
from soma_native.training.recipes import CLASSICS, RECIPES, Recipe
from soma_native.training.state import STATE_FILE, read_state
from soma_native.training.trainer import Trainer

# Options that are settings of the run, by the name of both.
SETTINGS = (
    "epochs", "steps", "minutes", "batch_size", "lr", "optimizer", "schedule", "dropout", "teachers", "patience",
    "max_eval_windows", "checkpoint_minutes", "seed", "sync_every",
)  # fmt: skip
_LENGTHS = {"epochs", "steps", "minutes"}
FROM_LR = 0.3  # share of the usual learning rate for a model that has learned already
FROM_CONTEXT = 256  # longest window of such a model, unless --seq-len says otherwise


class Run(NamedTuple):
    """A run that is to begin or to go on, its texts, and its plan if it is a new one that has one."""

    trainer: Trainer
    store: TokenStore
    plan: Plan | None


def new_run(arguments: argparse.Namespace, files: Sequence[Path]) -> Run:
    """The run that the options ask for. What they leave open, a recipe or the planner chooses."""
    began = time.perf_counter()
    checked_device(arguments.device)
    tokenizer = existing_tokenizer(arguments)
    base = _base(arguments, tokenizer)
    classic = None if base else classic_settings(arguments)
    plan = None
    if classic is not None:
        preset, recipe, config = classic
        if tokenizer is None:
            kind = arguments.tokenizer or recipe.tokenizer
            tokenizer = train_on_files(files, arguments.split, kind, arguments.vocab_size or recipe.vocab_size(kind))
        context = {} if arguments.seq_len is None else {"max_seq_len": arguments.seq_len}
        sizes = ModelConfig.preset(preset, vocab_size=tokenizer.vocab_size, **context)
    else:
        plan = _plan(arguments, files, _given(arguments), base, tokenizer)
        config = plan.training
        if base is not None:
            tokenizer = base[1]
        elif tokenizer is None:
            tokenizer = train_on_files(files, arguments.split, plan.tokenizer, plan.vocab_size)
        sizes = dataclasses.replace(plan.model, vocab_size=tokenizer.vocab_size)
    store = TokenStore.encode(documents_of(files, arguments.split), tokenizer, "auto")
    store.require_pairs(named(files))
    config = dataclasses.replace(
        config, checkpoint_dir=arguments.out, val_fraction=_val_fraction(arguments.val_fraction, store)
    )
    if config.patience is not None and not config.val_fraction:
        raise UsageError("--patience needs validation: give a --val-fraction above 0, or more text")
    if base is not None:
        model = base[0]
    else:
        model = Model(sizes, seed=config.seed, precision=arguments.precision or "auto", device=arguments.device)
    return Run(Trainer(model, tokenizer, config, used=time.perf_counter() - began), store, plan)


def planned(arguments: argparse.Namespace, files: Sequence[Path]) -> Plan:
    """The plan of the run that the options ask for; of a classic, what its recipe leads to on this machine."""
    checked_device(arguments.device)
    tokenizer = existing_tokenizer(arguments)
    base = _base(arguments, tokenizer)
    classic = None if base else classic_settings(arguments)
    if classic is None:
        return _plan(arguments, files, _given(arguments), base, tokenizer)
    preset, recipe, config = classic
    kind = arguments.tokenizer or recipe.tokenizer
    own = {"preset": preset, "tokenizer": kind, "vocab_size": recipe.vocab_size(kind)}
    given = {k: v for k, v in config.to_dict().items() if k not in ("checkpoint_dir", "seq_len", "val_fraction")}
    return _plan(arguments, files, own | given, None, tokenizer)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options give."""
    return {name: value for name in SETTINGS if (value := getattr(arguments, name, None)) is not None}


def classic_settings(arguments: argparse.Namespace) -> tuple[str, Recipe, TrainConfig] | None:
    """Preset, recipe and settings of the classic that --preset or --recipe names; None where the run is planned."""
    preset, recipe = arguments.preset, RECIPES.get(arguments.preset)
    if arguments.recipe is not None:
        usual, recipe = CLASSICS[arguments.recipe]
        preset = preset or usual
    return None if recipe is None else (preset, recipe, TrainConfig(**recipe_settings(recipe, _given(arguments))))


def recipe_settings(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe with those that are given. A given length takes the place of the recipe's."""
    left_out = set(_LENGTHS) if _LENGTHS & given.keys() else set()
    if given.get("optimizer", "adamw") != "adamw":
        left_out |= {"lr", "betas"}  # a recipe's are AdamW's
    return {name: value for name, value in recipe.settings().items() if name not in left_out} | given


def _plan(
    arguments: argparse.Namespace,
    files: Sequence[Path],
    given: dict[str, Any],
    base: tuple[Model, Tokenizer] | None,
    tokenizer: Tokenizer | None,
) -> Plan:
    fixed: dict[str, Any] = dict(given)
    for name in ("seq_len", "precision") if base else ("preset", "vocab_size", "seq_len", "precision"):
        if getattr(arguments, name) is not None:
            fixed[name] = getattr(arguments, name)
    if arguments.tokenizer in KINDS:
        fixed["tokenizer"] = arguments.tokenizer
    if base is not None:
        tokenizer = base[1]
        fixed["model"] = base[0].config
        fixed.setdefault("seq_len", min(FROM_CONTEXT, base[0].config.max_seq_len))
        fixed.setdefault("lr", FROM_LR * TrainConfig(optimizer=given.get("optimizer", "muon")).lr)
    if arguments.val_fraction is not None:
        fixed["val_fraction"] = arguments.val_fraction
    if tokenizer is not None:
        fixed |= {"tokenizer": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    minutes = fixed.pop("minutes", None)
    corpus = survey(documents_of(files, arguments.split))
    if tokenizer is not None:
        fixed["characters"] = characters_per_token(corpus, tokenizer.kind, tokenizer.vocab_size, tokenizer)
    speed = None
    if fixed.get("epochs") is None and fixed.get("steps") is None:
        speed = measure_speed(fixed.get("precision", "auto"), fixed.get("optimizer", "muon"), device=arguments.device)
        ranks = getattr(arguments, "ranks", 1)  # `plan` has none
        speed = dataclasses.replace(speed, flops=tuple(ranks * each for each in speed.flops))
    free = free_memory(device=arguments.device, ranks=getattr(arguments, "ranks_here", 1))
    return choose(corpus, speed, minutes, fixed, free, arguments.device)


def _base(arguments: argparse.Namespace, given: Tokenizer | None) -> tuple[Model, Tokenizer] | None:
    """The model and the tokenizer of --from; `given` is the tokenizer of --tokenizer FILE|DIR."""
    if arguments.source is None:
        return None
    source, precision = arguments.source, arguments.precision or "auto"
    if arguments.teachers:
        raise UsageError(f"--teachers cannot be given with --from {source}, whose model has learned already")
    if arguments.recipe is not None:
        raise UsageError(f"--recipe cannot be given with --from {source}, whose model has its sizes")
    if not os.path.isdir(source):
        raise CommandError(f"--from {source}: there is no such folder")
    how: dict[str, Any] = {
        "precision": precision,
        "device": arguments.device,
        "verify_config": _is_as_saved(Path(source)),
    }
    view = FolderView(Path(source))
    if not (os.path.lexists(view.path("tokenizer.json")) or is_gpt2_folder(view)):
        if given is None:
            raise CommandError(f"{source}: has no tokenizer: give the one of the model with --tokenizer FILE")
        model, tok = load_model(source, **how), given
        if tok.vocab_size > (most := model.config.vocab_size):
            raise UsageError(f"--tokenizer {arguments.tokenizer}: has {tok.vocab_size} tokens, and the model {most}")
    else:
        model, tok = load(source, **how)
    preset, size, other = arguments.preset, arguments.vocab_size, arguments.tokenizer
    if preset is not None and not is_preset(model.config, preset):
        raise UsageError(f"--preset {preset}: the model of {source} has other sizes: leave the option out")
    if size not in (None, tok.vocab_size):
        raise UsageError(f"--vocab-size {size}: the model of {source} has {tok.vocab_size}: leave the option out")
    if other not in (None, tok.kind) if given is None else not same_tokens(tok, given):
        raise UsageError(f"--tokenizer {other}: the model of {source} has another: leave the option out")
    return model, tok


def _is_as_saved(source: Path) -> bool:
    """Whether config.json is to be compared with its checksum: not where it was edited without effect.

    The state of a run tells what its model was.

    Raises:
        CommandError: config.json describes another model than the run trained.
    """
    try:
        load_config(source)
    except CheckpointError as error:
        path = FolderView(source).path("config.json")
        if error.path != str(path) or not os.path.lexists(FolderView(source).path(STATE_FILE)):
            raise
        there = json_to_config(parse_json(read_regular(path, 1 << 20), path), path).to_dict()
        trained = read_state(source)[0].identity["model"]
        changed = [
            f"{name} {there[name]} (trained with {value})" for name, value in trained.items() if there[name] != value
        ]
        if changed:
            raise CommandError(
                f"{path}: was changed since it was saved, and says {', '.join(changed)}: set it back"
            ) from None
        return False
    return True


def is_preset(config: ModelConfig, name: str) -> bool:
    """Whether a model has the preset's sizes; vocabulary and context stand for themselves."""
    own = {"vocab_size": config.vocab_size, "max_seq_len": config.max_seq_len}
    return ModelConfig(**{**PRESETS[name], **own}) == config


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers have one kind and one vocabulary."""

    def tokens(tok: Tokenizer) -> list[str]:
        return [tok.id_to_token(i) for i in range(tok.vocab_size)]

    return one.kind == other.kind and tokens(one) == tokens(other)


def existing_tokenizer(arguments: argparse.Namespace) -> Tokenizer | None:
    """The tokenizer of --tokenizer FILE|DIR; None for a kind."""
    given = arguments.tokenizer
    if given is None or given in KINDS:
        return None
    if not os.path.lexists(given):
        raise UsageError(
            f"--tokenizer {given}: is neither a kind ({', '.join(KINDS)}) nor a file or folder that exists"
        )
    if arguments.vocab_size is not None:
        raise UsageError(f"--vocab-size cannot be given with --tokenizer {given}, which has its vocabulary")
    return Tokenizer.load(given)


def _val_fraction(asked: float | None, store: TokenStore) -> float:
    if asked is not None:
        if asked:
            store.split(asked)  # raises for a bad fraction before a model is made
        return asked
    fraction = held_out(store)
    if not fraction:
        print(
            f"no validation: a tenth of the text has fewer than {LEAST_HELD_OUT} tokens to predict; give more text, or "
            "--val-fraction", file=sys.stderr,
        )  # fmt: skip
    return fraction
