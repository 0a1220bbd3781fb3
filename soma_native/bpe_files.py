"""Byte-level BPE vocabularies in others' files: rank files of tiktoken, `vocab.json` and `merges.txt` of GPT-2."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path

from . import _core
from .bpe_vocabulary import BpeVocabulary
from .errors import CheckpointError

__all__ = ["read_gpt2", "read_tiktoken"]

_MAX_ID = 1 << 24


def read_tiktoken(path: str | os.PathLike[str], pattern: str, special_tokens: Mapping[str, int]) -> BpeVocabulary:
    """Read lines of a token in base64, a space and its rank, which is its id."""
    path = Path(path)
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            i, raw = int(rank), base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise CheckpointError(f"line {number} is not a token in base64 and its rank", path=path) from None
        if not 0 <= i < _MAX_ID:
            raise CheckpointError(f"line {number} has the rank {i}, which is not within 0 to {_MAX_ID - 1}", path=path)
        if i in ranks:
            raise CheckpointError(f"line {number} has the rank {i}, which an earlier line has", path=path)
        ranks[i] = raw
    return BpeVocabulary(pattern, [ranks.get(i) for i in range(max(ranks, default=-1) + 1)], None, dict(special_tokens))


def read_gpt2(vocab_json: str | os.PathLike[str], merges_txt: str | os.PathLike[str]) -> BpeVocabulary:
    """Read the tokens in GPT-2's byte-level alphabet with their ids, and the pairs of them that merge, one a line."""
    byte_of = {character: byte for byte, character in enumerate(_core.byte_alphabet())}
    vocab: dict[str, int] = json.loads(Path(vocab_json).read_text(encoding="utf-8"))
    tokens: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    special: dict[str, int] = {}
    pairs = [line.split(" ") for line in _merge_lines(merges_txt)]
    made = {left + right for left, right in pairs}
    for token, i in vocab.items():
        if len(token) > 1 and token not in made:
            special[token] = i
        else:
            tokens[i] = bytes(byte_of[c] for c in token)
    return BpeVocabulary("gpt2", tokens, [(vocab[left], vocab[right]) for left, right in pairs], special)


def _merge_lines(path: str | os.PathLike[str]) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line and not line.startswith("#version")]
