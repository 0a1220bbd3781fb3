"""Answers requests for texts: whole, or as a stream of events. A client that goes away ends its texts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from soma_native.serve.answers import DONE, ChatForm, Form, Part, Usage, event
from soma_native.serve.asks import Ask
from soma_native.serve.errors import CUT, FAILED, ApiError, json_response, refusing
from soma_native.serve.metrics import Metrics
from soma_native.serve.texts import Text, Work, prompt_tokens

_log = logging.getLogger("soma_native")
_Result = TypeVar("_Result")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
    """The result of `work`, which is cancelled if the client goes away or the time is over.

    Raises:
        ClientDisconnect: the client went away.
        ApiError: the time is over (504).
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watch.done():
            raise ClientDisconnect
        raise ApiError(504, f"the answer took longer than {seconds:g} seconds: ask for fewer tokens")
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class Answer:
    """The answer to a request for texts, an ASGI application.

    The texts are submitted when it is made, so that an error is an answer of its own and no broken stream.

    Args:
        ask: the request.
        work: calls a function in another thread.
        metrics: where tokens and times are counted.

    Raises:
        ApiError: a field is wrong (400), the queue is full (429), or the server ends (503).
    """

    def __init__(self, ask: Ask, work: Work, metrics: Metrics) -> None:
        self._ask, self._work, self._metrics = ask, work, metrics
        served, form = ask.served, ChatForm if ask.chat else Form
        self._form = form(served.name, served.vocabulary, ask.logprobs, ask.warnings)
        self._count = len(ask.prompts) * ask.n
        self._texts: list[Text] = []
        self._begun = False  # whether a part of a stream was sent
        try:
            with refusing():
                for index in range(self._count if ask.sampling["max_tokens"] else 0):
                    self._texts.append(Text(ask, ask.prompts[index // ask.n], index % ask.n))
        except BaseException:
            self._cancel()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        work = self._send_stream(send) if self._ask.stream else self._send_whole(scope, receive, send)
        try:
            await while_connected(receive, work, self._ask.served.limits.answer_seconds)
        except Exception as error:
            if not self._begun or isinstance(error, ClientDisconnect):
                raise
            if not isinstance(error, ApiError):
                _log.exception("a stream of %s failed", self._ask.served.name)
                error = ApiError(500, FAILED)
            await _emit(send, event(error.body()), more=False)
        except asyncio.CancelledError:  # after Ctrl-C, when the time of what runs is over
            if self._begun:
                with contextlib.suppress(Exception):  # a client that reads nothing, or has all already
                    await asyncio.wait_for(_emit(send, event(ApiError(503, CUT).body()), more=False), 2)
            raise
        finally:
            self._cancel()
            usage, model = self._usage(), self._ask.served.name
            self._metrics.add("prompt_tokens_total", usage.prompt, model=model)
            self._metrics.add("generated_tokens_total", usage.completion, model=model)
            for text in self._texts:
                if text.first_seconds is not None:
                    self._metrics.observe("first_token_seconds", text.first_seconds, model=model)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def whole(index: int) -> Part:
            parts = [part async for part in self._parts(index)]
            tokens = [token for part in parts for token in part.tokens]
            return Part("".join(part.text for part in parts), tokens, parts[-1].finish_reason)

        texts = await _all(whole(index) for index in range(self._count))
        await json_response(self._form.answer(texts, self._usage()))(scope, receive, send)

    async def _send_stream(self, send: Send) -> None:
        async def one(index: int) -> None:
            for data in self._form.begin(index):
                await _emit(send, data)
            async for part in self._parts(index):
                await _emit(send, self._form.event(index, part, usage=self._ask.usage))

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._begun = True
        await _all(one(index) for index in range(self._count))
        last = self._form.usage(self._usage()) if self._ask.usage else b""
        await _emit(send, last + DONE, more=False)

    async def _parts(self, index: int) -> AsyncIterator[Part]:
        ask = self._ask
        prompt = ask.prompts[index // ask.n]
        if ask.echo:
            tokens = [] if ask.logprobs is None else await self._work(prompt_tokens, ask.served, prompt, ask.logprobs)
            yield Part(prompt.text, tokens)
        if not self._texts:
            yield Part("", (), "length")
            return
        async for part in self._texts[index].parts():
            yield part

    def _cancel(self) -> None:
        for text in self._texts:
            text.cancel()

    def _usage(self) -> Usage:
        prompt = sum(len(prompt.ids) for prompt in self._ask.prompts)
        return Usage(prompt, sum(text.generated for text in self._texts))


async def _emit(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _all(works: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """The results of all. If one fails the others are cancelled, and its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
