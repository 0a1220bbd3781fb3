"""The token ids of all documents in one compact array, and its split into training and validation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native._checks import shown
from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.data.random_words import Stream, random_words
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.files.text_files import batches, iter_sources
from soma_native.tokenizer.tokenizer import Tokenizer

_PIECE = 1 << 18  # tokens that are looked at together


class _Grower:
    """An array that grows at its end, in amortised constant time and without a copy at the end.

    Its first size is more than malloc keeps in a heap, so it grows by moving pages. Unwritten pages take no memory.
    """

    _ROOM = 64 << 20

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array: NDArray[Any] = np.empty(self._ROOM // np.dtype(dtype).itemsize, dtype)
        self._size = 0

    def extend(self, values: NDArray[Any]) -> int:
        end = self._size + len(values)
        if end > len(self._array):
            self._array.resize(max(end, len(self._array) * 9 // 8), refcheck=False)  # which writes to all of it
        self._array[self._size : end] = values
        self._size = end
        return len(values)

    def cut(self, size: int) -> None:
        self._size = size

    def finish(self) -> NDArray[Any]:
        self._array.resize(self._size, refcheck=False)
        return self._array


@dataclass(frozen=True, eq=False)
class TokenStore:
    """The token ids of many documents in one array: 1 byte a token up to 256 ids, 2 up to 65,536, else 4.

    Attributes:
        tokens: all ids, (N,) uint8, uint16 or uint32.
        starts, stops: document d is `tokens[starts[d]:stops[d]]`, at least 2 tokens; (D,) int64.
        dropped_documents, dropped_tokens: documents that were left out because they had fewer than 2 tokens, and so no
            next-token pair; their number, and the number of their tokens.
        unknown_id: the id of <UNK>, or None if the tokenizer has none.
        end_id: the id of the token that ends each document, or None if there is none.

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
    end_id: int | None = None

    @classmethod
    def encode(cls, texts: Texts | TokenStore, tokenizer: Tokenizer, end_of_document: str | None = None) -> TokenStore:
        """Encode every document of `texts`. A store is returned unchanged.

        Args:
            texts: as for `iter_documents`.
            tokenizer: the tokenizer.
            end_of_document: the special token that follows each document; "auto" is <|endoftext|> or <EOS>, if the
                vocabulary has one; None is no token.

        Raises:
            TypeError, ValueError, FileNotFoundError: as `iter_documents`; also a text that the tokenizer refuses, named
                by its index.
            KeyboardInterrupt: Ctrl-C.
        """
        if isinstance(texts, TokenStore):
            return texts
        end_id = _end_id(tokenizer, end_of_document)
        tokens = _Grower(np.min_scalar_type(tokenizer.vocab_size - 1).type)
        bounds = _Grower(np.int64)
        bounds.extend(np.zeros(1, np.int64))
        total = dropped_documents = dropped_tokens = 0
        losses = _core.WordLosses()
        for first, batch in batches(iter_sources(texts)):
            if isinstance(batch, list):
                ids, lengths = tokenizer._encode_joined(batch, first, losses)
                if end_id is not None:
                    ids, lengths = np.insert(ids, np.cumsum(lengths), end_id), lengths + 1
                short = lengths < 2
                tokens.extend(ids[np.repeat(~short, lengths)] if short.any() else ids)
            else:
                sizes = [tokens.extend(ids) for ids in tokenizer._encode_pieces(batch, first, losses)]
                sizes += [] if end_id is None else [tokens.extend(np.array([end_id]))]
                lengths = np.array([sum(sizes)])
                short = lengths < 2
            dropped_documents += int(short.sum())
            dropped_tokens += int(lengths[short].sum())
            bounds.extend(total + np.cumsum(lengths[~short]))
            total += int(lengths[~short].sum())
            tokens.cut(total)
        tokenizer._warn_of_losses(losses)
        ends = bounds.finish()
        unknown_id = tokenizer.token_to_id("<UNK>")
        return cls(tokens.finish(), ends[:-1], ends[1:], dropped_documents, dropped_tokens, unknown_id, end_id)

    @property
    def pairs(self) -> int:
        """Number of next-token pairs: a document of n tokens has n - 1."""
        return int((self.stops - self.starts - 1).sum())

    @property
    def unknown_tokens(self) -> int:
        """Number of tokens that are <UNK>."""
        if self.unknown_id is None:
            return 0
        count = 0
        for at in range(0, len(self.tokens), _PIECE):
            found = at + np.flatnonzero(self.tokens[at : at + _PIECE] == self.unknown_id)
            document = np.searchsorted(self.stops, found, side="right")  # if any, it is this one
            inside = document < len(self.stops)
            count += int((self.starts[document[inside]] <= found[inside]).sum())
        return count

    def counts(self) -> dict[str, int]:
        """The numbers of documents, tokens and pairs, and of what was left out, by name."""
        return {
            "documents": len(self.starts),
            "tokens": int((self.stops - self.starts).sum()),
            "pairs": self.pairs,
            "dropped_documents": self.dropped_documents,
            "dropped_tokens": self.dropped_tokens,
            "unknown_tokens": self.unknown_tokens,
        }

    def fingerprint(self) -> str:
        """Hash of the documents' ids and bounds. Equal documents give the same hash, in any store."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self.stops - self.starts).astype("<i8").tobytes())
        at = 0
        while at < len(self.starts):  # adjoining documents are hashed together
            end = at
            while end + 1 < len(self.starts) and self.starts[end + 1] == self.stops[end]:
                end += 1
            for piece in range(int(self.starts[at]), int(self.stops[end]), _PIECE):
                span = self.tokens[piece : min(piece + _PIECE, int(self.stops[end]))]
                digest.update(span.astype("<u4").tobytes())
            at = end + 1
        return digest.hexdigest()

    def split(self, fraction: float) -> tuple[TokenStore, TokenStore]:
        """Split into (training, validation): about `fraction` of the data, always the same part, is for validation.

        If there are at least 20 documents and none has more than a fifth of the tokens, whole documents are held out.
        Otherwise the end of every document is, as nanoGPT holds out the last tenth of one long text. The pair across
        the cut belongs to neither part. Nothing is copied.

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
            self.tokens, train_starts, train_stops, self.dropped_documents, self.dropped_tokens, self.unknown_id,
            self.end_id,
        )  # fmt: skip
        return train, TokenStore(self.tokens, val_starts, val_stops, unknown_id=self.unknown_id, end_id=self.end_id)

    def _why_not_split(self, fraction: float, cuts: NDArray[np.int64]) -> str:
        """The problem for a message, if no document has two tokens on each side of its cut."""
        whole = f"{int((self.stops - self.starts).sum())} tokens in {len(self.starts)} document(s)"
        if (self.stops - cuts >= 2).any():
            return (
                f"{shown(fraction)} leaves no next-token pair to train on of {whole}: give more text or hold out less"
            )
        return f"{shown(fraction)} holds out no next-token pair of {whole}: give more text, a larger fraction, or 0"

    def require_pairs(self, what: str) -> None:
        """Raise a ValueError if there is no next-token pair; `what` names the argument in the message."""
        if len(self.starts):
            return
        if self.dropped_documents == 0:
            raise ValueError(f"there is no document in {what}: pass at least one text of two or more tokens")
        raise ValueError(
            f"there is no next-token pair in {what}: all {self.dropped_documents} document(s) have fewer than 2 tokens "
            f"({self.dropped_tokens} tokens in all); pass longer texts, or join them"
        )


def _end_id(tokenizer: Tokenizer, token: str | None) -> int | None:
    special = tokenizer.special_tokens
    if token == "auto":
        token = next((known for known in ("<|endoftext|>", "<EOS>") if known in special), None)
    if token is None:
        return None
    if not isinstance(token, str):
        raise ArgumentTypeError("end_of_document", f'must be a special token, "auto" or None, got {token!r:.80}')
    if token not in special:
        names = ", ".join(special) or "none"
        raise ArgumentError(
            "end_of_document", f"must be a special token of the vocabulary ({names}), got {token!r:.80}"
        )
    return tokenizer.token_to_id(token)
