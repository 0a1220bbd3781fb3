"""The answers of /v1/completions and /v1/chat/completions, whole and as the events of a stream, in OpenAI's form."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from soma_native.serve.vocabulary import Vocabulary
from soma_native.version import __version__

DONE = b"data: [DONE]\n\n"
_LEAST = -9999.0  # OpenAI's number for a probability of zero; JSON has no infinity


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
        id: the token.
        place: where it begins in the answer's text, in code points.
        logprob: its log-probability in nats; None for the first token of a prompt, or where nobody asked.
        top: the most likely tokens in its place, and their log-probabilities.
    """

    id: int
    place: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Part(NamedTuple):
    """The next part of one text of an answer; the last part has a finish reason."""

    text: str
    tokens: Sequence[Token] = ()
    finish_reason: str | None = None


class Usage(NamedTuple):
    """The tokens that a request cost."""

    prompt: int
    completion: int = 0

    def json(self) -> dict[str, int]:
        """In OpenAI's form."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class Form:
    """How an answer is written: one for the texts of /v1/completions, and `ChatForm`.

    Args:
        model: the name of the model.
        vocabulary: of its tokens.
        logprobs: how many alternatives each token shows; None for no log-probabilities.
        warnings: what a client should know of its request. The answer has them, or the first event of a stream.
    """

    whole = events = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, vocabulary: Vocabulary, logprobs: int | None, warnings: Sequence[str] = ()) -> None:
        self._once = {"warnings": list(warnings)} if warnings else {}
        self._vocabulary = vocabulary
        self._with_logprobs = logprobs is not None
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.whole,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"soma_native-{__version__}",
        }

    def answer(self, texts: Sequence[Part], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(index, part, whole=True) for index, part in enumerate(texts)]
        return {**self._head, "choices": choices, "usage": usage.json(), **self._once}

    def begin(self, index: int) -> list[bytes]:
        """The events before the first part of a text."""
        return []

    def event(self, index: int, part: Part, *, usage: bool) -> bytes:
        """The event of a part. `usage` says whether the stream will end with the numbers of tokens."""
        return self._event([self._choice(index, part, whole=False)], {"usage": None} if usage else {})

    def usage(self, usage: Usage) -> bytes:
        """The event with the numbers of tokens."""
        return self._event([], {"usage": usage.json()})

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        once, self._once = self._once, {}
        return event({**self._head, "object": self.events, "choices": choices, **more, **once})

    def _choice(self, index: int, part: Part, *, whole: bool) -> dict[str, Any]:
        logprobs = self._logprobs(part.tokens) if self._with_logprobs else None
        return {
            "index": index,
            **self._content(part.text, whole),
            "logprobs": logprobs,
            "finish_reason": part.finish_reason,
        }

    def _content(self, text: str, whole: bool) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        name = self._vocabulary.text
        return {
            "tokens": [name(token.id) for token in tokens],
            "token_logprobs": [_number(token.logprob) for token in tokens],
            "top_logprobs": [
                None
                if token.logprob is None
                else {name(other): _number(value) for other, value in (*token.top, (token.id, token.logprob))}
                for token in tokens
            ],
            "text_offset": [token.place for token in tokens],
        }


class ChatForm(Form):
    """The form of /v1/chat/completions."""

    whole, events, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def begin(self, index: int) -> list[bytes]:
        """The event that says who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}], {})]

    def _content(self, text: str, whole: bool) -> dict[str, Any]:
        if whole:
            return {"message": {"role": "assistant", "content": text, "refusal": None}}
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        said = [
            {
                **self._token(token.id, token.logprob),
                "top_logprobs": [self._token(other, value) for other, value in token.top],
            }
            for token in tokens
        ]
        return {"content": said, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = list(self._vocabulary.raw(token))
        return {"token": self._vocabulary.text(token), "logprob": _number(logprob), "bytes": raw}


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: %s\n\n" % json.dumps(document, separators=(",", ":")).encode()


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(float(logprob), _LEAST)
