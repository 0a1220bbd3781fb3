"""The plan of a training run, made before its first step: data, order, number of steps, schedule and identity."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
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
from soma_native.parallel.world import World
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.config import FREE_TO_CHANGE, LENGTHS, TrainConfig
from soma_native.training.evaluate import predicted_bytes
from soma_native.training.history import Decision
from soma_native.training.memory import free_memory, require_memory, training_memory
from soma_native.training.phase import fingerprint, teacher_seed

logger = logging.getLogger("soma_native")

NUMBER_OF_STEPS = "number of steps (epochs or steps)"  # the key in an identity, and so in files
UNDECIDED = 1 << 52  # steps of a run by time, until the clock has decided
_MOMENTUM, _MOMENTUM_STEPS = (0.85, 0.95), 200


class Layout:
    """The data and the settings of a run with every default filled in.

    Attributes:
        model, tokenizer, config: the arguments.
        number: of the teacher that the model is to become, in a run that trains its own; None for the model itself.
        seed: of this model's order of data and noise.
        store: all texts, before a part of them is held out.
        sampler: gives the batches of each step.
        validation: the windows of the validation data, or None.
        bits_per_nat: what a validation loss in nats a token is multiplied by to give bits a byte; None where the
            tokenizer cannot say the bytes.
        total_steps, eval_every: optimizer steps in all, and between two records of the history.
        max_eval_windows: most windows in a validation; None means all.
        cooling: whether early stopping has been decided.
        schedule: the learning rate of each step.
        teachers: models whose probabilities the run learns from; none without `teacher`.
        momentum_steps: over which Muon's momentum rises.
        averaged_from: steps before the first whose weights are in the average, where there is one.
        batch, longest: most windows in a micro-batch, and most pairs in a window.
        data: counts of the data by part, for the history.
        identity: the settings and data that must be equal in a resumed run; `differences` compares two of them.

    Raises:
        TypeError, ValueError: the data or a setting does not fit. The message names it.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None,
        config: TrainConfig,
        texts: Texts | TokenStore,
        validation: Texts | TokenStore | None,
        teacher: Model | Iterable[Model] | None = None,
        number: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.number, self.seed = number, teacher_seed(config.seed, number)
        self._seq_len = model.config.max_seq_len if config.seq_len is None else config.seq_len
        self.teachers = () if teacher is None else as_teachers("teacher", teacher, model, self._seq_len)
        if teacher is not None and not self.teachers:
            raise ArgumentError("teacher", "has no model: give one or several, or None to train without a teacher")
        self.store = TokenStore.encode(texts, tokenizer, config.end_of_document)
        train, held_out = _parts(self.store, tokenizer, config, validation)
        for name, store in (("texts", self.store), ("validation", held_out)):
            if store is not None:
                store.require_below(model.config.vocab_size, name)
        self.sampler: Sampler
        windows = Windows(train, self._seq_len)
        if config.sampling == "random":
            self.sampler = RandomSampler(train, self._seq_len, config.batch_size, self.seed, config.grad_accumulation)
        else:
            self.sampler = EpochSampler(
                windows, config.batch_size, self.seed, config.grad_accumulation, config.fresh_windows
            )
        self.validation = None if held_out is None else Windows(held_out, self._seq_len)
        self.bits_per_nat: float | None = None
        self.max_eval_windows = config.max_eval_windows
        self.data = {"train": _count("train", windows)}
        if self.validation is not None:
            self.data["validation"] = _count("validation", self.validation)
            self._limit(config.max_eval_windows)

        per_epoch = self.sampler.steps_per_epoch
        whole = config.epochs_or_default * per_epoch if config.steps is None else config.steps
        self.total_steps = whole if number is None else max(1, round(config.teacher_length * whole))
        default_eval_every = per_epoch if config.steps is None else -(-self.total_steps // 10)
        if config.minutes is not None:
            self.total_steps = default_eval_every = UNDECIDED
        self.cooling = False
        self.eval_every = default_eval_every if config.eval_every is None else config.eval_every
        warmup = min(100, self.total_steps // 10) if config.warmup_steps is None else config.warmup_steps
        self.schedule = Schedule(
            config.lr, self.total_steps, warmup, config.min_lr, config.schedule, config.decay_fraction
        )
        self.momentum_steps = min(_MOMENTUM_STEPS, self.total_steps // 10)
        self.averaged_from = self._tail()
        self.identity = self._identity(model, config, train, held_out)
        self.batch, self.longest = min(config.batch_size, windows.most), int(windows.lengths.max())

    def _identity(
        self, model: Model, config: TrainConfig, train: TokenStore, held_out: TokenStore | None
    ) -> dict[str, Any]:
        settings = {key: value for key, value in config.to_dict().items() if key not in FREE_TO_CHANGE}
        for name in LENGTHS:
            del settings[name]
        settings |= {
            "seq_len": self._seq_len,
            "eval_every": self.eval_every,
            "warmup_steps": self.schedule.warmup_steps,
            "model": model.config.to_dict(),
            "precision": model.precision,
            "evaluation_precision": model.evaluation_precision,
            "training texts": train.fingerprint(),
            "validation texts": None if held_out is None else held_out.fingerprint(),
            "teacher": None if config.teachers else [fingerprint(teacher) for teacher in self.teachers] or None,
        }
        if config.optimizer == "muon":
            settings["momentum_steps"] = self.momentum_steps
        if config.tail_average is not None:
            settings["averaged_from"] = self.averaged_from
        if config.minutes is not None:
            settings[NUMBER_OF_STEPS] = f"{config.minutes} minutes"
        elif config.schedule != "constant":  # at a constant rate, a longer run begins like a shorter one
            settings[NUMBER_OF_STEPS] = self.total_steps
        identity: dict[str, Any] = json.loads(json.dumps(settings))  # with the types of one that was read from a file
        return identity

    def require_memory(self, world: World) -> None:
        """Raise a ValueError on all ranks if one needs more memory than is free, and warn if it needs most of it.

        The ranks of one machine share its memory. GPUs are taken for a rank's own.
        """
        config, model = self.config, self.model

        def need_and_free() -> tuple[int, int | None]:
            needed = training_memory(
                model.config, -(-self.batch // world.size), self.longest, model.precision, config.optimizer,
                config.ema is not None or config.tail_average is not None,
                [teacher.config for teacher in self.teachers],
                best=world.first and config.keep_best and config.checkpoint_dir is not None
                and self.validation is not None,
                device=model.device, ranks=1 if config.sync_every is not None else world.size,
                first=world.first,
            )  # fmt: skip
            # Start, momentum, gradient, what is received of it, a scratch; and copies of the moments at a save.
            outer = 0 if config.sync_every is None else 7 * model.num_parameters
            held = sum(each._core.held_floats for each in (model, *self.teachers))
            return needed + 4 * (outer - held), free_memory(device=model.device, own=world.alone)

        own = world.together(need_and_free)
        for ranks in world.by_machine(own, model.device):
            free = min((free for _, free in ranks if free is not None), default=None)
            require_memory(sum(needed for needed, _ in ranks), free, self.batch, self.longest, len(ranks))

    def _tail(self) -> int:
        tail = 1.0 if self.config.tail_average is None else self.config.tail_average
        return self.total_steps - max(1, round(tail * self.total_steps))

    def decide(self, decision: Decision) -> None:
        """Go on as it was decided: with another number of steps, and all that follows from it.

        A warm-up, a rise of the momentum and a tail of averages keep their steps once they have begun. The first
        decision of a run by time gives them their steps; a warm-up is then at most half of the run.
        """
        step, total = decision["step"], decision["total_steps"]
        if self.total_steps == UNDECIDED and total > step:
            given = self.config.warmup_steps
            warmup = min(100, total // 10) if given is None else min(given, total // 2)
            self.schedule = dataclasses.replace(self.schedule, warmup_steps=warmup, total_steps=total)
            self.momentum_steps = min(_MOMENTUM_STEPS, total // 10)
        self.cooling |= decision["reason"] == "early stopping"
        self.schedule = self.schedule.again(step, total, cool_down=self.cooling)
        self.total_steps = total
        self.eval_every = decision["eval_every"]
        if decision["max_eval_windows"] != self.max_eval_windows:
            self._limit(decision["max_eval_windows"])
        if self.config.tail_average is not None and step <= self.averaged_from:
            self.averaged_from = max(step, self._tail())

    def _limit(self, windows: int | None) -> None:
        """Validate on so many windows at most, and count their bytes."""
        self.max_eval_windows = windows
        if self.validation is not None and (found := predicted_bytes(self.validation, self.tokenizer, windows)):
            self.bits_per_nat = found[0] / found[1] / math.log(2)

    def weight_decay(self, step: int) -> float:
        """The weight decay in step `step`, counted from 0."""
        first, last = self.config.weight_decay, self.config.final_weight_decay
        return first if last is None else first + (last - first) * self.schedule.done(step)

    def momentum(self, step: int) -> float:
        """Muon's momentum in step `step`, counted from 0."""
        low, high = _MOMENTUM
        return high if step >= self.momentum_steps else low + (high - low) * step / self.momentum_steps


def _parts(
    store: TokenStore, tokenizer: Tokenizer | None, config: TrainConfig, validation: Texts | TokenStore | None
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
