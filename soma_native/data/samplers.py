"""Samplers choose the windows of each step, all once an epoch or at random, from the seed and the step alone."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from soma_native.data.random_words import Stream, random_words
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows, gather


class Sampler(Protocol):
    """Gives the batches of each step."""

    steps_per_epoch: int

    def batches(self, step: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The micro-batches of step `step` (counted from 0), each (ids, targets) as `Windows.batch`."""
        ...


class EpochSampler:
    """Every window once an epoch, in a new order for each epoch, which depends on (seed, epoch).

    The windows are shuffled, and sorted by length in pools of 16 batches to limit padding. Then they are cut into
    batches, and the batches are shuffled. `batches(step)` depends on its argument alone, so training can start at any
    step. The last step of an epoch may have fewer windows.

    With `fresh`, documents longer than a window are cut at offsets that depend on (seed, epoch, document). The number
    of windows then differs between epochs. Every epoch has the batches that its most windows need, and shares its
    windows evenly among them. If no document is cut, `fresh` changes nothing.

    >>> store = TokenStore(np.arange(100, dtype=np.uint16), np.array([0]), np.array([100]))
    >>> sampler = EpochSampler(Windows(store, seq_len=8), batch_size=4, seed=0)
    >>> sampler.steps_per_epoch
    4
    >>> sum(int((targets >= 0).sum()) for step in range(4) for _, targets in sampler.batches(step))
    99
    """

    _POOL = 16

    def __init__(
        self, windows: Windows, batch_size: int, seed: int, grad_accumulation: int = 1, fresh: bool = False
    ) -> None:
        self._windows = windows
        self._batch_size = batch_size
        self._seed = seed
        self._accumulate = grad_accumulation
        self._fresh = fresh and len(windows) > len(windows.store.starts)
        self._count = -(-(windows.most if self._fresh else len(windows)) // batch_size)
        self.steps_per_epoch = -(-self._count // grad_accumulation)
        self._epoch = -1
        self._order: NDArray[np.int32] = np.empty(0, np.int32)
        self._bounds: NDArray[np.int64] = np.empty(0, np.int64)  # of the batches in the order
        self._batch_order: NDArray[np.int64] = np.empty(0, np.int64)

    def batches(self, step: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """As `Sampler.batches`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        first = within * self._accumulate
        return [
            self._windows.batch(self._order[self._bounds[batch] : self._bounds[batch + 1]])
            for batch in self._batch_order[first : first + self._accumulate].tolist()
        ]

    def _shuffle(self, epoch: int) -> None:
        if self._fresh:
            self._windows = self._cut(epoch)
        count = len(self._windows)
        batches = np.arange(self._count + 1)
        self._bounds = batches * count // self._count if self._fresh else np.minimum(batches * self._batch_size, count)
        order = np.argsort(random_words(self._seed, Stream.SHUFFLE, epoch, count), kind="stable")
        pool = np.repeat((batches[:-1] // self._POOL).astype(np.int32), np.diff(self._bounds))
        self._order = order[np.lexsort((self._windows.lengths[order], pool))].astype(np.int32)
        self._batch_order = np.argsort(random_words(self._seed, Stream.BATCHES, epoch, self._count), kind="stable")
        self._epoch = epoch

    def _cut(self, epoch: int) -> Windows:
        store, seq_len = self._windows.store, self._windows.seq_len
        words = random_words(self._seed, Stream.OFFSETS, epoch, len(store.starts))
        windows = Windows(store, seq_len, (words % np.uint64(seq_len)).astype(np.int64))
        windows.split_longest(max(0, self._count - len(windows)))  # no batch is empty, which matters for batches of 1
        return windows


class RandomSampler:
    """Windows at random places, drawn with replacement, as in nanoGPT. The places depend on (seed, step).

    A window starts at any token that `seq_len` pairs of the same document follow; all these places are equally likely.
    A shorter document counts as one place and gives a shorter window. An "epoch" has the number of steps that draw as
    many pairs as the store has.

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
        """As `Sampler.batches`."""
        words = random_words(self._seed, Stream.RANDOM, step, self._batch_size * self._accumulate)
        place = (words % np.uint64(self._ends[-1])).astype(np.int64)
        document = np.searchsorted(self._ends, place, side="right")
        starts = self._store.starts[document] + place - self._firsts[document]
        lengths = self._lengths[document]
        size = self._batch_size
        return [
            gather(self._store.tokens, starts[at : at + size], lengths[at : at + size])
            for at in range(0, len(starts), size)
        ]
