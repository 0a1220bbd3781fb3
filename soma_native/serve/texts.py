"""One text of an answer: brings what the engine's thread writes into the event loop, with places and probabilities."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np

from soma_native.data.windows import IGNORE_INDEX
from soma_native.errors import EngineClosedError
from soma_native.model.model import Model
from soma_native.serve.answers import Part, Token
from soma_native.serve.asks import Ask
from soma_native.serve.errors import ApiError
from soma_native.serve.models import Prompt, Served
from soma_native.serve.vocabulary import Places

Work = Callable[..., Awaitable[Any]]  # calls a function in another thread


class LogProbs:
    """Log-probabilities of a continuation, given token by token, from the contexts that generation has.

    They are of the model's own distribution, before any rule of sampling, and in the precision of `Model.forward`.

    Args:
        model: the model.
        prompt: the tokens before the continuation.
        top: how many alternatives each token has.
    """

    def __init__(self, model: Model, prompt: list[int], top: int) -> None:
        self._core = model._core
        self._window = model.config.max_seq_len
        self._context = prompt[-self._window :]
        self._top = min(top, model.config.vocab_size)

    def next(self, tokens: list[int]) -> list[tuple[float, list[tuple[int, float]]]]:
        """The log-probability of each of the next tokens, and the alternatives, the likeliest first."""
        found: list[tuple[float, list[tuple[int, float]]]] = []
        while tokens:
            room = self._window - len(self._context) + 1
            part, tokens = tokens[:room], tokens[room:]
            known = len(self._context) - 1  # targets that are no part of the continuation
            ids = np.array([self._context + part[:-1]], np.int32)
            targets = np.array([[IGNORE_INDEX] * known + part], np.int32)
            logprobs, _, top_ids, top = self._core.score(ids, targets, self._top)
            rows = zip(logprobs.tolist(), top_ids.tolist(), top.tolist(), strict=True)
            found += [(logprob, list(zip(*row, strict=True))) for logprob, *row in rows]
            self._context += part
            if len(self._context) > self._window:  # as generation goes on when its context is full
                del self._context[: -max(1, self._window // 2)]
        return found


def prompt_tokens(served: Served, prompt: Prompt, top: int) -> list[Token]:
    """The tokens of a prompt with their log-probabilities; nothing predicts the first."""
    tokens = list(zip(prompt.ids, served.places(prompt), strict=True))
    first = [Token(token, place) for token, place in tokens[:1]]
    scored = LogProbs(served.model, prompt.ids[:1], top).next(prompt.ids[1:]) if tokens else []
    return first + [Token(token, place, *said) for (token, place), said in zip(tokens[1:], scored, strict=True)]


class Text:
    """A text that an engine writes.

    Args:
        ask: the request.
        prompt: the text to continue.
        number: of the continuation among the `n` of this prompt.
        work: calls a function in another thread.

    Raises:
        ValueError, TypeError: a field of the request is wrong; the error names it.
        EngineFullError, EngineClosedError: as `Engine.submit`.
    """

    def __init__(self, ask: Ask, prompt: Prompt, number: int, work: Work) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._stream = ask.stream
        self._work = work
        self._handle = ask.served.submit(prompt, number, ask.sampling)
        self._job = self._handle._job
        self._job.listener = self._listen
        ids = self._job.sequence.prompt_ids
        self._logprobs = None if ask.logprobs is None else LogProbs(ask.served.model, ids, ask.logprobs)
        begin = len(prompt.text) if ask.echo else 0
        space = None if ask.served.tok.kind != "word" else bool(prompt.text) and not prompt.text[-1].isspace()
        self._places = Places(ask.served.vocabulary, space, begin)
        self._end = begin  # of the text so far
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
                tokens = [] if self._logprobs is None else await self._tokens(self._logprobs)
                yield Part(text, tokens, self._handle.finish_reason if ended else None)
            if ended:
                return
            await self._changed.wait()

    async def _tokens(self, logprobs: LogProbs) -> list[Token]:
        """The tokens of the text so far that were not given yet. Those of a stop string never come."""
        new = self._job.sequence.tokens[self._seen :]
        self._seen += len(new)
        for token, said in zip(new, await self._work(logprobs.next, new) if new else (), strict=True):
            self._held.append(Token(token, self._places.next(token), *said))
        found = []
        while self._held and self._held[0].place < self._end:
            found.append(self._held.popleft())
        return found


def _failure(error: BaseException) -> ApiError:
    if isinstance(error, EngineClosedError):
        return ApiError(503, "the server ends and does not finish this text")
    return ApiError(500, f"generation failed: {error}")
