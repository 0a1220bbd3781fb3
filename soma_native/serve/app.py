"""The whole application: models, endpoints, and the guard before them. Any ASGI server can run it."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Receive, Scope, Send

from soma_native.serve.endpoints import Endpoints
from soma_native.serve.guard import Guard
from soma_native.serve.metrics import Metrics
from soma_native.serve.models import Models, Served


class App:
    """An ASGI application that answers for models.

    Args:
        served: the models. They have the same limits.
        api_key, allow_origins, local: as for `Guard`.

    Raises:
        ArgumentError: two models have one name, or an argument is wrong.
    """

    def __init__(
        self,
        served: Iterable[Served],
        *,
        api_key: str | None = None,
        allow_origins: Iterable[str] = (),
        local: bool = True,
    ) -> None:
        self._models, self.metrics = Models(served), Metrics()
        self.limits = next(iter(self._models)).limits
        self._endpoints = Endpoints(self._models, self.metrics, self.limits)
        paths = [path for _, path in self._endpoints.routes if "{" not in path]
        self._guard = Guard(
            self._endpoints.app(), self.metrics, paths, api_key=api_key, allow_origins=allow_origins, local=local
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._guard(scope, receive, send)

    def close(self) -> None:
        """End the engines and threads. Texts that are not complete fail."""
        self._models.close()
        self._endpoints.close()
