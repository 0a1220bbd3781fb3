"""Random numbers that depend on seed, purpose and index alone, so that training can resume at any step."""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray


class Stream(enum.IntEnum):
    """One stream for each purpose. Saved runs depend on the numbers, so never change them."""

    SHUFFLE = 0
    BATCHES = 1
    RANDOM = 2
    SPLIT = 3
    OFFSETS = 4


def random_words(seed: int, stream: int, index: int, count: int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on the arguments alone (Philox4x64: Salmon et al. 2011).

    NumPy promises to keep the raw words of a bit generator, but not the order of `Generator.permutation`. A changed
    order would break resuming.
    """
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
