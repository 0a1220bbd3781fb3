"""A server of tiny models on a free port, in a thread of its own, and a client that speaks plain HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import soma_native
from soma_native.serve.app import App
from soma_native.serve.limits import Limits
from soma_native.serve.models import Served
from soma_native.serve.server import Server, listen

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_served(
    name: str = "tiny",
    *,
    kind: str = "byte",
    special_tokens: tuple[str, ...] = (),
    template: str | None = None,
    context: int = 64,
    limits: Limits | None = None,
    max_sequences: int = 4,
    seed: int = 0,
) -> Served:
    """A tiny model that never ends by itself, unless a special token ends it."""
    tok = soma_native.Tokenizer.train(["the cat sat on the mat"], kind=kind, special_tokens=special_tokens)
    if template is not None:
        document = {"chat_template": template, "bos_token": special_tokens[0]}
        tok._beside["tokenizer_config.json"] = json.dumps(document).encode()
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_seq_len": context, "block": "gpt2"}
    model = soma_native.Model(soma_native.ModelConfig(vocab_size=tok.vocab_size, **shape), seed=seed)
    return Served(name, model, tok, limits=limits, max_sequences=max_sequences)


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The one line of an error, in OpenAI's form."""
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
        return str(error["message"])

    @property
    def events(self) -> list[Any]:
        """The events of a stream that came to its end."""
        assert self.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = self.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


class Client:
    """Speaks to a server, with one connection for each request."""

    stop: Callable[[], None]  # as Ctrl-C

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, None, headers)

    def post(self, path: str, body: Any = None, **fields: Any) -> Answer:
        """Post JSON: the fields, or a body of any bytes."""
        return self.send("POST", path, json.dumps(fields).encode() if body is None else body, {})

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            return Answer(connection.getresponse())

    def open(self, path: str, **fields: Any) -> socket.socket:
        """A connection that has sent a request and read nothing."""
        body = json.dumps(fields).encode()
        return self.raw(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )

    def raw(self, data: bytes) -> socket.socket:
        """A connection that has sent these bytes."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a reader that stops is soon noticed
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(data)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values whose labels include these."""
        found = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            wanted = all(f'{label}="{value}"' in line for label, value in labels.items())
            if wanted and line.split("{")[0].split(" ")[0] == f"soma_{name}":
                found += float(line.rsplit(" ", 1)[1])
        return found

    def until(self, holds: Callable[[], bool]) -> None:
        """Ask the server again and again until it is so."""
        for _ in range(20_000):
            if holds():
                return
        raise AssertionError("it never came about")


@contextlib.contextmanager
def serving(*served: Served, **options: Any) -> Iterator[Client]:
    """A server of these models, which ends with the block."""
    app = App(served or [make_served()], **options)
    listening = listen("127.0.0.1", 0)
    server = Server(app, app.limits)
    thread = threading.Thread(target=server.run_on, args=(listening,))
    thread.start()
    try:
        client = Client(listening.getsockname()[1])
        client.stop = server.stop
        yield client
    finally:
        server.force_exit = True
        server.stop()
        thread.join()
        app.close()
