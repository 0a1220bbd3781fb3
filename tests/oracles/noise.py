"""The masks of a noisy step: factors of dropout, and which tokens are kept. Without noise every factor is 1."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from oracles.ops import Array

_ONE = np.ones(())


@dataclass(frozen=True)
class Masks:
    """Factors: 0, or 1 / (1 - rate).

    Attributes:
        tokens: (B, T, 1), of the tokens' embeddings; 0 for masked tokens, else 1.
        embedding: (B, T, C), of the sum of the embeddings.
        attention, mlp: (B, T, C) by layer, of the output of that branch.
    """

    tokens: Array = field(default_factory=lambda: _ONE)
    embedding: Array = field(default_factory=lambda: _ONE)
    attention: Mapping[int, Array] = field(default_factory=lambda: defaultdict(lambda: _ONE))
    mlp: Mapping[int, Array] = field(default_factory=lambda: defaultdict(lambda: _ONE))


NONE = Masks()
