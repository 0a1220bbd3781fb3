"""Measures how fast this machine trains, in a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from soma_native.core import _core
from soma_native.model.config import ModelConfig
from soma_native.model.flops import flops_per_token
from soma_native.model.model import Model
from soma_native.optim.muon import Muon
from soma_native.system import active_isa, get_num_threads

STEP_TOKENS = 4096  # of a measured step
_SIZES = ("1m", "5m")  # presets that are measured; a larger one reaches no lower rate than the last


@dataclass(frozen=True)
class Speed:
    """The rate of training steps with Muon, in floating-point operations a second.

    Attributes:
        parameters: multiplied parameters of the measured models, ascending.
        flops: the rate of each.
        isa, threads, precision: of the measurement.
    """

    parameters: tuple[float, ...]
    flops: tuple[float, ...]
    isa: str
    threads: int
    precision: str

    def __str__(self) -> str:
        return f"{self.isa}, {self.threads} thread{'s' * (self.threads != 1)}, {self.precision}"

    def tokens_per_second(self, config: ModelConfig) -> float:
        """The expected rate of a model, between the measured sizes in proportion to the logarithm of its size."""
        size = np.log(_core.multiplied_parameters(config.core))
        rate = np.interp(size, np.log(self.parameters), np.log(self.flops))
        return float(np.exp(rate)) / flops_per_token(config, config.max_seq_len)


def measure_speed(
    precision: str = "auto", clock: Callable[[], float] = time.perf_counter, device: str = "cpu"
) -> Speed:
    """Time training steps of two small models: some seconds on a slow machine.

    Args:
        precision: as for `Model`.
        clock: gives the time in seconds.
        device: as for `Model`.
    """
    rng = np.random.default_rng(0)
    parameters, flops = [], []
    for name in _SIZES:
        config = ModelConfig.preset(name)
        model = Model(config, precision=precision, device=device)
        optimizer = Muon(model)
        ids = rng.integers(0, config.vocab_size, (STEP_TOKENS // config.max_seq_len, config.max_seq_len))
        seconds = []
        for _ in range(3):  # the first one also makes buffers
            began = clock()
            model.loss_and_grad(ids, ids)
            optimizer.step()
            seconds.append(clock() - began)
        parameters.append(float(_core.multiplied_parameters(config.core)))
        flops.append(STEP_TOKENS * flops_per_token(config, config.max_seq_len) / max(min(seconds), 1e-9))
    return Speed(tuple(parameters), tuple(flops), active_isa(), get_num_threads(), model.precision)
