"""Limits of size, number and time, each with its status; and clients that go away, stall, or send rubbish."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import pytest

from helpers.serving import make_served, serving
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.serve.limits import Limits

ENDLESS: dict[str, Any] = {"prompt": "a", "max_tokens": 1_000_000_000}


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    return data


def test_a_body_that_is_too_large() -> None:
    with serving(make_served(limits=Limits(body_bytes=1000))) as client:
        body = json.dumps({"text": "x" * 2000}).encode()
        answer = client.post("/tokenize", body)
        assert answer.status == 413 and "more than the 1000 bytes" in answer.message
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"  # a body whose length nobody said
        head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        with client.raw(head + chunk) as connection:
            assert b" 413 " in read_until(connection, b"}}")
        with client.raw(
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1073741824\r\n\r\n"
        ) as connection:
            assert b" 413 " in read_until(connection, b"}}"), "before anything of it was sent"


def test_a_request_that_does_not_arrive() -> None:
    with serving(make_served(limits=Limits(body_seconds=0.05, idle_seconds=0.05))) as client:
        with client.raw(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{") as connection:
            data = read_until(connection, b"}}")
            assert b" 408 " in data and b"connection: close" in data.lower()
        with client.raw(b"POST /tokenize HT") as connection:
            data = read_until(connection, b"}}")
            assert data.startswith(b"HTTP/1.1 408 ") and connection.recv(1) == b""
            head, body = data.split(b"\r\n\r\n")
            assert f"Content-Length: {len(body)}".encode() in head and "in time" in json.loads(body)["error"]["message"]
        with client.raw(b"") as connection:
            assert connection.recv(1) == b"", "a connection that says nothing is closed"
        assert client.get("/health").status == 200


def test_an_answer_that_takes_too_long() -> None:
    limits = Limits(answer_seconds=0.1, max_tokens=1_000_000_000)
    with serving(make_served(limits=limits)) as client:
        answer = client.post("/v1/completions", **ENDLESS)
        assert answer.status == 504 and "longer than 0.1 seconds" in answer.message
        streamed = client.post("/v1/completions", **ENDLESS, stream=True)
        *_, last, rest = streamed.body.decode().split("\n\n")
        assert streamed.status == 200 and rest == ""
        assert "longer than 0.1 seconds" in json.loads(last.removeprefix("data: "))["error"]["message"]
        client.until(lambda: client.metric("sequences_running") == 0)


def test_a_full_queue_refuses_and_a_client_that_goes_away_makes_room() -> None:
    limits = Limits(max_queue=1, max_tokens=1_000_000_000)
    with serving(make_served(limits=limits, max_sequences=1)) as client:
        running = client.open("/v1/completions", **ENDLESS, stream=True)
        read_until(running, b"data: ")
        waiting = client.open("/v1/completions", **ENDLESS)
        client.until(lambda: client.metric("sequences_waiting") == 1)
        refused = client.post("/v1/completions", prompt="a", max_tokens=1)
        assert refused.status == 429 and refused.headers["retry-after"] == "1"
        assert refused.json["error"]["code"] == "queue_full"
        several = client.post("/v1/completions", prompt=["a", "b"], max_tokens=1)
        assert several.status == 429
        never = client.post("/v1/completions", prompt=["a", "b", "c"], max_tokens=1)
        assert never.status == 400 and "asks for 3 texts; the server takes 2 at once" in never.message
        running.close()
        waiting.close()
        client.until(lambda: client.metric("sequences_running") + client.metric("sequences_waiting") == 0)
        client.until(lambda: client.metric("requests_in_flight") == 1)
        assert client.metric("clients_gone_total") == 2
        assert client.post("/v1/completions", prompt="a", max_tokens=1).status == 200


def test_a_reader_that_stops_is_left() -> None:
    limits = Limits(idle_seconds=0.1, max_tokens=1_000_000_000)
    with serving(make_served(limits=limits)) as client:
        with client.open("/v1/completions", **ENDLESS, stream=True, logprobs=20) as connection:
            read_until(connection, b"data: ")
            client.until(lambda: client.metric("sequences_running") == 0)
            client.until(lambda: client.metric("requests_in_flight") == 1)
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass


def test_too_many_connections() -> None:
    with serving(make_served(limits=Limits(connections=2))) as client:
        with client.raw(b"GET /he") as first, client.raw(b"GET /he"):
            answer = client.get("/health")
            assert answer.status == 503 and "has its 2 connections: ask again later" in answer.message
            first.close()


RUBBISH = [
    b"\x00\x01\x02\x03\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("data", RUBBISH, ids=map(str, range(len(RUBBISH))))
def test_what_is_no_http_is_a_400(data: bytes) -> None:
    with serving(make_served(limits=Limits(idle_seconds=5))) as client:
        with client.raw(data) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):
                while more := connection.recv(65536):
                    answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 "), answer
        assert json.loads(body)["error"]["message"] == "this is no request of HTTP/1.1 with valid headers"
        assert client.get("/health").status == 200


def test_a_header_without_end_is_not_kept() -> None:
    with serving(make_served()) as client:
        with client.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ") as connection, pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"a" * 65536)
        assert client.get("/health").status == 200


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


def test_what_ctrl_c_cuts_says_so() -> None:
    """After the time that running requests have: a stream gets an event, another answer its status."""
    with serving(make_served(limits=Limits(grace_seconds=0.1, max_tokens=1_000_000_000))) as client:
        with (
            client.open("/v1/completions", **ENDLESS, stream=True) as stream,
            client.open("/v1/completions", **ENDLESS) as whole,
        ):
            read_until(stream, b"data: ")
            client.until(lambda: client.metric("requests_in_flight") == 3)  # with this one
            client.stop()
            last = read_all(stream).rpartition(b"data: ")[2]
            assert b"the server ended before the answer was complete" in last and last.endswith(b"\r\n0\r\n\r\n")
            head, _, body = read_all(whole).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ") and "the server ended" in json.loads(body)["error"]["message"]


def test_a_client_that_says_it_sends_no_more_is_gone() -> None:
    with serving(make_served(limits=Limits(max_tokens=1_000_000_000))) as client:
        connection = client.open("/v1/completions", **ENDLESS, stream=True)
        read_until(connection, b"data: ")
        connection.shutdown(socket.SHUT_RDWR)
        client.until(lambda: client.metric("requests_in_flight") == 1)
        connection.close()
        assert client.metric("clients_gone_total") == 1


def test_one_connection_answers_one_request_after_the_other() -> None:
    with serving(make_served()) as client:
        request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with client.raw(request * 3) as connection:
            data = b""
            while data.count(b'"status":"ok"') < 3:
                data += connection.recv(65536)
        assert data.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(("field", "value"), [("max_queue", 0), ("body_seconds", -1.0), ("max_tokens", 0)])
def test_a_limit_is_above_zero(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=field):
        Limits(**{field: value})
    with pytest.raises(ArgumentTypeError, match=field):
        Limits(**{field: "many"})
