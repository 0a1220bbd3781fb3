"""What an epoch of a corpus takes: its windows in their true lengths, in batches as `EpochSampler` makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from soma_native.errors import ArgumentError
from soma_native.planning.corpus import Corpus

_POOL = 16  # batches that `EpochSampler` sorts together


@dataclass(frozen=True)
class Epoch:
    """The expected size of an epoch.

    Attributes:
        steps: optimizer steps.
        pairs: next-token pairs, each trained once.
        padded: tokens that the steps compute, with the padding of shorter windows.
        batch, longest: most windows in a step, and most pairs in a window.
    """

    steps: int
    pairs: float
    padded: float
    batch: int
    longest: int


def epoch_of(corpus: Corpus, per_token: float, window: int, batch: int, val_fraction: float, end: bool = True) -> Epoch:
    """The epoch of what a corpus leaves to train on.

    Args:
        corpus: of training and validation together.
        per_token: expected characters of a token.
        window: most pairs in a window.
        batch: most windows in a step.
        val_fraction: the part that is held out, as `TokenStore.split` does it.
        end: whether a token ends each document.

    Raises:
        ValueError: no document has two tokens.

    >>> epoch_of(Corpus(1, 100, 100, 30), per_token=1.0, window=8, batch=4, val_fraction=0.0)
    Epoch(steps=4, pairs=100.0, padded=112.0, batch=4, longest=8)
    """
    each = corpus.lengths or ((corpus.characters // corpus.documents, corpus.documents),)
    characters, counts = np.array(each, np.float64).T
    tokens = np.ceil(characters / per_token) + end
    tokens, counts = tokens[tokens >= 2], counts[tokens >= 2]
    if not len(tokens):
        raise ArgumentError("texts", "has no document of two tokens: give longer texts, or join them")
    if counts.sum() >= 20 and tokens[-1] * 5 <= tokens @ counts:
        counts = counts * (1 - val_fraction)
    else:
        cut = np.floor(tokens * (1 - val_fraction))
        tokens = np.where((cut >= 2) & (tokens - cut >= 2), cut, tokens)
    pairs = tokens - 1
    # A longer document is cut at an offset. Its first and its last window share what whole windows leave.
    whole = np.where(pairs > window, np.ceil((pairs - 1) / window) - 1, 0)
    rest = np.where(pairs > window, np.ceil((pairs - whole * window) / 2), pairs)
    lengths = np.concatenate([rest, [window]])
    numbers = np.concatenate([np.where(pairs > window, 2, 1) * counts, [whole @ counts]])
    order = np.argsort(lengths, kind="stable")
    lengths, ends = lengths[order], np.cumsum(numbers[order])
    steps = max(1, math.ceil(round(float(ends[-1]), 6) / batch))
    pool = np.arange(1, min(steps, _POOL) + 1) * batch  # the last window of each batch of a pool is its longest
    last = np.minimum(pool, ends[-1]) if steps <= _POOL else pool * ends[-1] / (pool[-1] + 1)
    longest = lengths[np.searchsorted(ends, last - 1e-6)]
    padded = np.diff(last, prepend=0) @ longest * ends[-1] / last[-1]
    most = lengths[numbers[order] > 0][-1]
    return Epoch(steps, float(pairs @ counts), float(padded), min(batch, math.ceil(ends[-1])), int(most))
