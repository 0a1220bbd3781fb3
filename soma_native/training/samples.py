"""A callback that lets the model write a line now and then, so that a person sees it learn."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from soma_native.data.token_store import TokenStore
from soma_native.generation.generator import Generator
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.callbacks import Callback, Event

_BROKEN = "\ufffd"  # stands for bytes that are no whole character
_LOOKED_AT = 200  # tokens in which a line or a word begins
_MOST_OF_THE_TIME = 1 / 50  # that samples may take of a run
# Tokens of a prompt and of its continuation, by kind of tokenizer: some 20 words or 80 characters.
_TOKENS = {"word": (4, 20), "bpe": (6, 24), "char": (20, 80), "byte": (20, 80)}


class Samples(Callback):
    """Tells a "sample" after a record: a document's beginning, and how the model goes on from it.

    A part that begins inside a document is taken from its first whole line, else from its first whole word. Bytes that
    are no whole character are left out.

    The model has the weights that are validated, averaged ones where there are any. A sample has its own random numbers
    and changes nothing of the training. A trainer without a tokenizer has no samples.

    Args:
        store: the documents whose beginnings are prompts, in turn; best those of the validation.
        every: seconds between two samples at least; more where they would take much of the time.
        seed: of every sample, so that two of them differ by what was learned.
        clock: seconds that pass.
    """

    def __init__(
        self, store: TokenStore, every: float = 30.0, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._store, self._every, self._seed, self._clock = store, every, seed, clock
        self._generator: Generator | None = None
        self._count = 0
        self._next = -math.inf

    def on_start(self, event: Event) -> None:
        """Make the generator."""
        model, tokenizer = event.trainer.model, event.trainer.tokenizer
        special = 0 if tokenizer is None else len(tokenizer.special_tokens)
        if tokenizer is not None and special < tokenizer.vocab_size and len(self._store.starts):
            self._generator = Generator(model, tokenizer)

    def on_evaluate(self, event: Event) -> None:
        """Tell a sample, if it is time."""
        began = self._clock()
        tokenizer = event.trainer.tokenizer
        if self._generator is None or tokenizer is None or began < self._next:
            return
        least, most = _TOKENS[tokenizer.kind]
        prompt = self._prompt(tokenizer, min(least, event.trainer.model.config.max_seq_len // 2))
        with event.trainer.averaged():
            text = self._generator.generate(prompt, max_tokens=most, temperature=0.8, seed=self._seed)
        ended = self._clock()
        self._count += 1
        self._next = ended + max(self._every, (ended - began) / _MOST_OF_THE_TIME)
        event.trainer.tell("sample", prompt=prompt, text=text.replace(_BROKEN, ""))

    def _prompt(self, tokenizer: Tokenizer, most: int) -> str:
        """The beginning of the next document, from a line or word on, without parts of characters at its ends."""
        d = self._count % len(self._store.starts)
        start, stop = int(self._store.starts[d]), int(self._store.stops[d])
        tokens = self._store.tokens

        def text(count: int) -> str:
            ids = tokens[start : min(start + count, stop)]
            return tokenizer.decode(ids[ids < tokenizer.vocab_size]).strip(_BROKEN)

        count = max(1, min(most, (stop - start) // 2))
        if start == 0 or tokens[start - 1] == self._store.end_id or tokenizer.kind == "word":
            return text(count)
        whole, length = text(_LOOKED_AT + count), len(text(count))
        found = re.search(r"\n+(?=\S)", whole) or re.search(r"\s+(?=\S)", whole)
        begin = found.end() if found else 0
        return whole[begin : begin + length]
