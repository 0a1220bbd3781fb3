"""A callback that measures what needs no training on the validation data, to say whether a model has learned."""

from __future__ import annotations

import contextlib
import logging

from soma_native.analysis.floor import text_floor
from soma_native.data.token_store import TokenStore
from soma_native.errors import ArgumentError
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.training.callbacks import Callback, Event

_MOST_BYTES = 4_000_000  # of a training part: a second or two, and 100 MB of memory where it is Chinese
_MOST_BYTES_OF_XZ = 2_000_000  # of both parts, which xz reads in four seconds
_SAMPLE = 1 << 18  # tokens by which bytes are estimated

logger = logging.getLogger("soma_native")


class AgainstFloor(Callback):
    """Measures the `text_floor` of the validation data before the first step, into `History.floor`.

    It measures nothing where bits per byte do not compare: without a tokenizer, with one of kind "word", with unknown
    tokens. It leaves out xz above 2 MB, and all of it for a training part above some 4 MB. A resumed run has its floor
    already.

    Args:
        train: the documents that are trained on, of the trainer's tokenizer.
        validation: the documents of the validation.
    """

    def __init__(self, train: TokenStore, validation: TokenStore) -> None:
        self._train, self._validation = train, validation

    def on_start(self, event: Event) -> None:
        """Measure the floor."""
        tokenizer = event.trainer.tokenizer
        if event.history.floor is not None or tokenizer is None or tokenizer.kind == "word":
            return
        if self._train.unknown_tokens or self._validation.unknown_tokens:
            return
        spelled = byte_lengths(tokenizer)
        begin = self._train.starts[0]
        a_token = float(spelled[self._train.tokens[begin : begin + _SAMPLE]].mean())
        tokens = [int((store.stops - store.starts).sum()) for store in (self._train, self._validation)]
        if tokens[0] * a_token > _MOST_BYTES:
            logger.warning(
                "no floor is measured: the training part has some %d MB, more than %d; soma-native evaluate --floor "
                "measures any", tokens[0] * a_token / 1e6, _MOST_BYTES / 1e6,
            )  # fmt: skip
            return
        xz = sum(tokens) * a_token <= _MOST_BYTES_OF_XZ
        with contextlib.suppress(ArgumentError):  # a part of which no byte is predicted
            event.history.floor = text_floor(self._train, self._validation, tokenizer, xz=xz)
