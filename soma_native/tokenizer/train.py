"""Implements `Tokenizer.train`: checks its arguments, gives the texts to the core's counters, builds the vocabulary."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import SupportsIndex

from soma_native._checks import choice, integer
from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.files.text_files import iter_sources, parts
from soma_native.tokenizer.formats.split_patterns import pattern_argument
from soma_native.tokenizer.formats.tiktoken_gpt2 import MAX_IDS
from soma_native.tokenizer.formats.tokenizer_json import UNKNOWN
from soma_native.tokenizer.train_bpe import TrainingProgress, require_bytes, train_bpe
from soma_native.tokenizer.word_losses import loss_warning

_log = logging.getLogger("soma_native")

KINDS = ("word", "char", "byte", "bpe")
_DEFAULT_SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "word": ("<PAD>", UNKNOWN, "<START>", "<END>", "<BOS>", "<EOS>"),
    "char": (UNKNOWN, "<|endoftext|>"),
    "byte": (),
    "bpe": ("<|endoftext|>",),
}
_DEFAULT_SIZES = {"word": 3000, "char": 0x120000, "byte": 0x120000, "bpe": 8192}  # 0x120000: no limit


def train_tokenizer(
    texts: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    kind: str,
    vocab_size: SupportsIndex | None,
    special_tokens: Iterable[str] | None,
    pattern: str | None = None,
    min_frequency: SupportsIndex | None = None,
    progress: TrainingProgress | None = None,
) -> tuple[_core.Tokenizer, bool]:
    """The core tokenizer of `Tokenizer.train`, which documents the arguments; and whether a warning named losses."""
    choice("kind", kind, KINDS)
    special = _check_special_tokens(special_tokens, kind)
    limit = _check_vocab_size(vocab_size, kind, special)
    if kind == "bpe":
        pattern = pattern_argument("gpt2" if pattern is None else pattern)
        frequency = 1 if min_frequency is None else integer("min_frequency", min_frequency, 1)
        vocabulary = train_bpe(texts, limit - 256, special, pattern, min(frequency, 1 << 63), progress or _ignore)
        missing = limit - len(vocabulary.tokens)
        if missing and vocab_size is not None:
            _log.warning(
                "the vocabulary has %d ids, %d fewer than asked for: the texts have no more pairs%s",
                len(vocabulary.tokens) + len(special), missing,
                "" if frequency == 1 else f" seen {frequency} times",
            )  # fmt: skip
        return vocabulary.make(), False
    for name, value in (("pattern", pattern), ("min_frequency", min_frequency), ("progress", progress)):
        if value is not None:
            raise ArgumentError(name, f"is for kind bpe alone, and the kind is {kind}")
    counter, losses = _core.TokenCounter(kind), _core.WordLosses()
    for first, batch in parts(iter_sources(texts)):
        counter.add(batch, first)
        if kind == "word":
            losses.add(batch, first)
    if kind == "byte":
        require_bytes(counter.total())
        tokens = [*_core.byte_alphabet(), *special]
        return _core.Tokenizer(kind, tokens, range(256, len(tokens))), False
    what = "words" if kind == "word" else "characters"
    ordinary, different, left_out = counter.ranked(limit)
    if different < 2:
        found = "none" if different == 0 else f"only {ordinary[0]!r}"
        raise ArgumentError("texts", f"must have at least two different {what}, and have {found}")
    if kind == "char":
        ordinary.sort()
    _log.info("vocabulary: %d of %d different %s", len(ordinary), different, what)
    warning = loss_warning(losses, left_out / counter.total() if UNKNOWN in special else 0.0)
    if warning is not None:
        _log.warning("%s", warning)
    return _core.Tokenizer(kind, [*special, *ordinary], range(len(special))), warning is not None


def _ignore(stage: str, done: int, total: int | None) -> None:
    """The default of `progress`."""


def _check_special_tokens(special_tokens: Iterable[str] | None, kind: str) -> tuple[str, ...]:
    if special_tokens is None:
        return _DEFAULT_SPECIAL_TOKENS[kind]
    if isinstance(special_tokens, (str, bytes)):
        kind_of = type(special_tokens).__name__
        raise ArgumentTypeError("special_tokens", f"must be a list of str, got a single {kind_of}")
    special = tuple(special_tokens)
    for i, token in enumerate(special):
        if not isinstance(token, str):
            raise ArgumentTypeError("special_tokens", f"must be a list of str, got {type(token).__name__} at place {i}")
        if not token:
            raise ArgumentError("special_tokens", f"must not be empty, got '' at place {i}")
        if token in special[:i]:
            raise ArgumentError("special_tokens", f"must differ, got {token!r} twice")
        try:
            token.encode()
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(token[error.start]):04X} at character {error.start}"
            problem = f"must be text, got the lone surrogate {surrogate} at place {i}"
            raise ArgumentError("special_tokens", problem) from None
        if _is_word(token) if kind == "word" else len(token) == 1:
            what = "byte" if kind == "bpe" else kind
            problem = f"must not be ordinary tokens: {token!r} is also a {what}; put signs around it, as in '<{token}>'"
            raise ArgumentError("special_tokens", problem)
    return special


def _is_word(token: str) -> bool:
    counter = _core.TokenCounter("word")
    counter.add([token], 0)
    return counter.ranked(1)[0] == [token] and counter.total() == 1


def _check_vocab_size(vocab_size: SupportsIndex | None, kind: str, special: tuple[str, ...]) -> int:
    """The largest number of ordinary tokens."""
    if vocab_size is None:
        return max(_DEFAULT_SIZES[kind] - len(special), 256 if kind == "bpe" else 2)
    ordinary = 256 if kind in ("byte", "bpe") else 1 if UNKNOWN in special else 2
    size = integer("vocab_size", vocab_size)
    if size < len(special) + ordinary:
        problem = f"for kind {kind} (special tokens: {len(special)}, and {ordinary} more), got {size}"
        raise ArgumentError("vocab_size", f"must be at least {len(special) + ordinary} {problem}")
    return integer("vocab_size", size, most=MAX_IDS) - len(special)
