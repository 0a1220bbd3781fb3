"""The mean loss of a model on given data, without training."""

from __future__ import annotations

import numpy as np

from soma_native.data.windows import Windows
from soma_native.model.model import Model


def mean_loss(model: Model, windows: Windows, batch_size: int = 8, limit: int | None = None) -> float:
    """Mean negative log-likelihood over all pairs of `windows`, in nats a token.

    Args:
        model: the model.
        windows: the data.
        batch_size: windows in a forward pass.
        limit: most windows to use, evenly spread; None means all.
    """
    total, pairs = 0.0, 0
    for ids, targets in windows.in_order(batch_size, limit):
        count = int(np.count_nonzero(targets >= 0))
        total += model.loss(ids, targets) * count
        pairs += count
    return total / pairs
