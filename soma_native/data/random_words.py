"""Random numbers that depend on nothing but seed, purpose and place, so that training can begin anywhere."""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Stream(enum.IntEnum):
    """One for each purpose; the numbers are those of runs that were saved."""

    SHUFFLE = 0
    BATCHES = 1
    RANDOM = 2
    SPLIT = 3


def random_words(seed: int, stream: int, index: int, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on the arguments alone (Philox4x64: Salmon et al. 2011).

    The raw words of a bit generator are fixed by NumPy's compatibility policy; those of `Generator.permutation` are
    not, and an order that changed with NumPy would break resuming.
    """
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
