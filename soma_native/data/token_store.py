"""The ids of all documents in one compact array, and which part of them is held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native._checks import shown
from soma_native.data.documents import Texts, iter_documents
from soma_native.data.random_words import Stream, random_words
from soma_native.errors import ArgumentError
from soma_native.files.text_files import batches
from soma_native.tokenizer.tokenizer import Tokenizer


class _Grower:
    """An array that grows at its end: amortised constant time, and no second copy when it is finished."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array: NDArray[Any] = np.empty(1024, dtype)
        self._size = 0

    def extend(self, values: NDArray[Any]) -> None:
        end = self._size + len(values)
        if end > len(self._array):
            self._array.resize(max(end, len(self._array) * 3 // 2), refcheck=False)
        self._array[self._size : end] = values
        self._size = end

    def finish(self) -> NDArray[Any]:
        self._array.resize(self._size, refcheck=False)
        return self._array


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The token ids of many documents in one array: 2 bytes a token up to 65,536 different ones, 4 beyond.

    Attributes:
        tokens: all ids, (N,) uint16 or uint32.
        starts, stops: document d is `tokens[starts[d]:stops[d]]`, at least 2 tokens; (D,) int64.
        dropped_documents, dropped_tokens: what had fewer than 2 tokens, and so no next-token pair.
        unknown_id: the id of <UNK>, or None where the tokenizer has none.

    >>> store = TokenStore(np.arange(5, dtype=np.uint16), np.array([0]), np.array([5]))
    >>> store.pairs, store.counts()["tokens"]
    (4, 5)
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    dropped_documents: int = 0
    dropped_tokens: int = 0
    unknown_id: int | None = None

    @classmethod
    def encode(cls, texts: Texts | TokenStore, tokenizer: Tokenizer) -> TokenStore:
        """Encode every document of `texts`; a store is returned as it is.

        Raises:
            TypeError, ValueError, FileNotFoundError: as `iter_documents`; a text the tokenizer refuses is named by
                its position.
            KeyboardInterrupt: Ctrl-C.
        """
        if isinstance(texts, TokenStore):
            return texts
        tokens = _Grower(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        stops = _Grower(np.int64)
        total = dropped_documents = dropped_tokens = 0
        for first, batch in batches(iter_documents(texts)):
            ids, lengths = tokenizer._encode_joined(batch, first)
            short = lengths < 2
            if short.any():
                dropped_documents += int(short.sum())
                dropped_tokens += int(lengths[short].sum())
                ids = ids[np.repeat(~short, lengths)]
                lengths = lengths[~short]
            tokens.extend(ids)
            stops.extend(total + np.cumsum(lengths))
            total += len(ids)
        ends = stops.finish()
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
        unknown_id = tokenizer.token_to_id("<UNK>")
        return cls(tokens.finish(), starts, ends, dropped_documents, dropped_tokens, unknown_id)

    @property
    def pairs(self) -> int:
        """Number of next-token pairs: one less than its tokens for every document."""
        return int((self.stops - self.starts - 1).sum())

    @property
    def unknown_tokens(self) -> int:
        """Number of tokens that are <UNK>."""
        if self.unknown_id is None:
            return 0
        found = np.flatnonzero(self.tokens == self.unknown_id)
        return int((np.searchsorted(found, self.stops) - np.searchsorted(found, self.starts)).sum())

    def counts(self) -> dict[str, int]:
        """What there is and what was left out, by name."""
        return {
            "documents": len(self.starts),
            "tokens": int((self.stops - self.starts).sum()),
            "pairs": self.pairs,
            "dropped_documents": self.dropped_documents,
            "dropped_tokens": self.dropped_tokens,
            "unknown_tokens": self.unknown_tokens,
        }

    def fingerprint(self) -> str:
        """Hash of the documents' ids and bounds; equal for equal data, whatever it was cut from."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self.stops - self.starts).astype("<i8").tobytes())
        at = 0
        while at < len(self.starts):  # runs of adjoining documents are hashed in one go
            end = at
            while end + 1 < len(self.starts) and self.starts[end + 1] == self.stops[end]:
                end += 1
            for piece in range(int(self.starts[at]), int(self.stops[end]), 1 << 20):
                span = self.tokens[piece : min(piece + (1 << 20), int(self.stops[end]))]
                digest.update(span.astype("<u4").tobytes())
            at = end + 1
        return digest.hexdigest()

    def split(self, fraction: float) -> tuple[TokenStore, TokenStore]:
        """Hold out about `fraction` of the data, the same part every time: (training, validation).

        Whole documents are held out when there are at least 20 and none has more than a fifth of the tokens.
        Otherwise the tail of every document is (nanoGPT's last tenth of one long text); the pair across the cut
        belongs to neither part. No pair is in both. Nothing is copied.

        Raises:
            ValueError: a part would have no pair.
        """
        lengths = self.stops - self.starts
        count = len(lengths)
        if count >= 20 and int(lengths.max()) * 5 <= int(lengths.sum()):
            order = np.argsort(random_words(0, Stream.SPLIT, 0, count), kind="stable")
            held = np.zeros(count, bool)
            held[order[: min(max(1, round(fraction * count)), count - 1)]] = True
            train_starts, train_stops = self.starts[~held], self.stops[~held]
            val_starts, val_stops = self.starts[held], self.stops[held]
        else:
            cuts = self.starts + (lengths * (1.0 - fraction)).astype(np.int64)
            can = (cuts - self.starts >= 2) & (self.stops - cuts >= 2)
            train_starts, train_stops = self.starts, np.where(can, cuts, self.stops)
            val_starts, val_stops = cuts[can], self.stops[can]
            if not can.any():
                raise ArgumentError("val_fraction", self._why_not_split(fraction, cuts))
        train = TokenStore(
            self.tokens, train_starts, train_stops, self.dropped_documents, self.dropped_tokens, self.unknown_id
        )
        return train, TokenStore(self.tokens, val_starts, val_stops, unknown_id=self.unknown_id)

    def _why_not_split(self, fraction: float, cuts: NDArray[np.int64]) -> str:
        """What to say where no document has two tokens on either side of its cut."""
        whole = f"{int((self.stops - self.starts).sum())} tokens in {len(self.starts)} document(s)"
        if (self.stops - cuts >= 2).any():
            return (
                f"{shown(fraction)} leaves no next-token pair to train on of {whole}: give more text or hold out less"
            )
        return f"{shown(fraction)} holds out no next-token pair of {whole}: give more text, a larger fraction, or 0"

    def require_pairs(self, what: str) -> None:
        """Raise a ValueError that says why, if there is no next-token pair; `what` names the argument."""
        if len(self.starts):
            return
        if self.dropped_documents == 0:
            raise ValueError(f"there is no document in {what}: pass at least one text of two or more tokens")
        raise ValueError(
            f"there is no next-token pair in {what}: all {self.dropped_documents} document(s) have fewer than 2 tokens "
            f"({self.dropped_tokens} tokens in all); pass longer texts, or join them"
        )
