"""The models that a plan chooses from: how long each trains in the time, what it needs, and what it should reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from soma_native.core import _core
from soma_native.model.config import ModelConfig
from soma_native.planning.corpus import Corpus
from soma_native.planning.epoch import Epoch, epoch_of
from soma_native.planning.speed import Speed
from soma_native.training.memory import size_text, training_memory
from soma_native.training.recipes import VAL_FRACTION

MOST_MINUTES = 10.0  # where no time is given
LAW_ERROR = 0.2  # of the expected bits: a novel was off by 14% (docs/LOG.md)
START = 3.0  # seconds that the start takes
TRAINING = 0.93  # share of the time that steps get beside the start; validation and saving take the rest

# Predicted loss in nats a character, fitted to trials with English text (docs/LOG.md):
# floor + size / parameters^a + data / tokens^b, tokens that are repeated counting less.
_FLOOR, _SIZE, _SIZE_POWER, _DATA, _DATA_POWER = 1.12, 8.52, 0.3, 20.4, 0.3
_REPEATED = 15.0  # epochs after which a repetition is worth e times less (Muennighoff et al., arXiv 2305.16264)

_BATCHES = (32, 16, 8)  # windows in a step: small ones learn more from a token, large ones take less time a token
_STEPS = 4000  # least steps of a larger batch
_MOST_A_TOKEN = 20  # parameters of a model for a fresh token of the corpus


@dataclass(frozen=True)
class Candidate:
    """A model that could be trained.

    Attributes:
        config: of the model.
        window: most tokens in a window.
        epochs_by: the epoch of each size of batch.
        memory_by: bytes that the training takes, likewise.
        characters: a token, expected.
    """

    config: ModelConfig
    window: int
    epochs_by: Mapping[int, Epoch]
    memory_by: Mapping[int, int]
    characters: float


@dataclass(frozen=True)
class Outlook:
    """What is expected of a candidate.

    Attributes:
        batch: windows in a step.
        epoch: of this batch.
        epochs, steps: of the run.
        loss: in nats a character of tinyshakespeare.
    """

    batch: int
    epoch: Epoch
    epochs: float
    steps: int
    loss: float


def candidate(
    corpus: Corpus,
    characters: float,
    end: bool,
    config: ModelConfig,
    precision: str,
    settings: Mapping[str, Any],
    seq_len: int | None,
    device: str = "cpu",
) -> Candidate:
    """The model with its epochs and needs on a device.

    `settings` are those of `TrainConfig` that are decided, `characters` are those of a token, `end` says whether a
    token ends each document.
    """
    window = min(seq_len or config.max_seq_len, config.max_seq_len)
    batches = (settings["batch_size"],) if "batch_size" in settings else _BATCHES
    held_out = settings.get("val_fraction", VAL_FRACTION)
    epochs = {batch: epoch_of(corpus, characters, window, batch, held_out, end) for batch in batches}
    found = Candidate(config, window, epochs, {}, characters)
    needs = {batch: memory_of(found, batch, precision, settings, device=device) for batch in epochs}
    return replace(found, memory_by=needs)


def memory_of(
    each: Candidate, batch: int, precision: str, settings: Mapping[str, Any], teachers: int = 0, device: str = "cpu"
) -> int:
    """Bytes that the training of a candidate takes on a device, with teachers of its shape."""
    epoch, optimizer = each.epochs_by[batch], settings.get("optimizer", "muon")
    others = [each.config] * teachers
    return training_memory(each.config, epoch.batch, epoch.longest, precision, optimizer, True, others, device=device)


def fitting(candidates: Mapping[str, Candidate], free: int | None, share: float) -> dict[str, list[int]]:
    """The batches of each that take at most this share of the free memory; those without one are left out.

    Raises:
        ValueError: nothing fits.
    """
    found = {
        name: [batch for batch, memory in each.memory_by.items() if free is None or memory <= share * free]
        for name, each in candidates.items()
    }
    if not any(found.values()):
        needs = {name: each.memory_by for name, each in candidates.items()}
        least, name, batch = min((min(by.values()), name, min(by, key=by.__getitem__)) for name, by in needs.items())
        raise ValueError(
            f"training needs at least {size_text(least)} of memory (model {name}, batches of {batch}), and "
            f"{size_text(free or 0)} are free: close other programs, or give a lower seq_len or a smaller model"
        )
    return {name: batches for name, batches in found.items() if batches}


def judge(
    each: Candidate, batches: Sequence[int], speed: Speed | None, minutes: float | None, settings: Mapping[str, Any]
) -> Outlook:
    """The outlook with the largest of these batches that leaves enough steps, else with the smallest.

    The length is that of `settings` where they have steps or epochs, else what `speed` allows in `minutes`. Steps that
    are given take the smallest batch.
    """
    for batch in batches if settings.get("steps") is None else batches[-1:]:
        epoch = each.epochs_by[batch]
        if settings.get("steps") is not None:
            epochs = settings["steps"] / epoch.steps
        elif settings.get("epochs") is not None:
            epochs = float(settings["epochs"])
        else:
            assert speed is not None and minutes is not None
            seconds = max(60 * minutes * TRAINING - START, 60 * minutes / 3)
            epochs = seconds / speed.seconds(each.config, epoch.steps, epoch.padded, each.window)
        steps = max(1, round(epochs * epoch.steps))
        if steps >= _STEPS:
            break
    fresh = epoch.pairs * each.characters
    parameters = _core.multiplied_parameters(each.config.core)
    return Outlook(batch, epoch, epochs, steps, predicted_loss(parameters, epochs * fresh, fresh))


def best(candidates: Mapping[str, Candidate], outlooks: Mapping[str, Outlook], by_time: bool) -> str:
    """The name of the least expected loss, and of the smallest model where the corpus is too small for any.

    Where time is no matter, it is the largest model that has no more parameters than the run has tokens.
    """
    suited = []
    for name, outlook in outlooks.items():
        most = (_MOST_A_TOKEN if by_time else outlook.epochs) * outlook.epoch.pairs
        if candidates[name].config.num_parameters <= most:
            suited.append(name)
    if not suited:
        return min(outlooks, key=lambda name: candidates[name].config.num_parameters)
    return min(suited, key=lambda name: outlooks[name].loss) if by_time else suited[-1]


def worth(
    candidates: Mapping[str, Candidate], fits: Mapping[str, Sequence[int]], speed: Speed, settings: Mapping[str, Any]
) -> float:
    """The shortest time whose doubling lowers the expected loss by less than 1%, `MOST_MINUTES` at most."""

    def reached(minutes: float) -> float:
        return min(judge(candidates[name], batches, speed, minutes, settings).loss for name, batches in fits.items())

    times = (MOST_MINUTES * 0.9**power for power in range(40, -1, -1))
    return round(next((some for some in times if reached(2 * some) >= 0.99 * reached(some)), MOST_MINUTES), 1)


def predicted_loss(parameters: float, tokens: float, fresh: float) -> float:
    """Expected validation loss, nats a character, of a model trained on `tokens` of which `fresh` differ."""
    repeated = max(0.0, tokens / fresh - 1.0)
    seen = min(tokens, fresh) * (1 + _REPEATED * (1 - math.exp(-repeated / _REPEATED)))
    return _FLOOR + _SIZE / math.pow(parameters, _SIZE_POWER) + _DATA / math.pow(seen, _DATA_POWER)


def bits_per_byte(loss: float, corpus: Corpus) -> float:
    """A loss in nats a character of tinyshakespeare as bits a byte of this text, whose characters say more or less."""
    return loss / math.log(2) * corpus.richness * corpus.characters / corpus.bytes
