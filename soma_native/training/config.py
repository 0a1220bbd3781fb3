"""The settings of a training run, checked where they are given; the Trainer reads them and changes none."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

__all__ = ["TrainConfig"]

_DEFAULT_EPOCHS = 10

# What may differ between a run and its continuation: it decides what is written and when, not what is learned.
FREE_TO_CHANGE = frozenset({"checkpoint_dir", "checkpoint_every", "keep_best", "log_every", "resume"})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    Args:
        epochs: how often to go through the texts. One of `epochs` and `steps` is given; with neither, 10 epochs.
        steps: number of optimizer steps instead.
        batch_size: windows (short documents, or pieces of long ones) in a micro-batch.
        seq_len: most next-token pairs in a window; None means the model's `max_seq_len`. Positions beyond it are
            never trained.
        sampling: "epoch" goes through all windows in a shuffled order, each pair once an epoch; "random" draws
            windows at random places with replacement, as nanoGPT does.
        lr: highest learning rate.
        min_lr: learning rate at the end of the cosine; None means lr / 10.
        warmup_steps: steps of linear warm-up; None means a tenth of the steps, at most 100.
        schedule: "cosine" or "constant", after the warm-up.
        betas, eps, weight_decay, max_grad_norm: of `AdamW`; max_grad_norm=None or 0 does not clip.
        grad_accumulation: micro-batches in a step; the gradient is that of the mean over all their pairs.
        seed: of the order of the data, at least 0 and below 2**64.
        val_fraction: part of the data held out for validation, at least 0 and below 1 (`TokenStore.split` says which).
        eval_every: steps between two records of the history, each with a validation loss where there is validation
            data; None means the end of each epoch, or ten times in all where `steps` is given.
        max_eval_windows: most windows in a validation, evenly spread over the data; None means all.
        patience: stop early after so many evaluations in a row without a better validation loss; None means never.
        min_delta: by how much, in nats, a validation loss must be lower to be better.
        checkpoint_dir: folder to save into; None saves nothing.
        checkpoint_every: steps between two checkpoints; None means at a record of the history when the last one is
            more than a minute old. The end of the training and Ctrl-C save one in any case.
        keep_best: True keeps in `checkpoint_dir` the model of the lowest validation loss (the latest one where there
            is no validation); False keeps the latest. Resuming continues from the latest either way.
        log_every: steps between two log lines (level INFO); None logs only the records.
        resume: continue the run whose checkpoint is in `checkpoint_dir`, bit for bit as if it had never stopped.

    Raises:
        TypeError: an argument has the wrong type, or there is no argument of that name.
        ValueError: an argument is outside its range; the message names it and what is allowed.

    >>> config = TrainConfig(epochs=20, batch_size=8, lr=3e-3)
    >>> config.schedule, config.betas
    ('cosine', (0.9, 0.95))
    >>> TrainConfig(sampling="shuffled")
    Traceback (most recent call last):
        ...
    ValueError: sampling='shuffled': allowed are 'epoch' and 'random'
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 8
    seq_len: int | None = None
    sampling: str = "epoch"
    lr: float = 1e-3
    min_lr: float | None = None
    warmup_steps: int | None = None
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float | None = 1.0
    grad_accumulation: int = 1
    seed: int = 0
    val_fraction: float = 0.0
    eval_every: int | None = None
    max_eval_windows: int | None = None
    patience: int | None = None
    min_delta: float = 0.0
    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    keep_best: bool = True
    log_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs={self.epochs} and steps={self.steps}: give one of the two, not both")
        for name in ("epochs", "steps", "eval_every", "max_eval_windows", "patience", "checkpoint_every", "log_every"):
            self._integer(name, 1, optional=True)
        self._integer("seq_len", 1, optional=True)
        self._integer("warmup_steps", 0, optional=True)
        self._integer("batch_size", 1)
        self._integer("grad_accumulation", 1)
        self._integer("seed", 0)
        if self.seed >= 1 << 64:
            raise ValueError(f"seed={self.seed}: must be below 2**64")
        self._choice("sampling", ("epoch", "random"))
        self._choice("schedule", ("cosine", "constant"))
        self._number("lr", above=0.0)
        if self.min_lr is not None:
            self._number("min_lr", least=0.0)
            if self.min_lr > self.lr:
                raise ValueError(f"min_lr={self.min_lr}: must not be above lr={self.lr}")
        self._number("eps", above=0.0)
        self._number("weight_decay", least=0.0)
        if self.max_grad_norm is None:
            object.__setattr__(self, "max_grad_norm", 0.0)  # the same, and one value in files
        self._number("max_grad_norm", least=0.0)
        self._number("min_delta", least=0.0)
        self._number("val_fraction", least=0.0, below=1.0)
        betas: object = self.betas
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas={betas!r}: must be a pair of numbers such as (0.9, 0.95)")
        for beta in betas:
            if not isinstance(beta, (int, float)) or not 0.0 <= beta < 1.0:
                raise ValueError(f"betas={betas!r}: both must be numbers of at least 0 and below 1")
        object.__setattr__(self, "betas", (float(betas[0]), float(betas[1])))
        for name in ("keep_best", "resume"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r}: must be True or False")
        if self.checkpoint_dir is not None and not isinstance(self.checkpoint_dir, (str, os.PathLike)):
            raise TypeError(f"checkpoint_dir={self.checkpoint_dir!r}: must be the path of a folder, or None")
        if self.checkpoint_dir is None:
            for name in ("resume", "checkpoint_every"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)} needs checkpoint_dir, the folder of the checkpoint")

    def _integer(self, name: str, least: int, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        try:
            integer = value.__index__()
        except AttributeError:
            integer = None
        if integer is None or isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: must be an integer{' or None' if optional else ''}")
        if integer < least:
            raise ValueError(f"{name}={integer}: must be at least {least}{', or None' if optional else ''}")
        object.__setattr__(self, name, integer)  # a NumPy integer becomes one that JSON can hold

    def _number(
        self, name: str, *, least: float = -math.inf, above: float = -math.inf, below: float = math.inf
    ) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise TypeError(f"{name}={value!r}: must be a number")
        number = float(value)
        if not (math.isfinite(number) and number >= least and number > above and number < below):
            limits = [f"at least {least:g}"] if least > -math.inf else [f"above {above:g}"]
            limits += [f"below {below:g}"] if below < math.inf else []
            allowed = " and ".join(limits) if math.isfinite(number) else "finite"
            raise ValueError(f"{name}={number:g}: must be {allowed}")
        object.__setattr__(self, name, number)

    def _choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: allowed are {' and '.join(map(repr, allowed))}")

    @property
    def epochs_or_default(self) -> int:
        """The number of epochs, where `steps` is not given."""
        return _DEFAULT_EPOCHS if self.epochs is None else self.epochs

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them; `TrainConfig.from_dict` reads them."""
        values = dataclasses.asdict(self)
        values["betas"] = list(self.betas)
        values["checkpoint_dir"] = None if self.checkpoint_dir is None else os.fspath(self.checkpoint_dir)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; a key that is no setting is a ValueError."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a setting of TrainConfig")
        return cls(**values)
