"""Runs the application on a socket: signals, connections that stall, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from soma_native.serve.errors import ApiError
from soma_native.serve.limits import Limits


def _last_answer(error: ApiError) -> bytes:
    """An error as the last bytes of a connection, where no application answers."""
    body = json.dumps(error.body()).encode()
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nConnection: close\r\n"
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


_TOO_SLOW = _last_answer(ApiError(408, "the request did not arrive in time: send it faster"))
_NO_HTTP = _last_answer(ApiError(400, "this is no request of HTTP/1.1 with valid headers"))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address. Port 0 takes a free port.

    Raises:
        OSError: the name is unknown, or the address cannot be had. `strerror` says why.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows the option would let two programs share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except OSError:
        found.close()
        raise
    return found


class Server(uvicorn.Server):
    """A server of one application on one socket, until a signal or `stop`.

    The first Ctrl-C, or SIGTERM, closes the socket and lets requests finish that run. The second ends them.

    Args:
        app: the application.
        limits: times and numbers of connections.
        on_stop: called once when no more requests are taken.
    """

    def __init__(self, app: ASGIApp, limits: Limits, on_stop: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                self._limited(app, limits.connections),
                http=_protocol(limits.idle_seconds),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=max(1, round(limits.idle_seconds)),
                timeout_graceful_shutdown=max(1, round(limits.grace_seconds)),
            )
        )
        self._on_stop = on_stop
        self.ended_by: int | None = None  # the signal of a second Ctrl-C

    def _limited(self, app: ASGIApp, most: int) -> ASGIApp:
        """The application, which answers while there are at most this many connections."""

        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            if len(self.server_state.connections) <= most:
                return await app(scope, receive, send)
            more = {"Connection": "close", "Retry-After": "1"}
            full = ApiError(503, f"the server has its {most} connections: ask again later", headers=more)
            return await full.response()(scope, receive, send)

        return limited

    def run_on(self, listening: socket.socket) -> None:
        """Serve until the end. The socket is closed then."""
        log = logging.getLogger("uvicorn.error")  # it tells of every rude client; what fails here has its own line
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            asyncio.run(self.serve(sockets=[listening]))
        finally:
            log.setLevel(level)
            listening.close()

    def stop(self) -> None:
        """Take no more requests, and end when those that run have finished. For other threads."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket, and wait for what runs."""
        self._on_stop()
        ending = asyncio.create_task(self._end_connections())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end_connections(self) -> None:
        """After a second signal: since Python 3.12 a server that closes waits for its connections.

        An answer that is cut says so, unless its client does not read.
        """
        while not self.force_exit:
            await asyncio.sleep(0.1)
        if tasks := set(self.server_state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await asyncio.sleep(0.1)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In this block, signals end the server. Unlike uvicorn's, they do not act again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit, self.ended_by = True, number
        self.should_exit = True


def _protocol(idle_seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which also ends a connection that sends no request, or does not read its answer, in time."""

    class Protocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None
        _begun = False  # whether a part of a request has arrived

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.access_log = False  # a handler of the root logger would switch it on
            self._reading = self.loop.call_later(idle_seconds, self._no_request)

        def data_received(self, data: bytes) -> None:
            if self._reading is None and (self.cycle is None or self.cycle.response_complete):
                self._reading = self.loop.call_later(idle_seconds, self._no_request)
            self._begun = True
            super().data_received(data)
            if self._reading is not None and self.cycle is not None and not self.cycle.response_complete:
                self._reading.cancel()
                self._reading, self._begun = None, False

        def send_400_response(self, msg: str) -> None:
            self.transport.write(_NO_HTTP)
            self.transport.close()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(idle_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._reading, self._writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _no_request(self) -> None:
            if self._begun:
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    return Protocol
