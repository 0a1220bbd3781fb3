"""The door of the server: who may ask, what is counted, and how an error reaches the client.

It stands before every endpoint. It checks the Host header, the page that asks (Origin), and the key. It turns errors
into answers in OpenAI's form, counts requests, and adds the headers that keep a browser strict.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Iterable, Mapping
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from soma_native.errors import ArgumentError
from soma_native.serve.errors import CUT, FAILED, ApiError
from soma_native.serve.metrics import Metrics

_log = logging.getLogger("soma_native")

# Scripts and styles come from this server alone, and no text can become markup (trusted types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_WITHOUT_KEY = ("/", "/health", "/favicon.ico")  # and what the page loads: it has nothing of a model
PAGE = "/page/"
GONE = 499  # the status of nginx for a client that did not wait; it is only counted


def is_loopback(host: str) -> bool:
    """Whether a name or address always means this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


class Guard:
    """The ASGI application around that of the endpoints.

    Args:
        app: the endpoints.
        metrics: where requests are counted.
        paths: the paths with endpoints; others are counted together.
        api_key: the key that requests must have; None for none.
        allow_origins: pages of other origins that may ask, such as "https://example.org"; "*" is all.
        local: whether the server listens to this machine alone. Then a Host header must name this machine, or the host
            of an allowed origin: else a page could reach the server through a name of its own (DNS rebinding).

    Raises:
        ArgumentError: `api_key` or an origin cannot be one.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: Iterable[str],
        *,
        api_key: str | None = None,
        allow_origins: Iterable[str] = (),
        local: bool = True,
    ) -> None:
        if api_key is not None and not (
            api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""
        ):
            raise ArgumentError("api_key", "must be printable ASCII characters without spaces around them")
        self._app, self._metrics, self._paths, self._local = app, metrics, tuple(paths), local
        self._key = None if api_key is None else api_key.encode()
        self._origins = {_origin(origin) for origin in allow_origins}
        self._hosts = {urlsplit(origin).hostname for origin in self._origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers, began, status = Headers(scope=scope), time.perf_counter(), GONE
        more = dict(_HEADERS)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                for name, value in more.items():
                    found[name] = value
                found.setdefault("Cache-Control", "no-store")
            await send(message)

        self._metrics.add("requests_in_flight")
        try:
            try:
                more |= self._check(scope, headers)
                if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                    await Response(status_code=204, headers=_preflight(headers))(scope, receive, send_with_headers)
                else:
                    await self._app(scope, receive, send_with_headers)
            except ClientDisconnect:
                self._metrics.add("clients_gone_total")
            except (ApiError, HTTPException) as error:
                await self._answer(error, scope)(scope, receive, send_with_headers)
            except asyncio.CancelledError:  # after Ctrl-C, when the time of what runs is over
                if status == GONE:
                    await ApiError(503, CUT).response()(scope, receive, send_with_headers)
                raise
            except Exception:
                _log.exception("%s %s failed", scope["method"], scope["path"])
                if status != GONE:  # the answer has begun: only its end can say that it failed
                    raise
                await ApiError(500, FAILED).response()(scope, receive, send_with_headers)
        finally:
            path = self._counted(scope["path"])
            self._metrics.add("requests_in_flight", -1)
            self._metrics.add("requests_total", path=path, status=str(status))
            self._metrics.observe("request_seconds", time.perf_counter() - began, path=path)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers for the page of another origin that may ask. Raises an ApiError for who may not."""
        host = headers.get("host", "")
        name = _parts(f"//{host}").hostname if "@" not in host else None
        if self._local and host and not (name and (is_loopback(name) or name in self._hosts)):
            raise ApiError(403, f"this server does not answer to the name {host!r:.80}: ask for 127.0.0.1 or localhost")
        origin, found = headers.get("origin"), {}
        if origin is not None and _parts(origin).netloc.lower() != host.lower():
            if "*" not in self._origins and origin.lower() not in self._origins:
                problem = f"pages of {origin!r:.80} may not use this server: start it with --allow-origin for them"
                raise ApiError(403, problem, code="origin_not_allowed")
            found = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
            found["Access-Control-Expose-Headers"] = "Retry-After"
        elif origin is None and headers.get("sec-fetch-site") == "cross-site" and not _navigates(headers):
            raise ApiError(403, "pages of other origins may not use this server", code="origin_not_allowed")
        path = scope["path"]
        preflight = scope["method"] == "OPTIONS" and bool(found)
        if self._key is not None and path not in _WITHOUT_KEY and not path.startswith(PAGE) and not preflight:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                problem = "the API key is wrong" if given else "an API key is needed: send Authorization: Bearer KEY"
                raise ApiError(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return found

    def _answer(self, error: ApiError | HTTPException, scope: Scope) -> Response:
        if isinstance(error, HTTPException):  # of the router: no such path, or method
            path = f"{scope['path']!r:.80}"
            problem, headers = f"there is no {path} here; there are {', '.join(self._paths)}", {}
            if error.status_code == 405:
                allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
                problem, headers = f"{path} takes {allowed}, not {scope['method']:.20}", {"Allow": allowed}
            error = ApiError(error.status_code, problem, headers=headers)
        return error.response()

    def _counted(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((start for start in (PAGE, "/v1/models/") if path.startswith(start)), "other")


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as "//[" of a header
        return urlsplit("")


def _navigates(headers: Mapping[str, str]) -> bool:
    """Whether the browser opens an address, as by a link, and no page can read the answer."""
    return headers.get("sec-fetch-mode") == "navigate"


def _origin(origin: str) -> str:
    found = _parts(origin)
    if origin != "*" and (not found.scheme or not found.netloc or origin != f"{found.scheme}://{found.netloc}"):
        raise ArgumentError("allow_origin", f"must be '*' or like 'https://example.org', got {origin!r:.80}")
    return origin.lower()


def _preflight(headers: Mapping[str, str]) -> dict[str, str]:
    found = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "Authorization, Content-Type"),
        "Access-Control-Max-Age": "600",
    }
    if "access-control-request-private-network" in headers:
        found["Access-Control-Allow-Private-Network"] = "true"
    return found
