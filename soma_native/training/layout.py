"""The plan of a training run, made before its first step: data, order, number of steps, schedule and identity."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from typing import Any

from soma_native._checks import shown
from soma_native.data.documents import Texts
from soma_native.data.samplers import EpochSampler, RandomSampler, Sampler
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.errors import ArgumentError
from soma_native.model.model import Model, as_teachers
from soma_native.optim.schedule import Schedule
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import FREE_TO_CHANGE, TrainConfig

logger = logging.getLogger("soma_native")

NUMBER_OF_STEPS = "number of steps (epochs or steps)"  # the key in an identity, and so in files
_MOMENTUM, _MOMENTUM_STEPS = (0.85, 0.95), 200


class Layout:
    """The data and the settings of a run with every default filled in.

    Attributes:
        model, tokenizer, config: the arguments.
        store: all texts, before a part of them is held out.
        sampler: gives the batches of each step.
        validation: the windows of the validation data, or None.
        total_steps, eval_every: optimizer steps in all, and between two records of the history.
        schedule: the learning rate of each step.
        teachers: models whose probabilities the run learns from; none without `teacher`.
        momentum_steps: over which Muon's momentum rises.
        averaged_from: steps before the first whose weights are in the average, where there is one.
        data: counts of the data by part, for the history.
        identity: the settings and data that must be equal in a resumed run; `differences` compares two of them.

    Raises:
        TypeError, ValueError: the data or a setting does not fit. The message names it.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        config: TrainConfig,
        texts: Texts | TokenStore,
        validation: Texts | TokenStore | None,
        teacher: Model | Iterable[Model] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._seq_len = model.config.max_seq_len if config.seq_len is None else config.seq_len
        self.teachers = () if teacher is None else as_teachers("teacher", teacher, model, self._seq_len)
        if teacher is not None and not self.teachers:
            raise ArgumentError("teacher", "has no model: give one or several, or None to train without a teacher")
        self.store = TokenStore.encode(texts, tokenizer, config.end_of_document)
        train, held_out = _parts(self.store, tokenizer, config, validation)
        self.sampler: Sampler
        windows = Windows(train, self._seq_len)
        if config.sampling == "random":
            self.sampler = RandomSampler(train, self._seq_len, config.batch_size, config.seed, config.grad_accumulation)
        else:
            self.sampler = EpochSampler(windows, config.batch_size, config.seed, config.grad_accumulation)
        self.validation = None if held_out is None else Windows(held_out, self._seq_len)
        self.data = {"train": _count("train", windows)}
        if self.validation is not None:
            self.data["validation"] = _count("validation", self.validation)

        per_epoch = self.sampler.steps_per_epoch
        self.total_steps = config.epochs_or_default * per_epoch if config.steps is None else config.steps
        default_eval_every = per_epoch if config.steps is None else -(-self.total_steps // 10)
        self.eval_every = default_eval_every if config.eval_every is None else config.eval_every
        warmup = min(100, self.total_steps // 10) if config.warmup_steps is None else config.warmup_steps
        self.schedule = Schedule(
            config.lr, self.total_steps, warmup, config.min_lr, config.schedule, config.decay_fraction
        )
        self.momentum_steps = min(_MOMENTUM_STEPS, self.total_steps // 10)
        tail = 1.0 if config.tail_average is None else config.tail_average
        self.averaged_from = self.total_steps - max(1, round(tail * self.total_steps))
        self.identity = self._identity(model, config, train, held_out)

    def _identity(
        self, model: Model, config: TrainConfig, train: TokenStore, held_out: TokenStore | None
    ) -> dict[str, Any]:
        settings = {key: value for key, value in config.to_dict().items() if key not in FREE_TO_CHANGE}
        del settings["epochs"], settings["steps"]
        settings |= {
            "seq_len": self._seq_len,
            "eval_every": self.eval_every,
            "warmup_steps": self.schedule.warmup_steps,
            "model": model.config.to_dict(),
            "precision": model.precision,
            "evaluation_precision": model.evaluation_precision,
            "training texts": train.fingerprint(),
            "validation texts": None if held_out is None else held_out.fingerprint(),
            "teacher": [_fingerprint(teacher) for teacher in self.teachers] or None,
        }
        if config.optimizer == "muon":
            settings["momentum_steps"] = self.momentum_steps
        if config.tail_average is not None:
            settings["averaged_from"] = self.averaged_from
        if config.schedule != "constant":  # at a constant rate, a longer run begins like a shorter one
            settings[NUMBER_OF_STEPS] = self.total_steps
        identity: dict[str, Any] = json.loads(json.dumps(settings))  # with the types of one that was read from a file
        return identity

    def momentum(self, step: int) -> float:
        """Muon's momentum in step `step`, counted from 0."""
        low, high = _MOMENTUM
        return high if step >= self.momentum_steps else low + (high - low) * step / self.momentum_steps


def _fingerprint(model: Model) -> str:
    digest = hashlib.blake2b(json.dumps(model.config.to_dict(), sort_keys=True).encode(), digest_size=16)
    for name, array in model.parameters().items():
        digest.update(name.encode())
        digest.update(array.data)
    return digest.hexdigest()


def _parts(
    store: TokenStore, tokenizer: Tokenizer, config: TrainConfig, validation: Texts | TokenStore | None
) -> tuple[TokenStore, TokenStore | None]:
    if validation is not None and config.val_fraction > 0:
        raise ArgumentError(
            "validation", f"and val_fraction cannot both be given; val_fraction is {shown(config.val_fraction)}"
        )
    if validation is None and config.val_fraction == 0 and config.patience is not None:
        raise ArgumentError("patience", "needs validation data: give validation or val_fraction")
    store.require_pairs("texts")
    if validation is not None:
        held_out = TokenStore.encode(validation, tokenizer, config.end_of_document)
        held_out.require_pairs("validation")
        return store, held_out
    return store.split(config.val_fraction) if config.val_fraction > 0 else (store, None)


def _count(name: str, windows: Windows) -> dict[str, int]:
    counts = windows.store.counts() | {"windows": len(windows), "longest_window": int(windows.lengths.max())}
    listed = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())
    logger.info("%s data: %s", name, listed)
    if counts["unknown_tokens"] * 100 > counts["tokens"]:
        share = 100 * counts["unknown_tokens"] / counts["tokens"]
        logger.warning(
            "%.1f%% of the tokens of the %s data are <UNK>, for what is not in the vocabulary: a larger vocabulary has "
            "fewer of them, a tokenizer of kind bpe none", share, name,
        )  # fmt: skip
    return counts
