"""One text of an answer: brings what the engine's thread writes into the event loop, with places and probabilities."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np

from soma_native.errors import EngineClosedError
from soma_native.serve.answers import Part, Token
from soma_native.serve.asks import Ask
from soma_native.serve.errors import ApiError
from soma_native.serve.models import Prompt, Served
from soma_native.serve.vocabulary import Places

Work = Callable[..., Awaitable[Any]]  # calls a function in another thread


def prompt_tokens(served: Served, prompt: Prompt, top: int) -> list[Token]:
    """The tokens of a prompt that fits into the context, with their log-probabilities; nothing predicts the first."""
    places, ids = served.places(prompt), np.array([prompt.ids], np.int32)
    found = [Token(*pair) for pair in zip(prompt.ids[:1], places[:1], strict=True)]
    if len(prompt.ids) > 1:
        logprobs, _, top_ids, best = served.model._core.score(ids[:, :-1], ids[:, 1:], top)
        tops = [list(zip(*row, strict=True)) for row in zip(top_ids.tolist(), best.tolist(), strict=True)]
        found += map(Token, prompt.ids[1:], places[1:], logprobs.tolist(), tops)
    return found


class Text:
    """A text that an engine writes.

    Args:
        ask: the request.
        prompt: the text to continue.
        number: of the continuation among the `n` of this prompt.

    Raises:
        ValueError, TypeError: a field of the request is wrong; the error names it.
        EngineFullError, EngineClosedError: as `Engine.submit`.
    """

    def __init__(self, ask: Ask, prompt: Prompt, number: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._stream = ask.stream
        self._handle = ask.served.submit(prompt, number, ask.sampling, ask.logprobs)
        self._job = self._handle._job
        self._job.listener = self._listen
        self._with_logprobs = ask.logprobs is not None
        self._vocabulary = ask.served.vocabulary
        begin = len(prompt.text) if ask.echo else 0
        self._space = None if ask.served.tok.kind != "word" else bool(prompt.text) and not prompt.text[-1].isspace()
        self._places: Places | None = None  # once the first token says how the prompt's end was read
        self._begin = self._end = begin  # of the text so far
        self._seen = 0  # tokens
        self._held: deque[Token] = deque()  # tokens whose text is not there yet

    @property
    def generated(self) -> int:
        """The number of tokens so far."""
        return len(self._job.sequence.tokens)

    @property
    def first_seconds(self) -> float | None:
        """The seconds to the first token; None before that."""
        return self._handle.first_seconds

    def cancel(self) -> None:
        """End the text."""
        self._handle.cancel()

    def _listen(self) -> None:
        """Called in the engine's thread. An answer that is no stream needs the end alone."""
        if self._stream or self._handle.done:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def parts(self) -> AsyncIterator[Part]:
        """The text in parts; the last one has a finish reason.

        Raises:
            ApiError: the server ends (503), or generation failed (500).
        """
        while True:
            self._changed.clear()
            pieces: list[str | None] = []
            while True:
                try:
                    pieces.append(self._job.pieces.get_nowait())
                except queue.Empty:
                    break
            ended = bool(pieces) and pieces[-1] is None
            if self._job.error is not None and ended:
                raise _failure(self._job.error)
            text = "".join(piece for piece in pieces if piece is not None)
            if text or ended:
                self._end += len(text)
                yield Part(
                    text, self._tokens() if self._with_logprobs else [], self._handle.finish_reason if ended else None
                )
            if ended:
                return
            await self._changed.wait()

    def _tokens(self) -> list[Token]:
        """The tokens of the text so far that were not given yet. Those of a stop string never come."""
        sequence = self._job.sequence
        scores = sequence.scores[self._seen :]
        if scores and self._places is None:
            self._places = Places(self._vocabulary, self._space, self._begin, sequence.healed)
        for token, (logprob, top) in zip(sequence.tokens[self._seen :], scores, strict=False):
            assert self._places is not None
            self._held.append(Token(token, self._places.next(token), logprob, top))
        self._seen += len(scores)
        found = []
        while self._held and self._held[0].place < self._end:
            found.append(self._held.popleft())
        return found


def _failure(error: BaseException) -> ApiError:
    if isinstance(error, EngineClosedError):
        return ApiError(503, "the server ends and does not finish this text")
    return ApiError(500, f"generation failed: {error}")
