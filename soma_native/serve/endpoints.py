"""The endpoints: each takes a request apart, asks a model, and gives an answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from soma_native._checks import choice, flag, integer
from soma_native.errors import ArgumentError
from soma_native.serve.answers import Usage
from soma_native.serve.asks import Ask, chat_of, completion_of, ids_of, prompts_of
from soma_native.serve.body import Fields, read_body, text
from soma_native.serve.completions import Answer, while_connected
from soma_native.serve.errors import ApiError, json_response, refusing
from soma_native.serve.guard import PAGE
from soma_native.serve.limits import Limits
from soma_native.serve.metrics import Metrics
from soma_native.serve.models import Models, Prompt, Served
from soma_native.serve.static import page_files

_Result = TypeVar("_Result")
_Endpoint = Callable[[Request], Any]
_TEXT = ("text", "prompt", "content")  # the last two are the names of other servers
_INPUTS = 32  # whose embeddings are computed together
_AT_ONCE = 32768  # bytes of a request that is taken apart in the event loop


class Endpoints:
    """The endpoints of some models.

    Args:
        models: the models.
        metrics: what is counted.
        limits: what a request may ask for.
    """

    def __init__(self, models: Models, metrics: Metrics, limits: Limits) -> None:
        self._models, self._metrics, self._limits = models, metrics, limits
        self._quick = ThreadPoolExecutor(2, thread_name_prefix="soma-serve")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="soma-serve-slow")  # whole texts through the model
        self._working = 0
        self._page = page_files()
        self.routes: dict[tuple[str, str], _Endpoint] = {
            ("GET", "/"): self._page_file,
            ("GET", f"{PAGE}{{name}}"): self._page_file,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics_text,
            ("GET", "/v1/models"): self._list,
            ("GET", "/v1/models/{name}"): self._card,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/score"): self._score,
        }

    def app(self) -> ASGIApp:
        """The application that calls them."""
        routes = [Route(path, endpoint, methods=[method]) for (method, path), endpoint in self.routes.items()]
        router = Router(routes, redirect_slashes=False)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await router({**scope, "app": router}, receive, send)  # with "app" it raises what it does not find

        return app

    def close(self) -> None:
        """End the threads."""
        for threads in (self._quick, self._slow):
            threads.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """The place of a request among those that wait for other threads. Raises an ApiError if all are taken (429)."""
        if self._working >= self._limits.max_queue:
            problem = "too many requests wait: ask again later"
            raise ApiError(429, problem, code="queue_full", headers={"Retry-After": "1"})
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    async def _run(self, function: Callable[..., _Result], *arguments: Any, slow: bool = False) -> _Result:
        threads = self._slow if slow else self._quick
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    async def _work(self, function: Callable[..., _Result], *arguments: Any, slow: bool = False) -> _Result:
        """Call a function in another thread. Raises an ApiError if too many wait for that (429)."""
        with self._place():
            return await self._run(function, *arguments, slow=slow)

    async def _asked(self, request: Request, take: Callable[[Fields], _Result]) -> _Result:
        """What `take` makes of the request's fields."""
        fields = await read_body(request, self._limits)
        with refusing():
            return take(fields) if fields.size <= _AT_ONCE else await self._work(take, fields)

    # the page and the state -------------------------------------------------------------------------------------------

    async def _page_file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._page:
            raise ApiError(404, "there is no such page")
        content, kind = self._page[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def _health(self, request: Request) -> Response:
        return json_response({"status": "ok", "models": [served.name for served in self._models]})

    async def _metrics_text(self, request: Request) -> Response:
        for served in self._models:
            self._metrics.set("sequences_running", served.engine.running, model=served.name)
            self._metrics.set("sequences_waiting", served.engine.waiting, model=served.name)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _list(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [served.card() for served in self._models]})

    async def _card(self, request: Request) -> Response:
        return json_response(self._models.named(request.path_params["name"]).card())

    # texts ------------------------------------------------------------------------------------------------------------

    async def _completions(self, request: Request) -> Answer:
        return self._answer(await self._asked(request, lambda fields: completion_of(fields, self._models)))

    async def _chat(self, request: Request) -> Answer:
        fields = await read_body(request, self._limits)
        with refusing():  # the template is a program of the folder, so it does not run in the event loop
            return self._answer(await self._work(chat_of, fields, self._models))

    def _answer(self, ask: Ask) -> Answer:
        return Answer(ask, self._work, self._metrics)

    # numbers ----------------------------------------------------------------------------------------------------------

    async def _embeddings(self, request: Request) -> Response:
        def take(fields: Fields) -> tuple[Served, list[Any], str]:
            served = self._models.named(fields.take("model", text))
            most = self._limits.max_inputs
            inputs = fields.first(
                ("input",), lambda name, value: prompts_of(name, value, served, most=most, fitting=False)
            )
            for number, one in enumerate(inputs):
                if not one.ids:
                    name = f"input[{number}]" if len(inputs) > 1 else "input"
                    raise ArgumentError(name, f"has no token of the vocabulary: {one.text!r:.80}")
            form = fields.take("encoding_format", lambda name, value: choice(name, value, ("float", "base64")), "float")
            size = served.model.config.d_model
            fields.take("dimensions", lambda name, value: integer(name, value, size, size))
            fields.ignore("user")
            fields.close()
            return served, inputs, form

        served, inputs, form = await self._asked(request, take)

        async def embed() -> Response:
            parts = []
            with self._place():
                for first in range(0, len(inputs), _INPUTS):  # between them, requests of others get their turn
                    some = inputs[first : first + _INPUTS]
                    parts.append(await self._run(_embeddings, served, some, first, form, slow=True))
            usage = Usage(sum(len(prompt.ids) for prompt in inputs)).json()
            del usage["completion_tokens"]
            end = json.dumps({"object": "list", "model": served.name, "usage": usage})
            return Response(f'{{"data":[{",".join(parts)}],{end[1:]}', media_type="application/json")

        return await while_connected(request.receive, embed(), self._limits.answer_seconds)

    async def _score(self, request: Request) -> Response:
        def take(fields: Fields) -> tuple[Served, str, int]:
            served = self._models.named(fields.take("model", text))
            said, top = fields.first(_TEXT, text), fields.take("top", _top, 0)
            fields.close()
            count = len(served.tok.encode(said)) * (1 + top)
            if count > self._limits.max_numbers:
                problem = f"needs {count} log-probabilities; an answer may have {self._limits.max_numbers}"
                raise ArgumentError("text", f"{problem}: shorten it, or lower top")
            return served, said, min(top, served.model.config.vocab_size)

        served, said, top = await self._asked(request, take)

        def score() -> dict[str, Any]:
            scores, name = served.generator.score(said, top=top), served.vocabulary.text
            return {
                "model": served.name,
                "tokens": [name(token) for token in scores.tokens],
                "ids": scores.tokens,
                "offsets": scores.offsets,
                "logprobs": scores.logprobs,
                "ranks": scores.ranks,
                "top": [[{"token": name(i), "id": i, "logprob": p} for i, p in place] for place in scores.top],
                "total": scores.total,
                "perplexity": scores.perplexity,
                "bits_per_byte": scores.bits_per_byte,
            }

        async def answer() -> Response:
            with refusing():
                return await self._work(lambda: json_response(score()), slow=True)

        return await while_connected(request.receive, answer(), self._limits.answer_seconds)

    # tokens -----------------------------------------------------------------------------------------------------------

    async def _tokenize(self, request: Request) -> Response:
        def answer(fields: Fields) -> Response:
            served = self._models.named(fields.take("model", text))
            said, special = fields.first(_TEXT, text), fields.take("special", flag, False)
            fields.refuse({"add_special_tokens": "write them into the text, and send special: true"}, _NO_SPECIAL)
            fields.close()
            ids, offsets = served.tok.encode_with_offsets(said, "all" if special else ())
            texts = [served.vocabulary.text(token) for token in ids]
            more = {"count": len(ids), "max_model_len": served.context}
            return json_response({"model": served.name, "tokens": ids, "texts": texts, "offsets": offsets, **more})

        return await self._asked(request, answer)

    async def _detokenize(self, request: Request) -> Response:
        def answer(fields: Fields) -> Response:
            served = self._models.named(fields.take("model", text))
            ids = fields.first(("tokens", "ids"), lambda name, value: ids_of(name, value, served))
            fields.close()
            return json_response({"model": served.name, "text": served.tok.decode(ids)})

        return await self._asked(request, answer)


_NO_SPECIAL = {"add_special_tokens": (False,)}
_top = functools.partial(integer, least=0, most=20)


def _embeddings(served: Served, prompts: list[Prompt], first: int, form: str) -> str:
    """The JSON of some elements of an answer's data, of which the first has this index."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if form == "base64"
            else vector.tolist(),
        }
        for index, vector in enumerate(served.generator._vectors([np.array(p.ids, np.uint32) for p in prompts]), first)
    ]
    return json.dumps(data, allow_nan=False, separators=(",", ":"))[1:-1]
