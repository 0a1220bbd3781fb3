"""Cuts a token store into windows of next-token pairs, and pads windows into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native.data.token_store import TokenStore

IGNORE_INDEX = -100  # target of a padded position: the model leaves it out of the loss


class Windows:
    """Windows of at most `seq_len` next-token pairs. Together they hold every pair of the store exactly once.

    A document of n tokens is one window of n - 1 pairs, if this is at most `seq_len`. A longer document is cut into
    consecutive windows that share the token at the cut. No window holds tokens of two documents.

    Args:
        store: the documents.
        seq_len: most pairs in a window.
        offsets: (documents,) int64, the pairs of the first window of each document that is cut, from 0 to seq_len - 1;
            0 is a whole window. None means 0 for all.

    Attributes:
        starts: the index in `store.tokens` of each window's first token, (W,) int64.
        lengths: the number of pairs of each window, (W,) int32; the window has one token more.

    >>> store = TokenStore(np.arange(6, dtype=np.uint16), np.array([0]), np.array([6]))
    >>> windows = Windows(store, seq_len=3)
    >>> ids, targets = windows.batch(np.array([0, 1]))
    >>> ids.tolist(), targets.tolist()
    ([[0, 1, 2], [3, 4, 0]], [[1, 2, 3], [4, 5, -100]])
    """

    def __init__(self, store: TokenStore, seq_len: int, offsets: NDArray[np.int64] | None = None) -> None:
        self.store = store
        self.seq_len = seq_len
        pairs = store.stops - store.starts - 1
        # A document is cut as if `before` more pairs stood before it, of which its first window is then relieved.
        before = np.zeros_like(pairs) if offsets is None else np.where(pairs > seq_len, -offsets % seq_len, 0)
        per_document = -(-(pairs + before) // seq_len)
        first = np.cumsum(per_document) - per_document
        within = np.arange(int(per_document.sum()), dtype=np.int64)  # a document; in place, for there may be many
        within -= np.repeat(first, per_document)
        within *= seq_len
        lengths = np.repeat(pairs + before, per_document)
        lengths -= within
        np.minimum(lengths, seq_len, out=lengths)
        lengths[first] -= before
        self.lengths: NDArray[np.int32] = lengths.astype(np.int32)
        self.starts: NDArray[np.int64] = within
        self.starts += np.repeat(store.starts - before, per_document)
        self.starts[first] += before

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def most(self) -> int:
        """The largest number of windows that any offsets give."""
        pairs = self.store.stops - self.store.starts - 1
        return int(np.where(pairs > self.seq_len, -(-(pairs - 1) // self.seq_len) + 1, 1).sum())

    def split_longest(self, count: int) -> None:
        """Halve the `count` longest windows."""
        if count == 0:
            return
        longest = np.argsort(-self.lengths, kind="stable")[:count]
        half = self.lengths[longest] // 2
        self.starts = np.concatenate([self.starts, self.starts[longest] + half])
        self.lengths = np.concatenate([self.lengths, self.lengths[longest] - half])
        self.lengths[longest] = half

    @property
    def pairs(self) -> int:
        """Number of next-token pairs in all windows."""
        return int(self.lengths.sum())

    def batch(self, indices: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The windows `indices` as `ids` and `targets`, both (B, T) int32.

        T is the length of the longest of these windows. Shorter ones are padded at the right with id 0 and target -100,
        which the loss ignores. Causal attention keeps the padding from the other positions.
        """
        return gather(self.store.tokens, self.starts[indices], self.lengths[indices])

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[tuple[NDArray[np.int32], ...]]:
        """Batches of all windows, or of `limit` evenly spread ones, sorted by length to limit padding."""
        return map(self.batch, self.indices_in_order(batch_size, limit))

    def indices_in_order(self, batch_size: int, limit: int | None = None) -> Iterator[NDArray[np.int64]]:
        """The indices of the windows of each batch of `in_order`."""
        chosen = np.argsort(self.lengths, kind="stable")
        if limit is not None and limit < len(chosen):
            chosen = chosen[np.arange(limit) * len(chosen) // limit]
        for at in range(0, len(chosen), batch_size):
            yield chosen[at : at + batch_size]


def gather(
    tokens: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cut windows out of `tokens`: (ids, targets), both (B, max(lengths)) int32, padded as in `Windows.batch`."""
    width = int(lengths.max())
    columns = np.arange(width + 1, dtype=np.int64)
    spans = tokens[np.minimum(starts[:, None] + columns, len(tokens) - 1)].astype(np.int32)
    inside = columns[:width] < lengths[:, None]
    return np.where(inside, spans[:, :-1], np.int32(0)), np.where(inside, spans[:, 1:], np.int32(IGNORE_INDEX))
