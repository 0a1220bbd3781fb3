"""How a vocabulary is made from texts: the arguments of `Tokenizer.train` checked, the texts handed to the counters."""

from __future__ import annotations

import logging
import operator
import os
from collections.abc import Iterable
from typing import SupportsIndex

from soma_native.core import _core
from soma_native.files.text_files import batches, iter_texts
from soma_native.tokenizer.bpe_vocabulary import PATTERNS
from soma_native.tokenizer.formats.tiktoken_gpt2 import MAX_IDS
from soma_native.tokenizer.formats.tokenizer_json import UNKNOWN
from soma_native.tokenizer.train_bpe import TrainingProgress, require_bytes, train_bpe

__all__ = ["train_tokenizer"]

_log = logging.getLogger("soma_native")

_KINDS = ("word", "char", "byte", "bpe")
_DEFAULT_SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "word": ("<PAD>", UNKNOWN, "<START>", "<END>", "<BOS>", "<EOS>"),
    "char": (UNKNOWN,),
    "byte": (),
    "bpe": ("<|endoftext|>",),
}
_DEFAULT_SIZES = {"word": 3000, "char": 0x120000, "byte": 0x120000, "bpe": 8192}  # more than there are: no limit


def train_tokenizer(
    texts: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    kind: str,
    vocab_size: SupportsIndex | None,
    special_tokens: Iterable[str] | None,
    pattern: str | None = None,
    min_frequency: SupportsIndex | None = None,
    progress: TrainingProgress | None = None,
) -> _core.Tokenizer:
    """What `Tokenizer.train` documents, in the core's terms."""
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}")
    special = _check_special_tokens(special_tokens, kind)
    limit = _check_vocab_size(vocab_size, kind, special)
    if kind == "bpe":
        pattern = _check_pattern("gpt2" if pattern is None else pattern)
        frequency = 1 if min_frequency is None else _integer("min_frequency", min_frequency, least=1)
        vocabulary = train_bpe(texts, limit - 256, special, pattern, min(frequency, 1 << 63), progress or _ignore)
        missing = limit - len(vocabulary.tokens)
        if missing and vocab_size is not None:
            _log.warning(
                "the vocabulary has %d ids, %d fewer than vocab_size asks for: the texts have no more pairs%s",
                len(vocabulary.tokens) + len(special), missing,
                "" if frequency == 1 else f" seen {frequency} times",
            )  # fmt: skip
        return vocabulary.make()
    for name, value in (("pattern", pattern), ("min_frequency", min_frequency), ("progress", progress)):
        if value is not None:
            raise ValueError(f"{name} is for kind 'bpe' alone, and kind is {kind!r}")
    counter = _core.TokenCounter(kind)
    for first, batch in batches(iter_texts(texts)):
        counter.add(batch, first)
    if kind == "byte":
        require_bytes(counter.total())
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


def _integer(name: str, value: SupportsIndex, least: int | None = None) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _check_pattern(pattern: str) -> str:
    if pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(map(repr, PATTERNS))}, got {pattern!r}")
    return pattern


def _ignore(stage: str, done: int, total: int | None) -> None:
    """Progress that nobody asked for."""


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
        try:
            token.encode()
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(token[error.start]):04X} at character {error.start}"
            raise ValueError(f"special_tokens[{i}] has the lone surrogate {surrogate}, which no text holds") from None
        if kind == "word" and _is_word(token):
            raise ValueError(f"special token {token!r} is also a word: put signs around it, such as '<{token}>'")
        if kind != "word" and len(token) == 1:
            what = "char" if kind == "char" else "byte"
            raise ValueError(f"special token {token!r} is also a {what}: put signs around it, such as '<{token}>'")
    return special


def _is_word(token: str) -> bool:
    counter = _core.TokenCounter("word")
    counter.add([token], 0)
    return counter.ranked(1) == ([token], 1) and counter.total() == 1


def _check_vocab_size(vocab_size: SupportsIndex | None, kind: str, special: tuple[str, ...]) -> int:
    """How many ordinary tokens there may be."""
    if vocab_size is None:
        return max(_DEFAULT_SIZES[kind] - len(special), 256 if kind == "bpe" else 2)
    size = _integer("vocab_size", vocab_size)
    ordinary = 256 if kind in ("byte", "bpe") else 1 if UNKNOWN in special else 2
    if size < len(special) + ordinary:
        raise ValueError(
            f"vocab_size must be at least {len(special) + ordinary} for kind {kind!r} "
            f"(special tokens: {len(special)}, and {ordinary} more), got {size}"
        )
    if size > MAX_IDS:
        raise ValueError(f"vocab_size must be at most {MAX_IDS}, got {size}")
    return size - len(special)
