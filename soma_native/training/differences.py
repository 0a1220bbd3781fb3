"""How a run differs from the one in its folder, said by the arguments that were given."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from soma_native.data.token_store import TokenStore
from soma_native.errors import ArgumentError, Difference
from soma_native.model.config import ModelConfig
from soma_native.tokenizer.formats.tokenizer_json import document_of
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import FREE_TO_CHANGE, LENGTHS, TrainConfig, settings_of_older_runs
from soma_native.training.layout import NUMBER_OF_STEPS, Layout
from soma_native.training.state import TrainingState

_PARTS_OF_LENGTH = {"momentum_steps", "averaged_from"}
_FOLLOW_LENGTH = {NUMBER_OF_STEPS, "eval_every", "warmup_steps"} | _PARTS_OF_LENGTH


def differences(layout: Layout, folder: str | os.PathLike[str], state: TrainingState) -> list[Difference]:
    """Every argument of `layout` that the run in `folder`, which stands at `state`, has otherwise."""
    here, there = layout.identity, complete(state.identity)
    other = {key for key in here.keys() | there.keys() if here.get(key) != there.get(key)}
    asked, begun = TrainConfig.to_dict(layout.config), {**settings_of_older_runs(), **state.config}
    length, length_there = _length(asked), _length(begun)
    if state.step > layout.total_steps and not other:
        return [Difference(length[0], f"done {state.step} steps", length[1])]
    found = [
        Difference(name, there["model"][name], value)
        for name, value in here["model"].items()
        if name in there["model"] and there["model"][name] != value  # the rest follows from the block
    ]
    if {"precision", "evaluation_precision"} & other:
        found.append(Difference("precision", precisions(there), precisions(here)))
    found += [
        Difference(name, begun[name], value)
        for name, value in asked.items()
        if name in other and name not in FREE_TO_CHANGE and begun[name] != value
    ]
    fixed = NUMBER_OF_STEPS in here.keys() | there.keys() or _PARTS_OF_LENGTH & other
    if fixed and _FOLLOW_LENGTH & other and length != length_there:
        name, count = length_there
        found.append(Difference(length[0], count if name == length[0] else f"{count} {name}", length[1]))
    if "teacher" in other:
        found.append(Difference("teacher", _teachers(there.get("teacher"), here["teacher"]), None))
    found += _of_the_data(layout, folder, there, other)
    return found or [Difference(key, there.get(key), here.get(key)) for key in sorted(other)]


def complete(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a saved run with the defaults of what was no setting when it was saved."""
    settings = {key: value for key, value in settings_of_older_runs().items() if key not in FREE_TO_CHANGE}
    for name in LENGTHS:
        del settings[name]
    model = ModelConfig.from_dict(identity["model"]).to_dict()
    return {**settings, "evaluation_precision": identity["precision"], **identity, "model": model}


def trained_on(store: TokenStore, identity: dict[str, Any]) -> bool:
    """Whether the run of this identity had these texts."""
    fraction = identity["val_fraction"]
    with contextlib.suppress(ArgumentError):  # too short to hold out a part
        return bool((store.split(fraction)[0] if fraction else store).fingerprint() == identity["training texts"])
    return False


def precisions(identity: dict[str, Any]) -> str:
    """What a run trains in, and what it validates in where that differs."""
    training, evaluation = identity["precision"], identity["evaluation_precision"]
    return str(training) if training == evaluation else f"{training}, and {evaluation} to validate"


def _teachers(there: list[str] | None, here: list[str] | None) -> str | None:
    """The teachers of a run, seen from a call that has others."""
    if there is None:
        return None
    count = "one" if len(there) == 1 else str(len(there))
    return count if here is None or len(here) != len(there) else "another" if len(there) == 1 else "others"


def _length(config: dict[str, Any]) -> tuple[str, float]:
    """The argument that says how long a run is, and its value."""
    for name in ("minutes", "steps"):
        if config[name] is not None:
            return name, config[name]
    return "epochs", TrainConfig(epochs=config["epochs"]).epochs_or_default


def _of_the_data(
    layout: Layout, folder: str | os.PathLike[str], there: dict[str, Any], other: set[str]
) -> list[Difference]:
    """Texts are compared as ids, so another tokenizer gives others."""
    if layout.config.end_of_document != there["end_of_document"]:  # other ids of the same texts
        return []
    held_out = layout.config.val_fraction or there["val_fraction"]
    names = [] if trained_on(layout.store, there) else ["texts"]
    names += ["validation"] if "validation texts" in other and not held_out else []
    if names and layout.tokenizer is not None and _other_tokenizer(layout.tokenizer, folder):
        return [Difference("tokenizer", "another", layout.tokenizer)]
    return [Difference(name, "other texts", None) for name in names]


def _other_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a run goes on without the model's files
        return document_of(Tokenizer.load(folder)._core, {}) != document_of(tokenizer._core, {})
    return False
