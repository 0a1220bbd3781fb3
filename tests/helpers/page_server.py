"""A server for the tests of the page: its files under a strict policy, and a model whose every word is known.

The model has eleven words. What it writes depends on its name, the seed and the number of tokens alone, so a test knows
each text. The ids of a text are its code points. A prompt that holds "endless" makes the model wait after three tokens
until the client goes away.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import soma_native

PAGE = Path(soma_native.__file__).parent / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

# The ten most likely tokens, always the same, and one that is drawn now and then from beyond them.
WORDS = (" the", " a", " sea", " house", " cat", " was", " quiet", "\n", " and", "bytes:\\xe2\\x80")
SHARES = (0.30, 0.20, 0.12, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.01)
REST, OUTSIDER = 1 - sum(SHARES), " zephyr"
ATTACK = ("<script>", "document.title='broken'", "</script>", "<img src=x onerror=alert(1)>", "&amp;", "<b>")


def words_of(model: str, seed: int, count: int) -> list[str]:
    """The tokens that a model writes for a seed."""
    step = 1 if model == "alpha" else 2
    cycle = (*WORDS[:9], OUTSIDER)
    return [cycle[(seed + step * number) % len(cycle)] for number in range(count)]


def top_of(token: str) -> tuple[float, dict[str, float]]:
    """The log-probability of a token, and the ten alternatives in no useful order."""
    top = {word: math.log(share) for word, share in sorted(zip(WORDS, SHARES, strict=True))}
    return top.get(token, math.log(REST / 100)), top


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, kind: str, data: bytes = b"") -> None:
        """Send a whole answer, or its head."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def json(self, document: Any, status: int = 200) -> None:
        """Send JSON."""
        self.answer(status, "application/json", json.dumps(document).encode())

    def refuse(self, status: int, message: str) -> None:
        """Send an error in OpenAI's form."""
        self.json({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}, status)

    def do_GET(self) -> None:
        """The files of the page, and the models."""
        if self.path == "/v1/models":
            return self.json({"object": "list", "data": self.server.models}) if self.allowed() else None
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        file = PAGE / name
        if "/" in name or not file.is_file():
            return self.refuse(404, "there is no such file")
        return self.answer(200, TYPES[file.suffix], file.read_bytes())

    def allowed(self) -> bool:
        """Whether the request has the key; if not, it is refused."""
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.refuse(401, "an API key is needed")
        return False

    def do_POST(self) -> None:
        """What the page asks of a model."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if not self.allowed():
            return
        text = body.get("prompt") or body.get("text") or ""
        if isinstance(text, list):
            text = "".join(map(chr, text))
        if "refuse" in text:
            return self.refuse(400, "prompt has 999 tokens; the context of alpha holds 256: shorten it")
        if self.path == "/tokenize":
            offsets = [[place, place + 1] for place in range(len(text))]
            return self.json({"tokens": [ord(character) for character in text], "offsets": offsets})
        if self.path == "/score":
            return self.score(text)
        return self.write(body, text)

    def score(self, text: str) -> None:
        """The tokens of a text are its words with the space before them."""
        tokens, offsets, at = [], [], 0
        for number, word in enumerate(text.split(" ")):
            tokens.append(word if number == 0 else f" {word}")
            offsets.append([at, at + len(tokens[-1])])
            at += len(tokens[-1])
        said = [top_of(token) for token in tokens]
        top = [[{"token": token, "logprob": logprob} for token, logprob in each.items()] for _, each in said]
        logprobs = [None, *(logprob for logprob, _ in said[1:])]
        found = {"tokens": tokens, "offsets": offsets, "logprobs": logprobs, "top": [None, *top[1:]]}
        self.json({**found, "bits_per_byte": 1.234})

    def write(self, body: dict[str, Any], prompt: str) -> None:
        """The tokens of the model, whole or as a stream, as a completion or as a chat."""
        chat = "messages" in body
        prompt = prompt or body["messages"][-1]["content"]
        tokens = words_of(body["model"], body["seed"], body["max_tokens"])
        if "markup" in prompt:
            tokens = list(ATTACK)
        form = chat_choice if chat else completion_choice
        if not body.get("stream"):
            return self.json({"choices": [form(tokens[0], "length")]})
        self.answer(200, "text/event-stream")
        with contextlib.suppress(ConnectionError):
            for number, token in enumerate(tokens):
                if "endless" in prompt and number == 3:
                    return self.wait_for_hang_up()
                self.event({"choices": [form(token, None)]})
            self.event({"choices": [form("", "length")]})
            self.event({"choices": [], "usage": {"completion_tokens": len(tokens)}})
            self.wfile.write(b"data: [DONE]\n\n")
        return None

    def event(self, document: Any) -> None:
        """Send one event."""
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())

    def wait_for_hang_up(self) -> None:
        """Wait until the client closes the connection."""
        select.select([self.connection], [], [], 60)
        if self.connection.recv(1, socket.MSG_PEEK) == b"":
            self.server.hung_up.set()


def completion_choice(token: str, finish: str | None) -> dict[str, Any]:
    """A token in the form of /v1/completions."""
    logprob, top = top_of(token)
    said = {"tokens": [token], "token_logprobs": [logprob], "top_logprobs": [top]} if token else None
    return {"index": 0, "text": token, "logprobs": said, "finish_reason": finish}


def chat_choice(token: str, finish: str | None) -> dict[str, Any]:
    """A token in the form of /v1/chat/completions."""
    logprob, top = top_of(token)
    others = [{"token": other, "logprob": share} for other, share in top.items()]
    said = {"content": [{"token": token, "logprob": logprob, "top_logprobs": others}]} if token else None
    return {"index": 0, "delta": {"content": token}, "logprobs": said, "finish_reason": finish}


class PageServer(ThreadingHTTPServer):
    """The server. `asked` holds the requests, `hung_up` is set when a client has left an endless text."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key: str | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.hung_up = threading.Event()
        settings = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "max_tokens": 8}
        more = {"object": "model", "max_model_len": 256, "tokenizer": "bpe", "vocab_size": 110, "special_tokens": []}
        self.models: list[dict[str, Any]] = [
            {"id": name, "chat": name == "alpha", "sampling": {**settings, "repetition_penalty": "auto"}, **more}
            for name in ("alpha", "beta")
        ]

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The requests to a path."""
        return [body for asked, body in self.asked if asked == path]


@contextlib.contextmanager
def page_server() -> Iterator[PageServer]:
    """A running server."""
    with PageServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
