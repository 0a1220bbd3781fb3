"""The plan of a training run, made before its first step: data, order, number of steps, schedule and identity."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

from soma_native._checks import shown
from soma_native.data.documents import Texts
from soma_native.data.samplers import EpochSampler, RandomSampler, Sampler
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.errors import NUMBER_OF_STEPS, ArgumentError, Difference
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.optim.schedule import Schedule
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import FREE_TO_CHANGE, TrainConfig

logger = logging.getLogger("soma_native")

# With a number of epochs, these decide the number of steps.
_STEPS_FOLLOW = {"batch_size", "grad_accumulation", "sampling", "seq_len", "training texts"}


class Layout:
    """The data and the settings of a run with every default filled in.

    Attributes:
        model, tokenizer, config: the arguments.
        sampler: gives the batches of each step.
        validation: the windows of the validation data, or None.
        total_steps, eval_every: optimizer steps in all, and between two records of the history.
        schedule: the learning rate of each step.
        data: counts of the data by part, for the history.
        identity: the settings and data that must be equal in a resumed run, under their names in error messages.

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
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._seq_len = model.config.max_seq_len if config.seq_len is None else config.seq_len
        train, held_out = _encode(tokenizer, config, texts, validation)
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
        self.schedule = Schedule(config.lr, self.total_steps, warmup, config.min_lr, config.schedule)
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
        }
        if config.schedule != "constant":  # at a constant rate, a longer run begins like a shorter one
            settings[NUMBER_OF_STEPS] = self.total_steps
        identity: dict[str, Any] = json.loads(json.dumps(settings))  # with the types of one that was read from a file
        return identity

    def differences(self, identity: dict[str, Any]) -> list[Difference]:
        """The differences between another run's `identity` and this one, without those that follow from others."""
        with contextlib.suppress(LookupError, TypeError, ValueError):  # older runs lack the later fields of a model
            identity = {**identity, "model": ModelConfig(**identity["model"]).to_dict()}
        keys = [k for k in sorted(self.identity.keys() | identity.keys()) if identity.get(k) != self.identity.get(k)]
        derived = {key for key in ("eval_every", "warmup_steps") if getattr(self.config, key) is None}
        if self.config.steps is None and _STEPS_FOLLOW & set(keys):
            derived.add(NUMBER_OF_STEPS)
        given = [key for key in keys if key not in derived]
        return [Difference(key, identity.get(key), self.identity.get(key)) for key in given or keys]


def _encode(
    tokenizer: Tokenizer, config: TrainConfig, texts: Texts | TokenStore, validation: Texts | TokenStore | None
) -> tuple[TokenStore, TokenStore | None]:
    if validation is not None and config.val_fraction > 0:
        raise ArgumentError(
            "validation", f"and val_fraction cannot both be given; val_fraction is {shown(config.val_fraction)}"
        )
    if validation is None and config.val_fraction == 0 and config.patience is not None:
        raise ArgumentError("patience", "needs validation data: give validation or val_fraction")
    train = TokenStore.encode(texts, tokenizer)
    train.require_pairs("texts")
    if validation is not None:
        held_out = TokenStore.encode(validation, tokenizer)
        held_out.require_pairs("validation")
        return train, held_out
    return train.split(config.val_fraction) if config.val_fraction > 0 else (train, None)


def _count(name: str, windows: Windows) -> dict[str, int]:
    counts = windows.store.counts() | {"windows": len(windows), "longest_window": int(windows.lengths.max())}
    listed = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in counts.items())
    logger.info("%s data: %s", name, listed)
    if counts["unknown_tokens"] * 100 > counts["tokens"]:
        share = 100 * counts["unknown_tokens"] / counts["tokens"]
        logger.warning("%.1f%% of the tokens of the %s data are <UNK>: a larger vocabulary would help", share, name)
    return counts
