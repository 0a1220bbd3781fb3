"""A callback that measures what needs no training on the validation data, to say whether a model has learned."""

from __future__ import annotations

import contextlib
import logging

from soma_native.analysis.window_floor import WindowFloor
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.errors import ArgumentError
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.training.callbacks import Callback, Event

# Of a training part in which 5-grams come again, as in English, or do not: two seconds, and some 100 MB.
_MOST_BYTES = {True: 40_000_000, False: 4_000_000}
_DIFFERENT = 0.4  # 5-grams a character of the sample, up to which they come again
_MOST_BYTES_OF_XZ = 2_000_000  # of both parts, which xz reads in four seconds
_SAMPLE = 1 << 18  # tokens by which bytes are estimated

logger = logging.getLogger("soma_native")


class AgainstFloor(Callback):
    """Measures the floor of the validation before the first step, into `History.floor`, on the bytes that validate.

    Where the clock limits the windows of a validation, it is measured again on those. It measures nothing where bits
    per byte do not compare: without a tokenizer, with one of kind "word", with unknown tokens. It leaves out xz above 2
    MB, and all of it for a training part above 40 MB, or 4 MB of a script with many characters. A resumed run has its
    floor already, unless the clock may still limit its windows.

    Args:
        train: the documents that are trained on, of the trainer's tokenizer.
        validation: the documents of the validation.
    """

    def __init__(self, train: TokenStore, validation: TokenStore) -> None:
        self._train, self._validation = train, validation
        self._floor: WindowFloor | None = None  # until no decision changes the windows any more

    def on_start(self, event: Event) -> None:
        """Measure the floor."""
        tokenizer, config = event.trainer.tokenizer, event.trainer.config
        decisions = event.history.decisions
        undecided = config.minutes is not None and (config.teachers > 0 or not decisions)
        if self._floor is not None or (event.history.floor is not None and not undecided):
            return
        if tokenizer is None or tokenizer.kind == "word":
            return
        if unknown := self._train.unknown_tokens + self._validation.unknown_tokens:
            bits = ", and there are no bits per byte" if self._validation.unknown_tokens else ""
            logger.warning(
                "no floor is measured%s: %d token%s of the texts stand for characters that the tokenizer lacks", bits,
                unknown, "s" * (unknown != 1),
            )  # fmt: skip
            return
        begin = self._train.starts[0]
        sample = self._train.tokens[begin : begin + _SAMPLE]
        a_token = float(byte_lengths(tokenizer)[sample].mean())
        text = tokenizer.decode(sample)
        different = len({text[i : i + 5] for i in range(len(text) - 4)})
        most = _MOST_BYTES[different <= _DIFFERENT * len(text) or len(text) < _SAMPLE // 8]
        tokens = [int((store.stops - store.starts).sum()) for store in (self._train, self._validation)]
        if tokens[0] * a_token > most:
            logger.warning(
                "no floor is measured: the training part has some %d MB, more than %d; soma-native evaluate --floor "
                "measures any", tokens[0] * a_token / 1e6, most / 1e6,
            )  # fmt: skip
            return
        xz = sum(tokens) * a_token <= _MOST_BYTES_OF_XZ
        windows = Windows(self._validation, config.seq_len or event.trainer.model.config.max_seq_len)
        with contextlib.suppress(ArgumentError):  # a part of which no byte is predicted
            floor = WindowFloor(self._train, windows, tokenizer, xz=xz)
            limit = decisions[-1]["max_eval_windows"] if decisions else config.max_eval_windows
            event.history.floor = floor.measure(limit)
            if undecided:
                self._floor = floor

    def on_plan(self, event: Event) -> None:
        """Measure it again, if the clock has limited the windows."""
        if self._floor is None or "max_eval_windows" not in event.details:
            return
        with contextlib.suppress(ArgumentError):
            event.history.floor = self._floor.measure(event.details["max_eval_windows"])
        if not event.trainer.config.teachers:  # each model of several has a limit of its own
            self._floor = None
