"""The settings of a training run. They are checked when they are given, and never change."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from soma_native._checks import FLOAT32_LEAST, FLOAT32_MAX, choice, flag, integer, number, pair, path, shown
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.optim.schedule import SCHEDULES

_DEFAULT_EPOCHS = 10

LENGTHS = ("minutes", "steps", "epochs")  # settings of which one says how long a run is

# The smallest value of each integer setting, and the limits of the other numbers.
_COUNTS = {
    "epochs": 1,
    "steps": 1,
    "batch_size": 1,
    "seq_len": 1,
    "warmup_steps": 0,
    "grad_accumulation": 1,
    "sync_every": 1,
    "eval_every": 1,
    "max_eval_windows": 1,
    "patience": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "teachers": 0,
}
_NUMBERS: dict[str, dict[str, float]] = {
    "minutes": {"above": 0},
    "lr": {"above": 0, "most": FLOAT32_MAX},
    "min_lr": {"least": 0},
    "eps": {"least": FLOAT32_LEAST, "most": FLOAT32_MAX},
    "decay_fraction": {"above": 0, "most": 1},
    "weight_decay": {"least": 0},
    "final_weight_decay": {"least": 0},
    "dropout": {"least": 0, "below": 1},
    "token_mask": {"least": 0, "below": 1},
    "ema": {"least": 0, "below": 1},
    "tail_average": {"above": 0, "most": 1},
    "max_grad_norm": {"least": 0},
    "min_delta": {"least": 0},
    "distill": {"least": 0, "most": 1},
    "teacher_length": {"above": 0, "most": 1},
    "checkpoint_minutes": {"least": 0},
    "val_fraction": {"least": 0, "below": 1},
}

# Defaults that depend on the optimizer.
_DEFAULTS_OF: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "betas": (0.9, 0.95)},
    "muon": {"lr": 3e-3, "betas": (0.9, 0.99)},
}

OPTIMIZERS = tuple(_DEFAULTS_OF)

# Settings that may change when a run is resumed: they do not change the weights.
FREE_TO_CHANGE = frozenset(
    {"checkpoint_dir", "checkpoint_minutes", "checkpoint_every", "keep_best", "log_every", "resume"}
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    Args:
        epochs: number of times through the texts. Give one of `epochs`, `steps` and `minutes`; with none, 10 epochs.
        steps: number of optimizer steps.
        minutes: wall-clock time of `fit`, with validations, saves and the parts before a resumed one. The number of
            steps is decided while the run goes on, such that the schedule is complete at the end of the time. Ten
            validations at most, which take a fifth of the time at most, if `eval_every` and `max_eval_windows` are
            None. `history.decisions` has what was decided.
        batch_size: windows (short documents, or pieces of long ones) in a micro-batch.
        seq_len: most next-token pairs in a window; None means the model's `max_seq_len`. Positions beyond `seq_len`
            are never trained.
        sampling: "epoch" goes through all windows in a shuffled order, each pair once an epoch; "random" draws
            windows at random places with replacement, as nanoGPT does.
        fresh_windows: with "epoch", each epoch cuts documents longer than seq_len at other places.
        optimizer: "adamw", or "muon" for the matrices between hidden activations (`AdamW` for everything else). The
            momentum of `Muon` rises from 0.85 to 0.95 over a tenth of the steps, at most 200.
        lr: highest learning rate; left out, 1e-3, and 3e-3 with "muon".
        min_lr: learning rate at the end of the cosine or line; None means lr / 10 for the cosine and 0 for lines.
        warmup_steps: steps of linear warm-up; None means a tenth of the steps, at most 100.
        schedule: after the warm-up "cosine", "linear" (down to the end), "wsd" (stable, then linear), or "constant".
        decay_fraction: part of all steps in which "wsd" falls, above 0 and at most 1.
        betas: of `AdamW`; left out, (0.9, 0.95), and (0.9, 0.99) with "muon".
        eps, weight_decay, max_grad_norm: of the optimizer; max_grad_norm=None or 0 does not clip.
        final_weight_decay: weight decay at the end. It goes there in a line while the learning rate falls. None means
            that it stays as it is.
        cautious_decay: no decay of a parameter where it would push against the update.
        dropout, token_mask: of `Model.loss_and_grad`, at least 0 and below 1. The noise follows from `seed`, step and
            micro-batch alone. Training losses have it, validation has none.
        ema: decay of an exponential average of the weights, below 1. The averaged weights are validated and saved as
            the model, and the model has them when `fit` returns. None means no average.
        tail_average: likewise with the mean of the weights over this last part of all steps, above 0 and at most 1.
        distill: the share of KL(teacher || model) in the loss where `fit` has a teacher, from 0 to 1; the rest is
            cross-entropy. Without a teacher it has no meaning.
        teachers: number of models that `fit` trains first, one after another, to teach the model by the mean of their
            probabilities. Each has the model's shape, these settings and a seed of its own. They are kept in
            `checkpoint_dir`, in the folder `.soma-teachers`, until the run is finished.
        teacher_length: of each of them, as a part of the model's own steps, epochs or time, above 0 and at most 1. The
            steps and epochs are the model's; `minutes` are those of all together.
        grad_accumulation: micro-batches in a step; the gradient is that of the mean over all their pairs.
        sync_every: steps that each of several ranks takes with its own windows, until all take an outer step (DiLoCo,
            arXiv 2311.08105): for slow links. It is taken before each record too. Saves, `stop` and Ctrl-C wait for
            it. A run that is resumed has the mean of the ranks' moments. None means the same step for all.
        seed: the seed of the order of the data and of noise, at least 0 and below 2**64.
        val_fraction: part of the data held out for validation (see `TokenStore.split`), at least 0 and below 1.
        eval_every: steps between two records of the history, which have a validation loss if there is validation data.
            None means one record per epoch, or ten in all if `steps` or `minutes` is given.
        max_eval_windows: most windows in a validation, evenly spread over the data; None means all.
        patience: number of evaluations in a row without a better validation loss that ends the training; None means
            that none does. The learning rate first falls to its end, over a tenth of the steps so far, ten at least,
            and no longer than the run was to last.
        min_delta: a validation loss is better only if it is lower by more than this, in nats.
        end_of_document: the special token that follows each document, and that ends generation: "auto" is
            <|endoftext|> or <EOS>, if the vocabulary has one; None is no token.
        checkpoint_dir: folder to save into; None saves nothing.
        checkpoint_minutes: minutes between two checkpoints, within an epoch too. The end of the training and Ctrl-C
            always save one; with None or 0, they alone do.
        checkpoint_every: steps between two checkpoints, in the place of minutes.
        keep_best: True keeps in `checkpoint_dir` the model with the lowest validation loss (without validation, the
            latest model); False keeps the latest. Resuming always continues from the latest. Ctrl-C saves the
            average of that moment, if there is one and the last validation was the lowest; the best weights are then in
            the state file.
        log_every: steps between two log lines (level INFO); None logs only the records.
        resume: continue the run whose checkpoint is in `checkpoint_dir`, bit for bit as if it had never stopped.

    Raises:
        TypeError: an argument has the wrong type, or there is no argument of that name.
        ValueError: an argument is outside its range. The message names the argument and its range.

    >>> config = TrainConfig(epochs=20, batch_size=8, lr=3e-3)
    >>> config.schedule, config.betas
    ('cosine', (0.9, 0.95))
    >>> TrainConfig(sampling="shuffled")
    Traceback (most recent call last):
        ...
    soma_native.errors.ArgumentError: sampling must be one of epoch, random, got 'shuffled'
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    seq_len: int | None = None
    sampling: str = "epoch"
    fresh_windows: bool = True
    optimizer: str = "adamw"
    lr: float = cast(float, None)
    min_lr: float | None = None
    warmup_steps: int | None = None
    schedule: str = "cosine"
    decay_fraction: float = 0.5
    betas: tuple[float, float] = cast("tuple[float, float]", None)
    eps: float = 1e-8
    weight_decay: float = 0.1
    final_weight_decay: float | None = None
    max_grad_norm: float | None = 1.0
    cautious_decay: bool = False
    dropout: float = 0.0
    token_mask: float = 0.0
    ema: float | None = None
    tail_average: float | None = None
    distill: float = 0.5
    teachers: int = 0
    teacher_length: float = 0.5
    grad_accumulation: int = 1
    sync_every: int | None = None
    seed: int = 0
    end_of_document: str | None = "auto"
    val_fraction: float = 0.0
    eval_every: int | None = None
    max_eval_windows: int | None = None
    patience: int | None = None
    min_delta: float = 0.0
    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_minutes: float | None = 5.0
    checkpoint_every: int | None = None
    keep_best: bool = True
    log_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        lengths = [(name, value) for name in LENGTHS if (value := getattr(self, name)) is not None]
        if len(lengths) > 1:
            (one, value), (other, other_value) = lengths[:2]
            raise ArgumentError(one, f"and {other} cannot both be given, got {value} and {other_value}")
        for name, least in _COUNTS.items():
            self._set(name, integer, least)
        self._set("seed", integer, 0, 2**64 - 1)
        self._set("optimizer", choice, OPTIMIZERS)
        for name, default in _DEFAULTS_OF[self.optimizer].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name, limits in _NUMBERS.items():
            self._set(name, number, **limits)
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ArgumentError("min_lr", f"must not be above lr, got {shown(self.min_lr)} and {shown(self.lr)}")
        self._set("sampling", choice, ("epoch", "random"))
        self._set("schedule", choice, SCHEDULES)
        if self.final_weight_decay is not None and self.schedule == "constant":
            raise ArgumentError("final_weight_decay", "needs a learning rate that falls, schedule is 'constant'")
        self._set("betas", pair, least=0, below=1)
        if self.ema is not None and self.tail_average is not None:
            raise ArgumentError("tail_average", "and ema cannot both be given")
        self._set("fresh_windows", flag)
        self._set("cautious_decay", flag)
        if self.end_of_document is not None and not isinstance(self.end_of_document, str):
            raise ArgumentTypeError("end_of_document", f"must be a token or None, got {self.end_of_document!r:.80}")
        if self.end_of_document == "":
            raise ArgumentError("end_of_document", "must be a token, got an empty text; None is no token")
        self._set("keep_best", flag)
        self._set("resume", flag)
        for name in _ZERO_IS_NONE:  # files hold one value for both
            if getattr(self, name) is None:
                object.__setattr__(self, name, 0.0)
        if self.checkpoint_dir is not None:
            path("checkpoint_dir", self.checkpoint_dir, "folder")
        elif self.resume or self.checkpoint_every:
            name = "resume" if self.resume else "checkpoint_every"
            raise ArgumentError(name, "needs checkpoint_dir, the folder of the checkpoint")

    def _set(self, name: str, check: Callable[..., Any], *limits: Any, **named: Any) -> None:
        """Check a setting and store the returned value, which JSON can hold. None is kept where None is allowed."""
        value = getattr(self, name)
        if value is not None or name not in _OPTIONAL:
            object.__setattr__(self, name, check(name, value, *limits, **named))

    @property
    def epochs_or_default(self) -> int:
        """The number of epochs if neither `steps` nor `minutes` is given."""
        return _DEFAULT_EPOCHS if self.epochs is None else self.epochs

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them; `TrainConfig.from_dict` reads them."""
        folder = None if self.checkpoint_dir is None else os.fspath(self.checkpoint_dir)
        return {**dataclasses.asdict(self), "betas": list(self.betas), "checkpoint_dir": folder}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`. Raises a ValueError for a key that is no setting."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not a setting of TrainConfig")
        return cls(**values)


def settings_of_older_runs() -> dict[str, Any]:
    """What a run had for each setting that did not exist yet when it began: nearly always the default."""
    return {**TrainConfig().to_dict(), "end_of_document": None, "fresh_windows": False}


_ZERO_IS_NONE = ("max_grad_norm", "checkpoint_minutes")
_OPTIONAL = {field.name for field in dataclasses.fields(TrainConfig) if field.default is None} | set(_ZERO_IS_NONE)
