"""The noise of a micro-batch: as a call of the model takes it, and as masks for the oracles."""

from __future__ import annotations

from typing import Any

import numpy as np

from oracles.reference import Array, Config, Masks
from soma_native import _core
from soma_native._core import _ops as ops

NOISE: dict[str, Any] = {"dropout": 0.3, "token_mask": 0.2, "noise": (3, 14, 1)}


def core_noise(dropout: float, token_mask: float, noise: tuple[int, ...]) -> _core.Noise:
    return _core.Noise(dropout, token_mask, list(noise))


def factors(noise: _core.Noise, rows: int, cols: int, site: str = "mlp", layer: int = 0, first_row: int = 0) -> Array:
    """The factors of dropout, (rows, cols) float32."""
    return ops.dropout(np.ones((rows, cols), np.float32), noise, site=site, layer=layer, first_row=first_row)


def masks(config: Config, rows: int, length: int, **options: Any) -> Masks:
    """The masks of a batch (rows, length) that loss_and_grad makes with these options."""
    noise = core_noise(**options)

    def of(site: str, layer: int = 0) -> Array:
        flat = factors(noise, rows * length, config.d_model, site, layer).astype(np.float64)
        return flat.reshape(rows, length, config.d_model)

    layers = range(config.n_layers)
    return Masks(
        tokens=1.0 - ops.masked_tokens(noise, rows * length).reshape(rows, length, 1),
        embedding=of("embedding"),
        attention={layer: of("attention", layer) for layer in layers},
        mlp={layer: of("mlp", layer) for layer in layers},
    )
