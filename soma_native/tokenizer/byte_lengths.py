"""How many bytes of text each id of a vocabulary stands for, by which losses of different tokenizers compare."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soma_native.tokenizer.tokenizer import Tokenizer


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The UTF-8 bytes that each id spells, (vocab_size,); special tokens spell none.

    >>> byte_lengths(Tokenizer.train(["né"], kind="char")).tolist()  # <UNK>, <|endoftext|>, n, é
    [0, 0, 1, 2]
    """
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    ids = range(tokenizer.vocab_size)
    return np.array([0 if i in special else len(tokenizer.decode_bytes([i])) for i in ids], np.int64)
