"""The whole way in one call: from texts to a trained model, its tokenizer and its history."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from soma_native._checks import number, path
from soma_native.checkpoint import load
from soma_native.data.documents import Texts
from soma_native.data.token_store import TokenStore
from soma_native.errors import ArgumentError
from soma_native.model.device import checked_device
from soma_native.model.model import Model
from soma_native.planning.corpus import survey
from soma_native.planning.plan import Plan, choose
from soma_native.planning.speed import measure_speed
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.against_floor import AgainstFloor
from soma_native.training.callbacks import Callback, CallbackLike, Event
from soma_native.training.history import History
from soma_native.training.memory import free_memory
from soma_native.training.recipes import VAL_FRACTION
from soma_native.training.samples import Samples
from soma_native.training.state import held_by
from soma_native.training.trainer import Trainer

LEAST_HELD_OUT = 16  # pairs of a validation that says which model is better

logger = logging.getLogger("soma_native")


class TellPlan(Callback):
    """Tells the plan when the run begins, so that it stands in `events.jsonl`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._told = False

    def on_start(self, event: Event) -> None:
        """Tell it, before the first step of all."""
        if not self._told:
            event.trainer.tell("plan", **self._plan.to_dict())
        self._told = True


def held_out(store: TokenStore) -> float:
    """The part to validate on: a tenth, or 0 where that has fewer than `LEAST_HELD_OUT` pairs."""
    try:
        _, part = store.split(VAL_FRACTION)
    except ValueError:
        return 0.0
    return VAL_FRACTION if int((part.stops - part.starts - 1).sum()) >= LEAST_HELD_OUT else 0.0


def train(
    texts: Texts,
    minutes: float | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
    callbacks: Iterable[CallbackLike] | CallbackLike = (),
) -> tuple[Model, Tokenizer, History]:
    """Train a model of `texts`, as the command does: `plan` chooses tokenizer, size and settings.

    Args:
        texts: the documents, as for `Trainer.fit`.
        minutes: of the whole call, above 0; None means what the corpus is worth, at most 10.
        out: folder to save into, with the history and, if matplotlib is installed, loss.png; None saves nothing, but
            what an error or Ctrl-C ends stays in a temporary folder, which a warning names.
        seed: of the weights and the order of the data.
        overwrite: whether a model or a run that is in `out` already is replaced.
        device: as for `Model`.
        callbacks: as for `Trainer.fit`.

    Returns:
        The model of the lowest validation loss, its tokenizer, and the history.

    Raises:
        TypeError, ValueError, FileNotFoundError, CheckpointError, KeyboardInterrupt: as `plan` and `Trainer.fit`; a
            ValueError also where `out` holds a model or a run and `overwrite` is False.
    """
    began = time.perf_counter()
    if minutes is not None:
        number("minutes", minutes, above=0)
    checked_device(device)
    if out is not None and not overwrite and (found := held_by(path("out", out, "folder"))):
        raise ArgumentError("out", f"holds {found}: give another folder, or overwrite=True")
    if isinstance(texts, Iterator):
        texts = list(texts)  # it is read three times
    others = callbacks if isinstance(callbacks, Iterable) else [callbacks]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(_scratch()) if out is None else out)
        plan = choose(
            survey(texts),
            measure_speed(device=device),
            minutes,
            {"seed": seed, "checkpoint_dir": folder},
            free_memory(device=device),
            device,
        )
        tokenizer = Tokenizer.train(texts, plan.tokenizer, plan.vocab_size)
        store = TokenStore.encode(texts, tokenizer, plan.training.end_of_document)
        store.require_pairs("texts")
        config = dataclasses.replace(plan.training, val_fraction=held_out(store))
        floor = [AgainstFloor(*store.split(config.val_fraction))] if config.val_fraction else []
        model = Model(dataclasses.replace(plan.model, vocab_size=tokenizer.vocab_size), seed=seed, device=device)
        trainer = Trainer(model, tokenizer, config, used=time.perf_counter() - began)
        prompts = store.split(config.val_fraction)[-1] if config.val_fraction else store
        history = trainer.fit(store, callbacks=[*floor, *others, TellPlan(plan), Samples(prompts)])
        if out is not None:
            history.plot_if_possible(folder / "loss.png")
        model, tokenizer = load(folder, device=device)
        history.checkpoint = None if out is None else history.checkpoint
        return model, tokenizer, history


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder for this block. It stays after an error or a Ctrl-C, if a run was saved there."""
    folder = tempfile.mkdtemp(prefix="soma-native-")
    keep = True
    try:
        yield folder
        keep = False
    finally:
        if keep and held_by(Path(folder)):
            logger.warning("what was trained is kept in %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
