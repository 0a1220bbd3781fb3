"""A text that was generated, with all that a program asks of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: the continuation, without the prompt.
        tokens: the ids of its tokens, without the one that ended it.
        finish_reason: "stop" for an end token or a stop string, "length" for `max_tokens`, "cancelled" for a call of
            `Handle.cancel`.
    """

    text: str
    tokens: list[int]
    finish_reason: str
