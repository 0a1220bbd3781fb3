"""The floor: how well a text is predicted by what needs no training, in bits per byte, beside a model's own figure."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soma_native._checks import flag, instance, number
from soma_native.analysis.xz import HAS_XZ, End, xz_bits
from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.data.token_store import TokenStore
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.files.text_files import iter_texts
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.tokenizer.tokenizer import Tokenizer

_SMALL = 500_000  # bytes of a training text that a 5-gram has learned sooner than a model does
_REPEATED = 0.1  # bits per byte of a 5-gram below which a text repeats itself
_TELLING = 100  # bytes of a validation text below which a comparison says nothing
_BATCH = 1 << 24  # characters of documents that are handed to the core at once

_log = logging.getLogger("soma_native")


@dataclass(frozen=True)
class Floor:
    """What simple models of the training text reach on the validation text, in bits per UTF-8 byte; lower is better.

    Attributes:
        ngram: a character 5-gram with interpolated modified Kneser-Ney smoothing.
        characters: single characters, each with its frequency in the training text.
        tokens: single tokens of the tokenizer, likewise; None without one, or where it loses a part of the text.
        xz: what `xz -9e` needs for both texts beyond what it needs for the first; None where it was not asked for, or
            this Python has no module lzma.
        bytes: of the validation text that `ngram`, `characters` and `tokens` predict.
        training_bytes: of the training text.
    """

    ngram: float
    characters: float
    tokens: float | None
    xz: float | None
    bytes: int
    training_bytes: int

    def __str__(self) -> str:
        parts = {"character 5-gram": self.ngram, "single tokens": self.tokens, "xz -9e": self.xz}
        return ", ".join(f"{name} {bits:.4f}" for name, bits in parts.items() if bits is not None) + " bits/byte"

    def sentence(self, bits_per_byte: float) -> str:
        """How a model with this figure on the same bytes compares.

        >>> Floor(2.0, 4.5, 3.9, 2.5, bytes=100_000, training_bytes=900_000).sentence(1.72)
        '14% below a 5-gram, 31% below xz -9e'
        >>> Floor(2.0, 4.5, 3.9, 2.5, bytes=2_000, training_bytes=18_000).sentence(2.1)
        'this text is too small: the 5-gram wins by 5%'
        >>> Floor(2.0, 4.5, 3.9, 2.5, bytes=60, training_bytes=500).sentence(1.7)
        'not to be told from 60 bytes'
        """
        bits = number("bits_per_byte", bits_per_byte, least=0)
        if self.bytes < _TELLING:
            return f"not to be told from {self.bytes} bytes"
        if self.ngram < _REPEATED:
            return f"this text repeats itself: a 5-gram knows it by {self.ngram:.3f} bits/byte"
        share = round(100 * (1 - bits / self.ngram))
        if share < 0:
            small = self.training_bytes < _SMALL
            by = f"by {-share}%" if share >= -100 else "by far"
            return f"{'this text is too small: ' if small else ''}the 5-gram wins {by}"
        said = f"{share}% below a 5-gram" if share else "level with a 5-gram"
        if self.xz:
            share = round(100 * (1 - bits / self.xz))
            said += f", {abs(share)}% {'below' if share >= 0 else 'above'} xz -9e"
        return said


def text_floor(
    train: Texts | TokenStore, validation: Texts | TokenStore, tokenizer: Tokenizer | None = None, *, xz: bool = True
) -> Floor:
    """Measure the floor of a validation text.

    Contexts end with their document. With a tokenizer that loses nothing, the first token of each document is left out
    of `bytes` and of all but `xz`, since no model predicts it: the figures compare with `soma-native evaluate`. A
    character that the training text lacks has its share of one "unknown" character's probability.

    The 5-gram takes up to 32 bytes of memory for each different 5-gram and 53 for each shorter one: some 60 MB for 100
    MB of English, 25 MB for each MB of Chinese. xz takes about two seconds for each MB, on two threads, and twenty
    times the size of the text in memory. Of a training text it reads the last 64 MB, which is as far as it looks back,
    and of a validation text the first 64 MB.

    Args:
        train: what may be learned from: documents, as everywhere; or a store, with the tokenizer that made it.
        validation: what is predicted, likewise.
        tokenizer: whose single tokens to measure.
        xz: whether to measure xz.

    Raises:
        TypeError, FileNotFoundError, ValueError: as for other texts; or there is no character in one of them.
        KeyboardInterrupt: Ctrl-C.

    >>> floor = text_floor(["the cat sat on the mat"] * 3, ["the cat sat on the hat"])
    >>> floor.ngram < floor.characters, floor.bytes
    (True, 22)
    """
    flag("xz", xz)
    if xz and not HAS_XZ:
        _log.info("this Python has no module lzma, so there is no figure of xz -9e")
        xz = False
    tokens, skipped = None, np.zeros(0, np.int64)
    if tokenizer is not None:
        instance("tokenizer", tokenizer, Tokenizer)
        train, validation = _again(train), _again(validation)
        with _naming("train"):
            known = TokenStore.encode(train, tokenizer)
        with _naming("validation"):
            new = TokenStore.encode(validation, tokenizer)
        if tokenizer.kind != "word" and not known.unknown_tokens and not new.unknown_tokens:
            train, validation = known, new
            tokens, skipped = _single_tokens(known, new, tokenizer)
    texts = [spelled_documents("train", train, tokenizer), spelled_documents("validation", validation, tokenizer)]
    counter = _core.NgramCounter()
    ends = End(last=True), End(last=False)
    for first, batch in batches_of(texts[0]):
        counter.add(batch, first)
        if xz:
            ends[0].add(batch)
    if not counter.bytes:
        raise _nothing("train", tokenizer)
    training_bytes = counter.bytes
    model = _core.KneserNey(counter)
    bits, character_bits, size = 0.0, 0.0, 0
    for first, batch in batches_of(texts[1]):
        scored = model.score(batch, first, skipped[first : first + len(batch)].tolist())
        bits, character_bits, size = bits + scored[0], character_bits + scored[1], size + scored[3]
        if xz:
            ends[1].add(batch)
    if not size:
        raise _nothing("validation", tokenizer)
    return Floor(
        ngram=bits / size,
        characters=character_bits / size,
        tokens=tokens,
        xz=xz_bits(*ends) if xz else None,
        bytes=size,
        training_bytes=training_bytes,
    )


def spelled_documents(name: str, texts: Texts | TokenStore, tokenizer: Tokenizer | None) -> Iterator[str | bytes]:
    """The documents; of a store what its ids spell, with U+FFFD where it was cut inside a character."""
    if not isinstance(texts, TokenStore):
        with _naming(name):
            yield from iter_texts(texts)
        return
    if tokenizer is None or tokenizer.kind == "word" or texts.unknown_tokens:
        raise ArgumentError(name, "is a TokenStore, which needs the tokenizer that made it, one that loses nothing")
    ordinary = ordinary_ids(tokenizer)
    for start, stop in zip(texts.starts, texts.stops, strict=True):
        ids = texts.tokens[start:stop]
        data = tokenizer.decode_bytes(ids[ordinary[ids]])
        yield data if _core.find_invalid_utf8(data) < 0 else data.decode("utf-8", "replace")


@contextlib.contextmanager
def _naming(argument: str) -> Iterator[None]:
    """In this block, an error of an argument `texts` names this argument."""
    try:
        yield
    except (ArgumentError, ArgumentTypeError) as error:
        raise type(error)(error.argument.replace("texts", argument, 1), error.problem) from None


def batches_of(documents: Iterable[str | bytes]) -> Iterator[tuple[int, list[str | bytes]]]:
    """Lists of whole documents for the core's threads, each with the index of its first document."""
    batch: list[str | bytes] = []
    size = count = 0
    for document in documents:
        batch.append(document)
        size += len(document) + 64
        if size > _BATCH:
            yield count, batch
            count, batch, size = count + len(batch), [], 0
    if batch:
        yield count, batch


