"""The mean loss of a model on given data, without training, and the bytes that it is a loss of."""

from __future__ import annotations

import dataclasses

import numpy as np

from soma_native.data.windows import Windows
from soma_native.model.model import Model
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.tokenizer.tokenizer import Tokenizer


def mean_loss(model: Model, windows: Windows, batch_size: int = 8, limit: int | None = None) -> float:
    """Mean negative log-likelihood over all pairs of `windows`, in nats a token.

    Args:
        model: the model.
        windows: the data.
        batch_size: windows in a forward pass.
        limit: most windows to use, evenly spread; None means all.
    """
    total, pairs = 0.0, 0
    for ids, targets in windows.in_order(batch_size, limit):
        count = int(np.count_nonzero(targets >= 0))
        total += model.loss(ids, targets) * count
        pairs += count
    return total / pairs


def predicted_bytes(windows: Windows, tokenizer: Tokenizer | None, limit: int | None = None) -> tuple[int, int] | None:
    """The pairs over which `mean_loss` is a mean, and the UTF-8 bytes of text that their targets spell.

    None where bytes do not compare: without a tokenizer, with one of kind "word", which loses case and punctuation,
    with unknown tokens or ids that it does not have, and where no byte is predicted.
    """
    if tokenizer is None or tokenizer.kind == "word":
        return None
    if dataclasses.replace(windows.store, unknown_id=tokenizer.token_to_id("<UNK>")).unknown_tokens:
        return None
    spelled = byte_lengths(tokenizer)
    pairs = size = 0
    for _, targets in windows.in_order(256, limit):
        ids = targets[targets >= 0]
        if int(ids.max()) >= len(spelled):
            return None
        pairs, size = pairs + len(ids), size + int(spelled[ids].sum())
    return (pairs, size) if size else None
