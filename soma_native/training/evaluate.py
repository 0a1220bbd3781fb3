"""The loss of a model on given data, without training, and the bytes that it is a loss of."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.model.model import Model
from soma_native.parallel.world import World
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.tokenizer.tokenizer import Tokenizer


def mean_loss(
    model: Model, windows: Windows, batch_size: int = 8, limit: int | None = None, world: World | None = None
) -> float:
    """Mean negative log-likelihood over all pairs of `windows`, in nats a token.

    Args:
        model: the model.
        windows: the data.
        batch_size: windows in a forward pass.
        limit: most windows to use, evenly spread; None means all.
        world: ranks that share the work, each with the same model and data. The result has the bits of one process.
    """
    rank, size = (0, 1) if world is None else (world.rank, world.size)
    batches = list(windows.indices_in_order(batch_size, limit))
    pairs = [int(windows.lengths[batch].sum()) for batch in batches]
    sums = np.zeros(len(batches))
    for i in range(rank, len(batches), size):
        sums[i] = model.loss(*windows.batch(batches[i])) * pairs[i]
    if world is not None:
        world.allreduce(sums)
    total = 0.0
    for each in sums.tolist():
        total += each
    return total / sum(pairs)


def document_losses(model: Model, windows: Windows, batch_size: int = 8) -> NDArray[np.float64]:
    """The negative log-likelihood of each document, in nats: the sum over its pairs, (documents,).

    Raises:
        ValueError: a logit is not finite.
    """
    store = windows.store
    losses = np.zeros(len(store.starts))
    for batch in windows.indices_in_order(batch_size):
        logprobs = model._core.score(*windows.batch(batch))[0]
        documents = np.searchsorted(store.stops, windows.starts[batch], side="right")
        np.subtract.at(losses, np.repeat(documents, windows.lengths[batch]), logprobs)
    return losses


def predicted_bytes(windows: Windows, tokenizer: Tokenizer | None, limit: int | None = None) -> tuple[int, int] | None:
    """The pairs over which `mean_loss` is a mean, and the UTF-8 bytes of text that their targets spell.

    None where bytes do not compare: without a tokenizer, with one of kind "word", which loses case and punctuation,
    with unknown tokens or ids that it does not have, and where no byte is predicted.
    """
    spelled = _spelled_bytes(windows.store, tokenizer)
    if spelled is None:
        return None
    pairs = size = 0
    for _, targets in windows.in_order(256, limit):
        ids = targets[targets >= 0]
        if int(ids.max()) >= len(spelled):
            return None
        pairs, size = pairs + len(ids), size + int(spelled[ids].sum())
    return (pairs, size) if size else None


def document_bytes(store: TokenStore, tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """The UTF-8 bytes of each document, (documents,), without its first token, which nothing predicts.

    None where bytes do not compare, as for `predicted_bytes`.
    """
    spelled = _spelled_bytes(store, tokenizer)
    if spelled is None:
        return None
    bounds = zip(store.starts + 1, store.stops, strict=True)
    return np.array([spelled[store.tokens[first:stop]].sum() for first, stop in bounds], np.int64)


def _spelled_bytes(store: TokenStore, tokenizer: Tokenizer | None) -> NDArray[np.int64] | None:
    """The bytes of each id, (vocab_size,), if the tokenizer keeps all of the text of this store."""
    if tokenizer is None or tokenizer.kind == "word":
        return None
    if dataclasses.replace(store, unknown_id=tokenizer.token_to_id("<UNK>")).unknown_tokens:
        return None
    return byte_lengths(tokenizer)
