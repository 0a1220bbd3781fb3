"""A byte-level BPE vocabulary as data: what readers of files and training make, and a tokenizer is made from."""

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
        pattern: how a text falls into chunks, by name, one of `PATTERNS`: "cl100k" and "o200k" as in tiktoken, "llama3"
            (cl100k as it was at first: whitespace at the end of a text is cut after its last newline) and "qwen2" (that
            with single digits) as in the `tokenizer.json` of these models.
        tokens: the bytes of the ordinary tokens by id; None where an id belongs to a special token or to nobody. No
            two are alike. Without `merges` all 256 single bytes are there; with them, a text that needs a byte that is
            not cannot be encoded.
        merges: pairs (left id, right id) that merge, those of lowest rank first; the bytes of both together are a
            token. An array (n, 2) will do. None: any pair whose bytes together are a token merges, the one whose token
            has the lowest id first (the ranks of tiktoken).
        special_tokens: text to id. Their ids are not those of ordinary tokens.
        ignore_merges: a chunk that is a token as a whole is taken so, whatever the merges would give. Implied where
            `merges` is None.
    """

    pattern: str
    tokens: Sequence[bytes | None]
    merges: Sequence[tuple[int, int]] | NDArray[Any] | None = None
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    ignore_merges: bool = False

    def make(self) -> _core.Tokenizer:
        """The core tokenizer of this vocabulary.

        Raises:
            ValueError: naming what is wrong with it: an unknown pattern, a byte that is no token, a token given twice,
                a merge of ids that are no tokens or whose bytes together are none, a special token's id that is taken.
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
