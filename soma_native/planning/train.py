"""The whole way in one call: from texts to a trained model, its tokenizer and its history."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator

from soma_native._checks import number, path
from soma_native.checkpoint import load
from soma_native.data.documents import Texts
from soma_native.data.token_store import TokenStore
from soma_native.model.model import Model
from soma_native.planning.corpus import survey
from soma_native.planning.plan import Plan, choose
from soma_native.planning.speed import measure_speed
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.callbacks import Callback, CallbackLike, Event
from soma_native.training.config import TrainConfig
from soma_native.training.history import History
from soma_native.training.memory import free_memory
from soma_native.training.trainer import Trainer

_LEAST_LEFT = 0.02  # minutes: a run does some steps even where the start took all the time


def time_left(config: TrainConfig, seconds: float) -> TrainConfig:
    """The settings of a run whose start took so long already."""
    if config.minutes is None:
        return config
    return dataclasses.replace(config, minutes=max(_LEAST_LEFT, config.minutes - seconds / 60))


class TellPlan(Callback):
    """Tells the plan when the run begins, so that it stands in `events.jsonl`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def on_start(self, event: Event) -> None:
        """Tell it."""
        event.trainer.tell("plan", **self._plan.to_dict())


def train(
    texts: Texts,
    minutes: float | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    callbacks: Iterable[CallbackLike] | CallbackLike = (),
) -> tuple[Model, Tokenizer, History]:
    """Train a model of `texts`: `plan` chooses tokenizer, size and settings.

    Args:
        texts: the documents, as for `Trainer.fit`.
        minutes: of the whole call, above 0; None means what the corpus is worth, at most 10.
        out: folder to save into; None saves nothing.
        seed: of the weights and the order of the data.
        callbacks: as for `Trainer.fit`.

    Returns:
        The model of the lowest validation loss, its tokenizer, and the history.

    Raises:
        TypeError, ValueError, FileNotFoundError, CheckpointError, KeyboardInterrupt: as `plan` and `Trainer.fit`.
    """
    began = time.perf_counter()
    if minutes is not None:
        number("minutes", minutes, above=0)
    if isinstance(texts, Iterator):
        texts = list(texts)  # it is read three times
    with tempfile.TemporaryDirectory() as scratch:
        folder = scratch if out is None else path("out", out, "folder")
        plan = choose(survey(texts), measure_speed(), minutes, {"seed": seed, "checkpoint_dir": folder}, free_memory())
        tokenizer = Tokenizer.train(texts, plan.tokenizer, plan.vocab_size)
        store = TokenStore.encode(texts, tokenizer, plan.training.end_of_document)
        config = dataclasses.replace(plan.model, vocab_size=tokenizer.vocab_size)
        trainer = Trainer(Model(config, seed=seed), tokenizer, time_left(plan.training, time.perf_counter() - began))
        history = trainer.fit(store, callbacks=callbacks)
        return (*load(folder), history)
