"""Byte-level BPE training by its definition, in plain Python: the reference for the C++ trainer.

All pairs are counted anew for every merge, so there is no incremental state to go wrong.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable

import regex

from oracles.bpe_patterns import PATTERNS

Pair = tuple[int, int]


def count_chunks(texts: Iterable[str], pattern: str) -> Counter[bytes]:
    """The count of each chunk in the texts."""
    compiled = regex.compile(PATTERNS[pattern])
    return Counter(chunk.encode() for text in texts for chunk in compiled.findall(text))


def join(word: tuple[int, ...], pair: Pair, token: int) -> tuple[int, ...]:
    """The word with every occurrence of the pair replaced by the token, from left to right."""
    joined: list[int] = []
    at = 0
    while at < len(word):
        found = word[at : at + 2] == pair
        joined.append(token if found else word[at])
        at += 2 if found else 1
    return tuple(joined)


def train(
    chunks: Counter[bytes], merges: int, min_frequency: int = 1, reserved: Collection[bytes] = ()
) -> tuple[list[bytes], list[Pair]]:
    """The bytes of all tokens by id, and the merged pairs. The most frequent pair is merged; ties go to smaller ids."""
    tokens = [bytes([byte]) for byte in range(256)]
    made: list[Pair] = []
    words = {tuple(chunk): count for chunk, count in chunks.items()}
    while len(made) < merges:
        counts: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                counts[pair] += count
        allowed = [p for p in counts if counts[p] >= min_frequency and tokens[p[0]] + tokens[p[1]] not in reserved]
        if not allowed:
            break
        best = min(allowed, key=lambda pair: (-counts[pair], pair))
        made.append(best)
        joined: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            joined[join(word, best, len(tokens))] += count
        words = dict(joined)
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens, made
