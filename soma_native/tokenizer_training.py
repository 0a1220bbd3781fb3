"""How a vocabulary is made from texts: the arguments of `Tokenizer.train` checked, the texts handed to the counters."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

from . import _core
from .text_files import iter_texts
from .tokenizer_json import UNKNOWN

__all__ = ["train_tokenizer"]

_log = logging.getLogger("soma_native")

_KINDS = ("word", "char", "byte")
_DEFAULT_SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "word": ("<PAD>", UNKNOWN, "<START>", "<END>", "<BOS>", "<EOS>"),
    "char": (UNKNOWN,),
    "byte": (),
}
_DEFAULT_WORDS = 3000
_BATCH_CHARACTERS = 1 << 24  # texts handed to the core at once: bounds what a stream of texts holds in memory


def train_tokenizer(
    texts: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    kind: str,
    vocab_size: SupportsIndex | None,
    special_tokens: Iterable[str] | None,
) -> _core.Tokenizer:
    """What `Tokenizer.train` documents, in the core's terms."""
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}")
    special = _check_special_tokens(special_tokens, kind)
    limit = _check_vocab_size(vocab_size, kind, special)
    counter = _core.TokenCounter(kind)
    for first, batch in _batches(texts):
        counter.add(batch, first)
    total = counter.total()
    if kind == "byte":
        if total < 2:
            raise ValueError(f"the texts have {total} bytes; at least 2 are needed")
        tokens = [*_core.byte_alphabet(), *special]
        return _core.Tokenizer(kind, tokens, range(256, len(tokens)))
    what = "words" if kind == "word" else "characters"
    ordinary, different = counter.ranked(limit)
    if different < 2:
        found = "none" if different == 0 else f"only {ordinary[0]!r}"
        raise ValueError(f"the texts must have at least two different {what}, and have {found}")
    if kind == "char":
        ordinary.sort()
    _log.info("vocabulary: %d of %d different %s", len(ordinary), different, what)
    return _core.Tokenizer(kind, [*special, *ordinary], range(len(special)))


def _check_special_tokens(special_tokens: Iterable[str] | None, kind: str) -> tuple[str, ...]:
    if special_tokens is None:
        return _DEFAULT_SPECIAL_TOKENS[kind]
    if isinstance(special_tokens, (str, bytes)):
        raise TypeError(f"special_tokens must be a list of str, got a single {type(special_tokens).__name__}")
    special = tuple(special_tokens)
    for i, token in enumerate(special):
        if not isinstance(token, str):
            raise TypeError(f"special_tokens[{i}] must be a str, got {type(token).__name__}")
        if not token:
            raise ValueError(f"special_tokens[{i}] is empty")
        if token in special[:i]:
            raise ValueError(f"special_tokens has {token!r} twice")
        if kind == "word" and _is_word(token):
            raise ValueError(f"special token {token!r} is also a word: put signs around it, such as '<{token}>'")
        if kind != "word" and len(token) == 1:
            raise ValueError(f"special token {token!r} is also a {kind}: put signs around it, such as '<{token}>'")
    return special


def _is_word(token: str) -> bool:
    counter = _core.TokenCounter("word")
    counter.add([token], 0)
    return counter.ranked(1) == ([token], 1) and counter.total() == 1


def _check_vocab_size(vocab_size: SupportsIndex | None, kind: str, special: tuple[str, ...]) -> int:
    """How many ordinary tokens there may be."""
    if vocab_size is None:
        return max(_DEFAULT_WORDS - len(special), 2) if kind == "word" else 0x110000
    try:
        if isinstance(vocab_size, bool):
            raise TypeError
        size = operator.index(vocab_size)
    except TypeError:
        raise TypeError(f"vocab_size must be an int, got {vocab_size!r}") from None
    ordinary = 256 if kind == "byte" else 1 if UNKNOWN in special else 2
    if size < len(special) + ordinary:
        raise ValueError(
            f"vocab_size must be at least {len(special) + ordinary} for kind {kind!r} "
            f"({len(special)} special tokens and {ordinary} more), got {size}"
        )
    return min(size - len(special), 1 << 32)


def _batches(texts: object) -> Iterator[tuple[int, list[str | bytes]]]:
    """The texts in lists for the core, each with the index of its first."""
    batch: list[str | bytes] = []
    first = size = 0
    for i, text in enumerate(iter_texts(texts)):
        batch.append(text)
        size += len(text) + 64
        if size > _BATCH_CHARACTERS:
            yield first, batch
            batch, first, size = [], i + 1, 0
    if batch:
        yield first, batch
