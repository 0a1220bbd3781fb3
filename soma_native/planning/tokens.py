"""The characters of a token: measured where pieces of words are tokens, else expected by the number of tokens."""

from __future__ import annotations

import math

from soma_native.planning.corpus import Corpus
from soma_native.tokenizer.tokenizer import Tokenizer

_MEASURED = 300_000  # characters at the beginning of a corpus, in which a tokenizer is trained in a tenth of a second


def characters_per_token(
    corpus: Corpus, kind: str, vocab_size: int | None, tokenizer: Tokenizer | None = None
) -> float:
    """The characters of a token of the corpus, on average.

    Args:
        corpus: without a beginning of its text, nothing can be measured.
        kind: of the tokenizer.
        vocab_size: the most tokens; None where the text decides.
        tokenizer: that is used, where it exists; else one is trained on the beginning.
    """
    beginning = corpus.beginning[:_MEASURED]
    if kind == "bpe" and beginning:
        tokenizer = tokenizer or Tokenizer.train([beginning], kind, vocab_size)
        return len(beginning) / len(tokenizer.encode_array(beginning))
    if kind == "byte":
        return corpus.characters / corpus.bytes
    # About the logarithm of the vocabulary beside that of the alphabet.
    extra = (vocab_size or 0) / max(corpus.alphabet, 257)
    return 1.0 if kind == "char" or extra <= 1.05 else 1.0 + 0.75 * math.log2(extra)
