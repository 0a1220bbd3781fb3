"""Measures a corpus: its size, and the number of its different characters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.errors import ArgumentError
from soma_native.files.text_files import iter_sources, parts

_LOOKED_AT = 1000  # most frequent characters that are asked for letters


@dataclass(frozen=True)
class Corpus:
    """The size of a corpus.

    Attributes:
        documents: their number; empty ones count.
        bytes: of all documents in UTF-8.
        characters: of all documents.
        alphabet: the number of different characters.
    """

    documents: int
    bytes: int
    characters: int
    alphabet: int


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

    def counted() -> Iterator[str | Path]:
        nonlocal documents
        for source in iter_sources(texts):
            documents += 1
            yield source

    for first, batch in parts(counted()):
        counter.add(batch, first)
        size += sum(len(text.encode()) if isinstance(text, str) else len(text) for text in batch)
    frequent, alphabet, _ = counter.ranked(_LOOKED_AT)
    if alphabet < 2:
        found = "none" if not frequent else f"only {frequent[0]!r}"
        raise ArgumentError("texts", f"must have at least two different characters, and have {found}")
    if not any(character.isalnum() for character in frequent):
        raise ArgumentError("texts", "has no letters and digits: give text")
    return Corpus(documents, size, counter.total(), alphabet)
