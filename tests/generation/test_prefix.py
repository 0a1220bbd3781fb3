"""The common beginning of two lists of tokens."""

from __future__ import annotations

import numpy as np

from soma_native.generation.prefix import shared_length


def test_the_longest_common_beginning() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.integers(0, 2, rng.integers(0, 12)).tolist() for _ in range(2))
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert shared_length(a, b) == common
