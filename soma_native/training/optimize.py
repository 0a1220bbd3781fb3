"""The optimizer and the average of weights that the settings of a run ask for."""

from __future__ import annotations

from typing import Any

from soma_native.model.model import Model
from soma_native.optim.adamw import AdamW
from soma_native.optim.average import WeightAverage
from soma_native.optim.muon import Muon
from soma_native.parallel.world import World
from soma_native.training.config import TrainConfig
from soma_native.training.shards import Shards


def make_optimizer(model: Model, config: TrainConfig, world: World) -> tuple[AdamW | Muon, Shards]:
    """An optimizer of no steps yet, of the parameters that this rank updates; and which rank has what."""
    kind: type[AdamW | Muon] = {"adamw": AdamW, "muon": Muon}[config.optimizer]
    options: dict[str, Any] = {
        "lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm, "cautious": config.cautious_decay,
    }  # fmt: skip
    whole = kind(model, **options)
    shards = Shards(world, model, whole.state())
    if world.alone:
        return whole, shards
    del whole  # nothing was written to its memory, so that the system has not given any but on a GPU
    return kind.part(shards.owned(), model, **options), shards


def make_average(model: Model, config: TrainConfig) -> WeightAverage | None:
    """An average without updates; None where there is none."""
    if config.ema is None and config.tail_average is None:
        return None
    return WeightAverage(model, 1.0 if config.ema is None else config.ema)
