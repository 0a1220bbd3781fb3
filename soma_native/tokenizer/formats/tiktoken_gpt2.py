"""Reads published vocabularies of byte-level BPE: tiktoken's rank files, GPT-2's vocab.json and merges.txt.

A file that is incomplete or contradicts itself is refused. The error names the line.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soma_native import _checks
from soma_native._checks import integer
from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError, CheckpointError
from soma_native.files.untrusted import Problem, parse_json, read_regular, short
from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary
from soma_native.tokenizer.formats.split_patterns import pattern_argument

MAX_BYTES = 64 << 20  # the largest published vocabularies are below 40 MiB
MAX_IDS = _core.MAX_TOKEN_IDS
_MAX_TOKENS = 1 << 21
_MAX_GAPS = 1 << 20  # ids without a token; each costs memory, here and in every model

TEXT_OF = _core.byte_alphabet()  # the character that stands for a byte in the files of GPT-2 and Hugging Face
BYTES_OF = {character: bytes([byte]) for byte, character in enumerate(TEXT_OF)}


def read_tiktoken(
    path: str | os.PathLike[str], pattern: str, special_tokens: Mapping[str, int] | None
) -> BpeVocabulary:
    """The vocabulary of `Tokenizer.from_tiktoken`, which documents the arguments and errors."""
    pattern = pattern_argument(pattern)
    special = _check_special_tokens(special_tokens)
    path = _existing(path)
    ids: dict[bytes, int] = {}
    line_of: dict[int, int] = {}
    for number, line in enumerate(io.BytesIO(read_regular(path, MAX_BYTES)), 1):
        if not line.strip():
            continue
        try:
            token, rank = _token_and_rank(line)
            if rank in line_of:
                raise Problem(f"gives the rank {rank}, like line {line_of[rank]}")
            if token in ids:
                raise Problem(f"gives the token {short(token)}, like line {line_of[ids[token]]}")
        except Problem as problem:
            raise CheckpointError(f"line {number} {problem}", path=path) from None
        ids[token], line_of[rank] = rank, number
        if len(ids) > _MAX_TOKENS:
            raise CheckpointError(f"has more than {_MAX_TOKENS} tokens, the most that are read", path=path)
    if not ids:
        raise CheckpointError("has no line with a token and its rank", path=path)
    for text, i in special.items():
        if i in line_of:
            taken = f"must have ids that are free: line {line_of[i]} of {path} has that of {text!r}, {i}"
            raise ArgumentError("special_tokens", taken)
    try:
        _check_ranks(line_of, set(special.values()))
        for byte in range(256):
            if bytes([byte]) not in ids:
                raise Problem(f"has no token for the byte {byte:#04x} ({short(bytes([byte]))}): all 256 must be there")
        return BpeVocabulary(pattern, tokens_by_id(ids, special), None, special)
    except Problem as problem:
        raise CheckpointError(str(problem), path=path) from None


def _token_and_rank(line: bytes) -> tuple[bytes, int]:
    parts = line.split()
    if len(parts) != 2:
        raise Problem(f"is {short(line.strip())}, where a token in base64 and its rank are expected")
    try:
        token = base64.b64decode(parts[0], validate=True)
    except binascii.Error as error:
        raise Problem(f"has the token {short(parts[0])}, which is not base64: {error}") from None
    if not token:
        raise Problem(f"has the token {short(parts[0])}, which is not base64 of any bytes")  # Python 3.10 decodes "="
    if not parts[1].isdigit() or len(parts[1]) > 10:
        raise Problem(f"has the rank {short(parts[1])}, which is not a whole number from 0 up")
    return token, int(parts[1])


def _check_ranks(line_of: Mapping[int, int], special_ids: set[int]) -> None:
    """Raise a Problem if a rank is missing that is not the id of a special token."""
    last = -1
    for rank in sorted(line_of):
        missing = next((i for i in range(last + 1, rank) if i not in special_ids), None)
        if missing is not None:
            raise Problem(
                f"has no line with the rank {missing}, but line {line_of[rank]} has the rank {rank}: ranks go from 0 "
                "up without gaps, except for the ids of special tokens"
            )
        last = rank


def _check_special_tokens(special_tokens: Mapping[str, int] | None) -> dict[str, int]:
    if special_tokens is None:
        return {}
    if not isinstance(special_tokens, Mapping):
        raise ArgumentTypeError("special_tokens", f"must be a dict of text to id, got {type(special_tokens).__name__}")
    checked: dict[str, int] = {}
    for text, i in special_tokens.items():
        if not isinstance(text, str):
            raise ArgumentTypeError("special_tokens", f"must be a dict of text to id, got {text!r:.80}: {i!r:.80}")
        checked[text] = integer(f"special_tokens[{text!r}]", i, 0, MAX_IDS - 1)
    if len(set(checked.values())) < len(checked):
        raise ArgumentError("special_tokens", f"must have ids that differ, got {checked}")
    return checked


def read_gpt2(vocab_path: str | os.PathLike[str], merges_path: str | os.PathLike[str]) -> BpeVocabulary:
    """The vocabulary of `Tokenizer.from_gpt2`, which documents the arguments and errors."""
    vocab_path, merges_path = _existing(vocab_path), _existing(merges_path)
    try:
        vocab = check_vocab(parse_json(read_regular(vocab_path, MAX_BYTES), vocab_path))
    except Problem as problem:
        raise CheckpointError(str(problem), path=vocab_path) from None
    try:
        text = read_regular(merges_path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"is not UTF-8: byte {error.start} is {error.object[error.start]:#x}", path=merges_path
        ) from None
    merges: list[tuple[int, int]] = []
    seen: dict[tuple[int, int], int] = {}
    for number, line in enumerate(io.StringIO(text), 1):
        line = line.rstrip("\r\n")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        try:
            merge = merge_ids(line.split(" "), vocab)
            if merge in seen:
                raise Problem(f"gives the merge {short(line)}, like line {seen[merge]}")
        except Problem as problem:
            raise CheckpointError(f"line {number} {problem}", path=merges_path) from None
        seen[merge] = number
        merges.append(merge)
    special = unmerged(vocab, merges)
    try:
        ordinary = {encode_token(text): i for text, i in vocab.items() if text not in special}
        return BpeVocabulary("gpt2", tokens_by_id(ordinary, special), merges, special)
    except Problem as problem:
        raise CheckpointError(str(problem), path=vocab_path) from None


def check_vocab(vocab: object) -> dict[str, int]:
    """`vocab`, which must be a JSON object of tokens and their ids.

    Raises:
        Problem: `vocab` is no such object, or gives an id twice.
    """
    if not isinstance(vocab, dict) or not vocab:
        raise Problem("has no vocabulary: a JSON object of tokens and their ids is expected")
    token_of: dict[int, str] = {}
    for token, i in vocab.items():
        check_id(token, i)
        if token_of.setdefault(i, token) != token:
            raise Problem(f"gives the id {i} to both {short(token_of[i])} and {short(token)}")
    return vocab


def check_id(token: str, i: object) -> None:
    """Check a token and its id.

    Raises:
        Problem: `i` is out of range, or `token` is empty or has a lone surrogate.
    """
    if type(i) is not int or not 0 <= i < MAX_IDS:
        raise Problem(f"gives {short(token)} the id {short(i)}, which is not a whole number from 0 to {MAX_IDS - 1}")
    if not token or any("\ud800" <= c <= "\udfff" for c in token):
        raise Problem(f"has the token {short(token)}, which is not a text")


def merge_ids(parts: object, vocab: Mapping[str, int]) -> tuple[int, int]:
    """The ids of the two tokens of a merge.

    Raises:
        Problem: `parts` is no pair of texts, or the vocabulary lacks one of the two or the token they merge to.
    """
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise Problem(f"has the merge {short(parts)}, where two tokens are expected")
    left, right = parts
    for token in (left, right, left + right):
        if token not in vocab:
            raise Problem(f"has the merge {short(left)} {short(right)}, but {short(token)} is not in the vocabulary")
    return vocab[left], vocab[right]


def encode_token(text: str) -> bytes:
    """The bytes of a token's text in these files.

    Raises:
        Problem: the text has a character that stands for no byte.
    """
    try:
        return b"".join([BYTES_OF[character] for character in text])
    except KeyError:
        raise Problem(f"has the token {short(text)}, whose characters do not all stand for bytes") from None


def unmerged(vocab: Mapping[str, int], merges: list[tuple[int, int]]) -> dict[str, int]:
    """The tokens that are neither a single byte nor the result of a merge."""
    text_of = {i: text for text, i in vocab.items()}
    reached = {text_of[left] + text_of[right] for left, right in merges}.union(BYTES_OF)
    return {text: i for text, i in vocab.items() if text not in reached}


def tokens_by_id(ids: Mapping[bytes, int], special: Mapping[Any, int]) -> list[bytes | None]:
    """The ordinary tokens by id; None for an id without one.

    Raises:
        Problem: there are too many ids without a token.
    """
    size = max(ids.values(), default=-1) + 1
    whole = max([size, *(i + 1 for i in special.values())])
    if whole > len(ids) + len(special) + _MAX_GAPS:
        raise Problem(f"has {len(ids) + len(special)} tokens, but the id {whole - 1}: too many ids without a token")
    tokens: list[bytes | None] = [None] * size
    for token, i in ids.items():
        tokens[i] = token
    return tokens


def _existing(path: str | os.PathLike[str]) -> Path:
    path = _checks.path("path", path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no file {path}")
    return path
