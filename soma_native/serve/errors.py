"""Answers of JSON, and the error that a client of the server reads: a status, and one line in OpenAI's form."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from soma_native.errors import ArgumentError, ArgumentTypeError, EngineClosedError, EngineFullError


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of JSON, in ASCII: escapes also hold what is no text, such as half a surrogate pair."""
    content = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, media_type="application/json")


FAILED = "the server failed: its log says why"
CUT = "the server ended before the answer was complete: ask again when it is back"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than success.

    Args:
        status: the HTTP status.
        message: one line that names what was wrong and how to mend it.
        param: the field of the request concerned, or None.
        code: a word for programs, such as "model_not_found", or None.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}

    def response(self) -> Response:
        """The answer."""
        return json_response(self.body(), self.status, self.headers)

    def body(self) -> dict[str, Any]:
        """The JSON of the answer, in OpenAI's form."""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """In this block an error of the library is an answer: the request is wrong, or the engine takes no more texts."""
    try:
        yield
    except (ArgumentError, ArgumentTypeError) as error:
        raise ApiError(400, str(error), param=error.argument) from None
    except EngineFullError as error:
        raise ApiError(429, f"{error}: ask again later", code="queue_full", headers={"Retry-After": "1"}) from None
    except EngineClosedError:
        raise ApiError(503, "the server ends and takes no more requests") from None
    except (ValueError, TypeError) as error:
        raise ApiError(400, str(error)) from None
