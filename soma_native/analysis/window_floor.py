"""The floor on the very windows that validate a training: all of them, or those that a limit leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soma_native.analysis.floor import Floor, batches_of, bits_of_ids, count_ids, ordinary_ids, spelled_documents
from soma_native.analysis.xz import HAS_XZ, End, xz_bits
from soma_native.core import _core
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.errors import ArgumentError
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.tokenizer.tokenizer import Tokenizer

_CONTEXT = 16  # bytes before a window: the four characters that a 5-gram looks back


class WindowFloor:
    """Reads the training part once. `measure` is then the `text_floor` of what some windows predict.

    A character that a window's end cuts counts where it begins. A 5-gram looks back beyond the beginning of a window.
    xz reads all of the validation part, whatever the windows.

    Args:
        train: the documents that are trained on.
        windows: those of the validation.
        tokenizer: of both, which loses nothing.
        xz: whether to measure xz.
    """

    def __init__(self, train: TokenStore, windows: Windows, tokenizer: Tokenizer, *, xz: bool = True) -> None:
        self._windows = windows
        self._tokenizer = tokenizer
        self._spelled = byte_lengths(tokenizer)
        self._known = count_ids(train, train.starts, train.stops, tokenizer.vocab_size)
        counter = _core.NgramCounter()
        ends = End(last=True), End(last=False)
        xz &= HAS_XZ
        for first, batch in batches_of(spelled_documents("train", train, tokenizer)):
            counter.add(batch, first)
            if xz:
                ends[0].add(batch)
        if xz:
            ends[1].add(spelled_documents("validation", windows.store, tokenizer))
        self._bytes = counter.bytes
        if not self._bytes:
            raise ArgumentError("train", "must have a character, and has none: give more text")
        self._model = _core.KneserNey(counter)
        self._xz = xz_bits(*ends) if xz and ends[1].joined() else None

    def measure(self, limit: int | None = None) -> Floor:
        """The floor of all windows, or of the `limit` that `Windows.in_order` chooses.

        Raises:
            ValueError: they predict no character.
        """
        windows = self._windows
        chosen = np.sort(np.concatenate(list(windows.indices_in_order(1 << 20, limit))))
        starts, lengths = windows.starts[chosen], windows.lengths[chosen]
        texts, skipped = self._texts(starts, lengths)
        bits, character_bits, _, size = self._model.score(texts, 0, skipped)
        if not size:
            raise ArgumentError("validation", "must predict a character, and predicts none: give more text")
        predicted = count_ids(windows.store, starts + 1, starts + lengths + 1, self._tokenizer.vocab_size)
        return Floor(
            ngram=bits / size,
            characters=character_bits / size,
            tokens=bits_of_ids(self._known, predicted, self._spelled),
            xz=self._xz,
            bytes=size,
            training_bytes=self._bytes,
        )

    def _texts(self, starts: NDArray[np.int64], lengths: NDArray[np.integer]) -> tuple[list[str | bytes], list[int]]:
        """What each window predicts, behind a little of what stands before it, and the bytes of the latter."""
        store, ordinary = self._windows.store, ordinary_ids(self._tokenizer)
        texts: list[str | bytes] = []
        skipped: list[int] = []
        documents = np.searchsorted(store.stops, starts, side="right")  # ascending
        for own in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(documents)) + 1):
            document = documents[own[0]]
            begin, end = int(store.starts[document]), int(store.stops[document])
            ids = store.tokens[begin:end]
            data = self._tokenizer.decode_bytes(ids[ordinary[ids]])
            at = np.concatenate([[0], np.cumsum(self._spelled[ids])])  # the first byte of each token
            for i in own:
                first = int(starts[i]) - begin + 1
                a, b = (_character(data, int(at[token])) for token in (first, first + int(lengths[i])))
                before = _character(data, max(0, a - _CONTEXT))
                text = data[before:b]
                skip = a - before
                if _core.find_invalid_utf8(text) >= 0:  # a document that was cut inside a character
                    skip = len(text[:skip].decode("utf-8", "replace").encode())
                    text = text.decode("utf-8", "replace").encode()
                texts.append(text)
                skipped.append(skip)
        return texts, skipped


def _character(data: bytes, at: int) -> int:
    """The first byte from `at` on with which a character begins, or the end."""
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at
