"""Measures a corpus: its size, and the number of its different characters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from soma_native.core import _core
from soma_native.data.documents import Texts
from soma_native.files.text_files import iter_sources, parts


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
            two different characters.

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
    first_two, alphabet, _ = counter.ranked(2)
    if alphabet < 2:
        found = "none" if not first_two else f"only {first_two[0]!r}"
        raise ValueError(f"the corpus must have at least two different characters, and has {found}: give other text")
    return Corpus(documents, size, counter.total(), alphabet)
