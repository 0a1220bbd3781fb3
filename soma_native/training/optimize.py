"""The optimizer and the average of weights that the settings of a run ask for."""

from __future__ import annotations

from soma_native.model.model import Model
from soma_native.optim.adamw import AdamW
from soma_native.optim.average import WeightAverage
from soma_native.optim.muon import Muon
from soma_native.training.config import TrainConfig


def make_optimizer(model: Model, config: TrainConfig) -> AdamW | Muon:
    """An optimizer of no steps yet."""
    kind: type[AdamW | Muon] = {"adamw": AdamW, "muon": Muon}[config.optimizer]
    return kind(
        model,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        cautious=config.cautious_decay,
    )


def make_average(model: Model, config: TrainConfig) -> WeightAverage | None:
    """An average without updates; None where there is none."""
    if config.ema is None and config.tail_average is None:
        return None
    return WeightAverage(model, 1.0 if config.ema is None else config.ema)
