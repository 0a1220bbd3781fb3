"""Trains byte-level BPE: the core counts the chunks of texts and files, then merges pairs. Reports progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from soma_native.core import _core
from soma_native.errors import ArgumentError
from soma_native.files.text_files import check_utf8, iter_sources, open_text, parts
from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary

# Called as progress(stage, done, total). The stage is "counting" (in bytes of texts; the total is None) or "merging"
# (in pairs).
TrainingProgress = Callable[[str, int, int | None], object]

_MERGES_AT_ONCE = 256  # between two calls of the progress function

_log = logging.getLogger("soma_native")


def train_bpe(
    texts: object, merges: int, special: tuple[str, ...], pattern: str, min_frequency: int, progress: TrainingProgress
) -> BpeVocabulary:
    """The 256 bytes, up to `merges` merged tokens and the special ones, in this order. The arguments are checked."""
    counter = _core.ChunkCounter(pattern)
    for first, batch in parts(_count_files(counter, texts, progress)):
        counter.add(batch, first)
        progress("counting", counter.bytes, None)
    require_bytes(counter.bytes)
    trainer = _core.BpeTrainer(counter, min_frequency, list(_spellings(special)))
    done = 0
    while step := trainer.merge(min(_MERGES_AT_ONCE, merges - done)):
        done += step
        progress("merging", done, merges)
    tokens = trainer.tokens()
    _log.info("vocabulary: 256 bytes; merges: %d; special tokens: %d", done, len(special))
    special_tokens = {token: len(tokens) + i for i, token in enumerate(special)}
    return BpeVocabulary(pattern, tokens, trainer.merges(), special_tokens)


def require_bytes(count: int) -> None:
    """Raise an ArgumentError if texts of `count` bytes have no pair of bytes to learn from."""
    if count < 2:
        raise ArgumentError("texts", f"must have at least two bytes, and have {'only one' if count else 'none'}")


def _count_files(counter: _core.ChunkCounter, texts: object, progress: TrainingProgress) -> Iterator[str]:
    """Yield the texts. A file is counted here piece by piece, and an empty text is yielded in its place."""
    for source in iter_sources(texts):
        if isinstance(source, str):
            yield source
            continue
        _count_file(counter, source, progress)
        yield ""


def _count_file(counter: _core.ChunkCounter, path: Path, progress: TrainingProgress) -> None:
    with open_text(path) as file:
        reader = _core.TextReader(file.fileno())
        more = True
        while more:
            try:
                more = counter.add_from(reader)
            except ValueError as error:
                if path.is_file():  # not a pipe
                    check_utf8(path)  # raises, and says more
                raise ValueError(f"{path}: {error}") from None
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
            progress("counting", counter.bytes, None)


def _spellings(special: tuple[str, ...]) -> set[bytes]:
    """Bytes that no merge may make: those of the special tokens, and those that a file writes as the same text."""
    byte_of = {character: byte for byte, character in enumerate(_core.byte_alphabet())}
    written = (bytes(byte_of[c] for c in token) for token in special if all(c in byte_of for c in token))
    return {token.encode() for token in special}.union(written)
