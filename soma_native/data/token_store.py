"""The token ids of all documents in one compact array, and its split into training and validation."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native._checks import integer, shown
from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.data.random_words import Stream, random_words
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.files.text_files import batches, iter_sources
from soma_native.tokenizer.tokenizer import Tokenizer

_PIECE = 1 << 18  # tokens that are looked at together
_MOST = 2**31 - 1  # largest id: batches are int32


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

    def wide_enough_for(self, most: int) -> _Grower:
        """The array itself, or one of a wider type with the same values."""
        dtype = np.min_scalar_type(most)
        if dtype.itemsize <= self._array.itemsize:
            return self
        wider = _Grower(dtype.type)
        wider.extend(self.finish())
        return wider

    def finish(self) -> NDArray[Any]:
        self._array.resize(self._size, refcheck=False)
        return self._array


@dataclass(frozen=True, eq=False, repr=False)
class TokenStore:
    """Documents as token ids in one array. `Trainer.fit` takes it in the place of texts.

    `TokenStore.from_arrays` makes one of an array for each document; this class itself takes one array and the places
    of the documents in it. Nothing is copied: the array may be a memory-mapped file, which must stay as it is.

    Attributes:
        tokens: all ids, (N,) of an integer type, from 0 to 2**31 - 1 inside documents.
        starts, stops: document d is `tokens[starts[d]:stops[d]]`, at least 2 tokens; (D,) int64. Documents stand in
            order and do not overlap.
        dropped_documents, dropped_tokens: documents that were left out because they had fewer than 2 tokens, and so no
            next-token pair; their number, and the number of their tokens.
        unknown_id: the id of <UNK>, or None if the tokenizer has none.
        end_id: the id of the token that ends each document, or None if there is none. Generation ends with it.

    Raises:
        TypeError, ValueError: an argument has another type or shape, a bound is wrong, or an id is out of range. The
            message names document and position.

    >>> TokenStore(np.arange(9, dtype=np.uint16), starts=[0, 5], stops=[5, 9])
    TokenStore(2 documents, 9 tokens, 7 pairs, uint16)
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    dropped_documents: int = 0
    dropped_tokens: int = 0
    unknown_id: int | None = None
    end_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "starts", "stops"):
            array = _integers(name, getattr(self, name))
            object.__setattr__(self, name, array if name == "tokens" else array.astype(np.int64, copy=False))
        if len(self.starts) != len(self.stops):
            raise ArgumentError(
                "stops", f"must be one for each of the {len(self.starts)} starts, got {len(self.stops)}"
            )
        before = np.concatenate([[0], self.stops[:-1]])[: len(self.starts)]
        for name, wrong, problem in (
            ("starts", self.starts < before, "begins before the end of the one before it, or before the array"),
            ("stops", self.stops > len(self.tokens), f"ends after the array of {len(self.tokens)} tokens"),
            ("stops", self.stops - self.starts < 2, "has fewer than 2 tokens, and so no next-token pair"),
        ):
            if wrong.any():
                d = int(wrong.argmax())
                raise ArgumentError(name, f"document {d}, from {self.starts[d]} to {self.stops[d]}, {problem}")
        if self.end_id is not None:
            integer("end_id", self.end_id, 0, _MOST)
        self.require_below(_MOST + 1, "tokens")

    def __repr__(self) -> str:
        counts = [f"{len(self.starts):,} documents", f"{int((self.stops - self.starts).sum()):,} tokens"]
        return f"TokenStore({', '.join(counts)}, {self.pairs:,} pairs, {self.tokens.dtype})"

    @classmethod
    def from_arrays(cls, arrays: Iterable[Any], vocab_size: int | None = None, end_id: int | None = None) -> TokenStore:
        """Documents that are already ids, for instance of a tokenizer that is not from here.

        Args:
            arrays: for each document its ids: a 1-D array of any integer type, or a list. The ids of one array alone
                are used where they are, also in a memory-mapped file; those of several are copied, in as few bytes as
                they fit in. A document of fewer than 2 tokens is dropped and counted.
            vocab_size: number of different ids; None leaves this check to the trainer, which knows its model's.
            end_id: the id that follows each document, and that ends generation. It is added where a document does not
                end with it.

        Raises:
            TypeError: a document is no 1-D array of integers. The message names it.
            ValueError: an id is negative, or not below `vocab_size`: the message names document and position. Also
                where there is no document.

        >>> TokenStore.from_arrays([[5, 6, 7], np.array([6, 5]), [7]], vocab_size=9, end_id=0).tokens
        array([5, 6, 7, 0, 6, 5, 0, 7, 0], dtype=uint8)
        """
        size = _MOST + 1 if vocab_size is None else integer("vocab_size", vocab_size, 1, _MOST + 1)
        end = [] if end_id is None else [integer("end_id", end_id, 0, size - 1)]
        if isinstance(arrays, (str, bytes)) or not isinstance(arrays, Iterable):
            raise ArgumentTypeError("arrays", f"must be an iterable of arrays of ids, got {type(arrays).__name__}")
        documents = (_integers(f"arrays[{d}]", ids) for d, ids in enumerate(arrays))
        head = list(itertools.islice(documents, 2))
        if not head:
            raise ArgumentError("arrays", "has no document: give an array of ids for each, such as [[5, 6, 7]]")
        if len(head) == 1 and len(head[0]) >= 2 and (not end or head[0][-1] == end_id):
            store = cls(head[0], np.zeros(1, np.int64), np.array([len(head[0])]), end_id=end_id)
            store.require_below(size, "arrays")
            return store
        tokens, bounds = _Grower(np.uint8), _Grower(np.int64)
        bounds.extend(np.zeros(1, np.int64))
        total = dropped = dropped_tokens = 0
        for d, ids in enumerate(itertools.chain(head, documents)):
            most = _largest(f"arrays[{d}]", ids, size)
            parts = [ids] if not end or (len(ids) and ids[-1] == end_id) else [ids, np.array(end)]
            length = sum(map(len, parts))
            if length < 2:
                dropped, dropped_tokens = dropped + 1, dropped_tokens + length
                continue
            tokens = tokens.wide_enough_for(max([most, *end]))
            for part in parts:
                tokens.extend(part)
            total += length
            bounds.extend(np.array([total]))
        ends = bounds.finish()
        return cls(tokens.finish(), ends[:-1], ends[1:], dropped, dropped_tokens, end_id=end_id)

    @classmethod
    def encode(
        cls, texts: Texts | TokenStore, tokenizer: Tokenizer | None, end_of_document: str | None = None
    ) -> TokenStore:
        """Encode every document of `texts`. A store is returned unchanged.

        Args:
            texts: as for `iter_documents`.
            tokenizer: the tokenizer; None if `texts` is a store.
            end_of_document: the special token that follows each document; "auto" is <|endoftext|> or <EOS>, if the
                vocabulary has one; None is no token.

        Raises:
            TypeError, ValueError, FileNotFoundError: as `iter_documents`; also a text that the tokenizer refuses, named
                by its index.
            KeyboardInterrupt: Ctrl-C.
        """
        if isinstance(texts, TokenStore):
            return texts
        if tokenizer is None:
            raise ArgumentTypeError("texts", "must be a soma_native.TokenStore of ids, for there is no tokenizer")
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
            count += len(self._inside(at + np.flatnonzero(self.tokens[at : at + _PIECE] == self.unknown_id))[0])
        return count

    def _inside(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of these indices of `tokens` that are in a document, and the document of each."""
        document = np.searchsorted(self.stops, places, side="right")  # if any, it is this one
        places, document = places[document < len(self.stops)], document[document < len(self.stops)]
        inside = self.starts[document] <= places
        return places[inside], document[inside]

    def require_below(self, size: int, what: str) -> None:
        """Raise an ArgumentError if an id of a document is negative or not below `size`; `what` names the store."""
        limits = np.iinfo(self.tokens.dtype)
        if limits.min == 0 and limits.max < size:
            return
        for at in range(0, len(self.tokens), _PIECE):
            piece = self.tokens[at : at + _PIECE]
            if int(piece.min()) >= 0 and int(piece.max()) < size:
                continue
            places, documents = self._inside(at + np.flatnonzero((piece < 0) | (piece >= size)))
            if len(places):
                d, place = int(documents[0]), int(places[0])
                where = f"document {d} has the id {self.tokens[place]} at position {place - self.starts[d]}"
                raise ArgumentError(what, f"must have ids from 0 to {size - 1}; {where}")

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
            raise ValueError(f"there is no document in {what}: give at least one text of two or more tokens")
        raise ValueError(
            f"there is no next-token pair in {what}: all {self.dropped_documents} document(s) have fewer than 2 tokens "
            f"({self.dropped_tokens} tokens in all); give longer texts, or join them"
        )


def _integers(name: str, value: Any) -> NDArray[Any]:
    """`value` as a 1-D array of integers, which is not copied."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # a list of lists of different lengths
        raise ArgumentTypeError(name, f"must be a 1-D array of integers: {error}") from None
    if array.size == 0 and array.ndim == 1 and not isinstance(value, np.ndarray):
        return array.astype(np.int64)  # an empty list, which has no type
    if array.ndim != 1 or array.dtype.kind not in "iu":
        got = f"{array.dtype} of shape {array.shape}" if array.ndim else f"{value!r:.80}"
        raise ArgumentTypeError(name, f"must be a 1-D array of integers, got {got}; one document is [ids]")
    return array


def _largest(name: str, ids: NDArray[Any], size: int) -> int:
    """The largest of these ids, or 0 if there is none. Raises an ArgumentError if one is not from 0 to `size` - 1."""
    most = int(ids.max()) if len(ids) else 0
    if len(ids) and (most >= size or int(ids.min()) < 0):
        at = int(((ids < 0) | (ids >= size)).argmax())
        raise ArgumentError(name, f"must have ids from 0 to {size - 1}, got {ids[at]} at position {at}")
    return most


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
