"""Measures a corpus: its size, the lengths of its documents, and its characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.errors import ArgumentError
from soma_native.files.text_files import iter_sources, parts

_LOOKED_AT = 1000  # most frequent characters that are asked for letters
_SAMPLE = 1_000_000  # bytes at the beginning that are compressed, and tried with tokenizers
# Bits a character that bz2 leaves of so many bytes of tinyshakespeare, with which the law of losses was fitted.
_SHAKESPEARE = ((20_000, 3.091), (100_000, 2.620), (300_000, 2.411), (1_000_000, 2.351))


@dataclass(frozen=True)
class Corpus:
    """The size of a corpus.

    Attributes:
        documents: their number; empty ones count.
        bytes: of all documents in UTF-8.
        characters: of all documents.
        alphabet: the number of different characters.
        lengths: (characters, documents) for each length of a document, ascending; empty means equal lengths.
        beginning: of the text, a megabyte at most.
        richness: bits a character that bz2 leaves of the beginning, beside those of as much tinyshakespeare.
    """

    documents: int
    bytes: int
    characters: int
    alphabet: int
    lengths: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    richness: float = field(default=1.0, repr=False, compare=False)
    beginning: str = field(default="", repr=False, compare=False)


def survey(texts: Texts) -> Corpus:
    """Read all of `texts` once.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `Tokenizer.train`, for what is no text; also for a corpus without
            two different characters, or without letters and digits.

    >>> survey(["ab", "abc"])
    Corpus(documents=2, bytes=5, characters=5, alphabet=3)
    """
    counter = _core.TokenCounter("char")
    documents = size = 0
    lengths: dict[int, int] = {}  # of each document by its index, as far as it was read
    by_length: Counter[int] = Counter()
    sample = bytearray()

    def counted() -> Iterator[str | Path]:
        nonlocal documents
        for source in iter_sources(texts):
            documents += 1
            yield source

    for first, batch in parts(counted()):
        read = [text if isinstance(text, str) else text.decode() for text in batch]
        counter.add(batch, first)
        size += sum(len(text.encode()) if isinstance(text, str) else len(text) for text in batch)
        if first not in lengths:  # no later piece of the same document
            by_length.update(lengths.values())
            lengths.clear()
        for index, text in enumerate(read, first):
            lengths[index] = lengths.get(index, 0) + len(text)
            if len(sample) < _SAMPLE:
                sample += text[:_SAMPLE].encode()
    by_length.update(lengths.values())
    frequent, alphabet, _ = counter.ranked(_LOOKED_AT)
    if alphabet < 2:
        found = "none" if not frequent else f"only {frequent[0]!r}"
        raise ArgumentError("texts", f"must have at least two different characters, and have {found}")
    if not any(character.isalnum() for character in frequent):
        raise ArgumentError("texts", "has no letters and digits: give text")
    by_size = tuple(sorted(by_length.items()))
    beginning = bytes(sample[:_SAMPLE])
    text = beginning.decode(errors="ignore")  # the last character may be cut
    return Corpus(documents, size, counter.total(), alphabet, by_size, _richness(beginning), text)


def _richness(sample: bytes) -> float:
    """What bz2 leaves of a sample, beside what it leaves of as much tinyshakespeare."""
    try:
        import bz2
    except ImportError:  # a Python that was compiled where libbz2 was not
        return 1.0
    sizes, bits = np.array(_SHAKESPEARE).T
    characters = len(sample.decode(errors="ignore"))
    return 8 * len(bz2.compress(sample)) / characters / float(np.interp(np.log(len(sample)), np.log(sizes), bits))
