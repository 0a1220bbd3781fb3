"""From token ids to batches: windows of next-token pairs, padded and put into batches in an order that depends on
nothing but the seed and the step, so that training can begin anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from soma_native.data import TokenStore, random_words

__all__ = ["IGNORE_INDEX", "EpochSampler", "RandomSampler", "Sampler", "Windows"]

IGNORE_INDEX = -100  # target of a padded position: the model leaves it out of the loss
_SHUFFLE_STREAM, _BATCHES_STREAM, _RANDOM_STREAM = range(3)  # of random_words: one for each purpose


class Windows:
    """Windows of at most `seq_len` next-token pairs; together they hold every pair of the store exactly once.

    A document of n tokens is one window of n - 1 pairs if that is at most `seq_len`; a longer one is cut into
    consecutive windows that share the token at the cut. No window crosses from one document into another.

    Attributes:
        starts: where in `store.tokens` each window begins, (W,) int64.
        lengths: its number of pairs, (W,) int64; the window spans one token more.

    >>> store = TokenStore(np.arange(6, dtype=np.uint16), np.array([0]), np.array([6]))
    >>> windows = Windows(store, seq_len=3)
    >>> ids, targets = windows.batch(np.array([0, 1]))
    >>> ids.tolist(), targets.tolist()
    ([[0, 1, 2], [3, 4, 0]], [[1, 2, 3], [4, 5, -100]])
    """

    def __init__(self, store: TokenStore, seq_len: int) -> None:
        self.store = store
        self.seq_len = seq_len
        pairs = store.stops - store.starts - 1
        per_document = -(-pairs // seq_len)
        first = np.cumsum(per_document) - per_document
        within = np.arange(int(per_document.sum()), dtype=np.int64) - np.repeat(first, per_document)
        self.starts: NDArray[np.int64] = np.repeat(store.starts, per_document) + within * seq_len
        self.lengths: NDArray[np.int64] = np.minimum(seq_len, np.repeat(pairs, per_document) - within * seq_len)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def pairs(self) -> int:
        """Number of next-token pairs in all windows."""
        return int(self.lengths.sum())

    def batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The windows `indices` as `ids` and `targets`, both (B, T) int32.

        T is the longest of these windows; shorter ones are padded at the right with id 0 and target -100, which the
        model's loss leaves out (and which, to the right, causal attention never lets the others see).
        """
        return gather(self.store.tokens, self.starts[indices], self.lengths[indices])

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[tuple[NDArray[np.int32], ...]]:
        """Batches of all windows, sorted by length so that little is padded; of `limit`, evenly spread, if given."""
        chosen = np.argsort(self.lengths, kind="stable")
        if limit is not None and limit < len(chosen):
            chosen = chosen[np.arange(limit) * len(chosen) // limit]
        for at in range(0, len(chosen), batch_size):
            yield self.batch(chosen[at : at + batch_size])


def gather(
    tokens: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cut windows out of `tokens`: (ids, targets), both (B, max(lengths)) int32, padded as `Windows.batch` says."""
    width = int(lengths.max())
    columns = np.arange(width + 1, dtype=np.int64)
    spans = tokens[np.minimum(starts[:, None] + columns, len(tokens) - 1)].astype(np.int32)
    inside = columns[:width] < lengths[:, None]
    return np.where(inside, spans[:, :-1], np.int32(0)), np.where(inside, spans[:, 1:], np.int32(IGNORE_INDEX))


class Sampler(Protocol):
    """Where the batches of a step come from; `micro` counts the micro-batches of one step."""

    steps_per_epoch: int

    def batches(self, step: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The micro-batches of step `step` (counted from 0), each (ids, targets)."""
        ...


class EpochSampler:
    """Every window once an epoch, in an order drawn anew for each epoch from (seed, epoch).

    The windows are shuffled, sorted by length inside pools of 16 batches so that little is padded, cut into batches,
    and the batches shuffled. `batches(step)` is a function of its argument, so training can start at any step. The last
    step of an epoch may have fewer windows.

    >>> store = TokenStore(np.arange(100, dtype=np.uint16), np.array([0]), np.array([100]))
    >>> sampler = EpochSampler(Windows(store, seq_len=8), batch_size=4, seed=0)
    >>> sampler.steps_per_epoch
    4
    >>> sum(int((targets >= 0).sum()) for step in range(4) for _, targets in sampler.batches(step))
    99
    """

    _POOL = 16

    def __init__(self, windows: Windows, batch_size: int, seed: int, grad_accumulation: int = 1) -> None:
        self._windows = windows
        self._batch_size = batch_size
        self._seed = seed
        self._accumulate = grad_accumulation
        self._count = -(-len(windows) // batch_size)
        self.steps_per_epoch = -(-self._count // grad_accumulation)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)
        self._batch_order: NDArray[np.int64] = np.empty(0, np.int64)

    def batches(self, step: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The micro-batches of step `step` (counted from 0), each (ids, targets) as `Windows.batch`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        first = within * self._accumulate
        size = self._batch_size
        return [
            self._windows.batch(self._order[batch * size : (batch + 1) * size])
            for batch in self._batch_order[first : first + self._accumulate].tolist()
        ]

    def _shuffle(self, epoch: int) -> None:
        count = len(self._windows)
        order = np.argsort(random_words(self._seed, _SHUFFLE_STREAM, epoch, count), kind="stable")
        pool = np.arange(count) // (self._POOL * self._batch_size)
        self._order = order[np.lexsort((self._windows.lengths[order], pool))]
        self._batch_order = np.argsort(random_words(self._seed, _BATCHES_STREAM, epoch, self._count), kind="stable")
        self._epoch = epoch


class RandomSampler:
    """Windows at random places, drawn with replacement from (seed, step): nanoGPT's recipe.

    A window starts at any token from which `seq_len` pairs lie inside one document, all such places being equally
    likely; a document too short for that counts as one place and gives a shorter window. An "epoch" is as many steps
    as it takes to draw as many pairs as there are.

    >>> store = TokenStore(np.arange(100, dtype=np.uint16), np.array([0]), np.array([100]))
    >>> sampler = RandomSampler(store, seq_len=8, batch_size=4, seed=0)
    >>> ids, targets = sampler.batches(step=0)[0]
    >>> ids.shape, bool((targets == ids + 1).all())
    ((4, 8), True)
    """

    def __init__(self, store: TokenStore, seq_len: int, batch_size: int, seed: int, grad_accumulation: int = 1) -> None:
        self._store = store
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._seed = seed
        self._accumulate = grad_accumulation
        pairs = store.stops - store.starts - 1
        places = np.maximum(1, pairs - seq_len + 1)
        self._ends = np.cumsum(places)
        self._firsts = self._ends - places
        self._lengths = np.minimum(pairs, seq_len)
        pairs_per_window = float((self._lengths * places).sum()) / float(self._ends[-1])
        self.steps_per_epoch = max(1, round(store.pairs / (pairs_per_window * batch_size * grad_accumulation)))

    def batches(self, step: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The micro-batches of step `step` (counted from 0), each (ids, targets) as `Windows.batch`."""
        words = random_words(self._seed, _RANDOM_STREAM, step, self._batch_size * self._accumulate)
        place = (words % np.uint64(self._ends[-1])).astype(np.int64)
        document = np.searchsorted(self._ends, place, side="right")
        starts = self._store.starts[document] + place - self._firsts[document]
        lengths = self._lengths[document]
        size = self._batch_size
        return [
            gather(self._store.tokens, starts[at : at + size], lengths[at : at + size])
            for at in range(0, len(starts), size)
        ]
