"""A byte-level BPE vocabulary as data. Training and readers of files make it; a tokenizer is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native.core import _core

PATTERNS = tuple(_core.bpe_patterns())


@dataclass(frozen=True)
class BpeVocabulary:
    r"""Everything that the ids of a text depend on.

    Args:
        pattern: the rule that splits text into chunks: a name of `PATTERNS`, or the words of the core's rules
            (src/cpp/tokenizer/bpe_pattern.h). "cl100k" and "o200k" are as in tiktoken. "llama3" (the first version of
            cl100k: whitespace at the end of a text is cut after its last newline), "qwen2" (the same with single
            digits) and others are as in the `tokenizer.json` of these models.
        tokens: the bytes of the ordinary tokens by id, all different; None for the id of a special token and for an
            unused id. Without `merges` it has all 256 single bytes. With `merges` some may be missing: a text that
            needs a missing byte cannot be encoded.
        merges: pairs (left id, right id) that merge, lowest rank first; the bytes of both together are a token. May be
            an array (n, 2). None: any pair whose bytes together are a token merges, the lowest id first (the ranks of
            tiktoken).
        special_tokens: text to id. Their ids are not those of ordinary tokens.
        ignore_merges: whether a chunk that is a token is encoded as this token without merging. Always so if `merges`
            is None.
    """

    pattern: str
    tokens: Sequence[bytes | None]
    merges: Sequence[tuple[int, int]] | NDArray[Any] | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    ignore_merges: bool = False

    def make(self) -> _core.Tokenizer:
        """The core tokenizer of this vocabulary.

        Raises:
            ValueError: the pattern is unknown, a byte is no token, a token is given twice, a merge has an id that is no
                token or makes no token, or a special token's id is taken. The message names the problem.
        """
        merges = None
        if self.merges is not None:
            merges = np.asarray(self.merges, np.int64).reshape(-1, 2)
        return _core.Tokenizer.bpe(
            self.pattern, list(self.tokens), merges, list(self.special_tokens.items()), self.ignore_merges
        )

    @staticmethod
    def of(core: _core.Tokenizer) -> BpeVocabulary:
        """The vocabulary of a core tokenizer of kind "bpe"."""
        pattern, tokens, merges, special_tokens, ignore_merges = core.bpe_vocabulary()
        return BpeVocabulary(pattern, tokens, merges, dict(special_tokens), ignore_merges)
