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
from soma_native.optim.adamw import AdamW
from soma_native.optim.muon import Muon
from soma_native.system import active_isa, get_num_threads

_SIZES = ("1m", "5m")  # presets that are measured; a larger one reaches no lower rate than the last
_TYPICAL = 4096  # tokens of a step whose rate is told


@dataclass(frozen=True)
class Speed:
    """How long training steps take.

    Attributes:
        parameters: multiplied parameters of the measured models, ascending.
        flops: floating-point operations a second of each, in what its tokens take.
        update: seconds of a step of each that its tokens do not take: the optimizer, and packing of weights.
        isa, threads, precision, device: of the measurement.
    """

    parameters: tuple[float, ...]
    flops: tuple[float, ...]
    update: tuple[float, ...]
    isa: str
    threads: int
    precision: str
    device: str = "cpu"

    def __str__(self) -> str:
        if self.device != "cpu":
            return f"{self.device}, {self.precision}"
        return f"{self.isa}, {self.threads} thread{'s' * (self.threads != 1)}, {self.precision}"

    def seconds(self, config: ModelConfig, steps: float, tokens: float, window: int) -> float:
        """Expected time of so many steps with so many tokens in all, in windows of `window` tokens.

        Models between the measured sizes lie between them by the logarithm. The update of a larger one grows with it.
        """
        size = float(_core.multiplied_parameters(config.core))
        known = np.log(self.parameters)
        rate = np.exp(np.interp(np.log(size), known, np.log(self.flops)))
        update = np.interp(np.log(size), known, self.update) * max(1.0, size / self.parameters[-1])
        return float(steps * update + tokens * flops_per_token(config, window) / rate)

    def tokens_per_second(self, config: ModelConfig) -> float:
        """The expected rate in steps of 4,096 tokens."""
        return _TYPICAL / self.seconds(config, 1, _TYPICAL, config.max_seq_len)


def measure_speed(
    precision: str = "auto",
    optimizer: str = "muon",
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
) -> Speed:
    """Time training steps of two small models: some seconds on a slow machine.

    Args:
        precision: as for `Model`.
        optimizer: "muon" or "adamw".
        clock: gives the time in seconds.
        device: as for `Model`.
    """
    rng = np.random.default_rng(0)
    # A step whose tokens take the time, and one that shows what every step takes. More windows take more memory.
    most = max(4, 2 * get_num_threads()) if device == "cpu" else 64
    parameters, flops, update = [], [], []
    for name in _SIZES:
        config = ModelConfig.preset(name)
        model = Model(config, precision=precision, device=device)
        step = (Muon if optimizer == "muon" else AdamW)(model).step
        least: list[float] = []
        optimized: list[float] = []
        for windows in (most, most // 4):
            ids = rng.integers(0, config.vocab_size, (windows, config.max_seq_len))
            seconds = []
            for _ in range(3 if device == "cpu" else 6):  # the first also makes buffers, a GPU's third a graph
                began = clock()
                model.loss_and_grad(ids, ids)
                passed = clock()
                step()
                seconds.append(clock() - began)
                optimized.append(began + seconds[-1] - passed)
            least.append(min(seconds))
        large, small = (windows * config.max_seq_len for windows in (most, most // 4))
        a_token = max((least[0] - least[1]) / (large - small), 1e-12)
        parameters.append(float(_core.multiplied_parameters(config.core)))
        flops.append(flops_per_token(config, config.max_seq_len) / a_token)
        update.append(max(min(optimized), least[1] - a_token * small))  # a busy machine hides small differences
    threads = get_num_threads()
    return Speed(tuple(parameters), tuple(flops), tuple(update), active_isa(), threads, model.precision, device)