def ordinary_ids(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which ids spell text; special ones, such as the end of a document, spell none."""
    ordinary = np.ones(tokenizer.vocab_size, bool)
    for token in tokenizer.special_tokens:
        ordinary[tokenizer.token_to_id(token)] = False
    return ordinary


def _nothing(name: str, tokenizer: Tokenizer | None) -> ArgumentError:
    least = "a character" if tokenizer is None else "a document of two tokens"
    return ArgumentError(name, f"must have at least {least}, and has none: give more text")


def _again(texts: Texts | TokenStore) -> Texts | TokenStore:
    """The texts in a form that can be read twice."""
    return list(texts) if isinstance(texts, Iterator) else texts


def _single_tokens(train: TokenStore, validation: TokenStore, tokenizer: Tokenizer) -> tuple[float, NDArray[np.int64]]:
    """Bits per byte of single tokens by add-one counts, and the bytes of each document's first token."""
    size = tokenizer.vocab_size
    spelled = byte_lengths(tokenizer)
    known = count_ids(train, train.starts, train.stops, size)
    predicted = count_ids(validation, validation.starts + 1, validation.stops, size)
    return bits_of_ids(known, predicted, spelled), spelled[validation.tokens[validation.starts]]


def bits_of_ids(known: NDArray[np.int64], predicted: NDArray[np.int64], spelled: NDArray[np.int64]) -> float:
    """Bits per byte of the predicted ids by the counts of the known ones plus one."""
    counts = known + 1.0
    bits = predicted @ (np.log2(counts.sum()) - np.log2(counts))
    return float(bits / max(1, predicted @ spelled))


def count_ids(store: TokenStore, starts: NDArray[np.int64], stops: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """How often each id stands between `starts` and `stops`, (size,)."""
    inside = np.zeros(len(store.tokens) + 1, np.int8)
    inside[starts] += 1
    inside[stops] -= 1
    np.cumsum(inside, dtype=np.int8, out=inside)
    counts = np.zeros(size, np.int64)
    for at in range(0, len(store.tokens), 1 << 20):
        ids = store.tokens[at : at + (1 << 20)]
        counts += np.bincount(ids[inside[at : at + len(ids)] > 0].astype(np.int64), minlength=size)
    return counts
