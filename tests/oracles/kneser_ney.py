"""Interpolated modified Kneser-Ney smoothing of character 5-grams once more, as Chen and Goodman (1998) write it."""

from __future__ import annotations

import math
from collections import Counter

ORDER = 5
START = "<start of the document>"
CHARACTERS_OF_UNICODE = 0x110000 - 0x800


class KneserNey:
    """Every count is made from the texts themselves, by sets; nothing is fast."""

    def __init__(self, documents: list[str]) -> None:
        sequences = [(START, *document) for document in documents]
        grams = {
            n: Counter(s[i : i + n] for s in sequences for i in range(len(s) - n + 1)) for n in range(1, ORDER + 1)
        }
        self.counts: dict[int, dict[tuple[str, ...], int]] = {ORDER: dict(grams[ORDER])}
        for n in range(1, ORDER):
            before: dict[tuple[str, ...], set[str]] = {}
            for gram in grams[n + 1]:
                before.setdefault(gram[1:], set()).add(gram[0])
            self.counts[n] = {gram: len(symbols) for gram, symbols in before.items()}
            self.counts[n] |= {gram: times for gram, times in grams[n].items() if gram[0] == START and n > 1}
        self.seen = {gram[0] for gram in grams[1]} - {START}
        self.occurrences = {gram[0]: times for gram, times in grams[1].items() if gram[0] != START}
        self.discounts = [self._discounts(n) for n in range(1, ORDER + 1)]

    def _discounts(self, n: int) -> tuple[float, float, float]:
        n1, n2, n3, n4 = (sum(count == c for count in self.counts[n].values()) for c in (1, 2, 3, 4))
        if min(n1, n2, n3, n4) > 0:
            y = n1 / (n1 + 2 * n2)
            found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if min(found) > 0:
                return found
        return 0.5, 1.0, 1.5

    def probability(self, character: str, context: tuple[str, ...]) -> float:
        """p(character | context): of the last ORDER - 1 symbols of `context`, which may begin with START."""
        return self._order(min(len(context), ORDER - 1) + 1, character, context)

    def _order(self, n: int, character: str, context: tuple[str, ...]) -> float:
        if n == 0:
            share = 1 / (len(self.seen) + 1)
            return share if character in self.seen else share / (CHARACTERS_OF_UNICODE - len(self.seen))
        lower = self._order(n - 1, character, context)
        history = context[len(context) - (n - 1) :]
        following = [count for gram, count in self.counts[n].items() if gram[:-1] == history]
        if not following:
            return lower
        discounts = self.discounts[n - 1]

        def taken(count: int) -> float:
            return discounts[min(count, 3) - 1] if count else 0.0

        own = self.counts[n].get((*history, character), 0)
        left = sum(taken(count) for count in following)
        return (max(own - taken(own), 0.0) + left * lower) / sum(following)

    def bits_of(self, document: str) -> list[float]:
        """-log2 of the probability of every character of a document."""
        symbols = (START, *document)
        return [-math.log2(self.probability(symbols[i], symbols[:i])) for i in range(1, len(symbols))]

    def character_bits(self, document: str) -> float:
        """-log2 of the probability of a document by its single characters."""
        total = sum(self.occurrences.values()) + len(self.seen) + 1
        unknown = CHARACTERS_OF_UNICODE - len(self.seen)
        return sum(
            math.log2(total) - math.log2(self.occurrences[c] + 1 if c in self.seen else 1 / unknown) for c in document
        )
