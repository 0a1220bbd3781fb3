"""What `Generator.complete` and `Handle.result` return: a continuation with its tokens and their probabilities."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Completion:
    """A continuation of a prompt.

    Attributes:
        text: the continuation alone, without the stop string.
        tokens: its ids, without the token that ended it. Where the end of the prompt was healed, the first of them
            begins with that end. A stop string may be in the last ones.
        logprobs: the natural logarithm of the probability of each token. It is the model's own: of the softmax of the
            logits, before temperature and all other rules.
        top: for each token the most likely ids in its place and their logarithms, best first; as many as `logprobs` of
            the call.
        finish_reason: "stop" at an end token or a stop string, "length" after `max_tokens`, "cancelled" after
            `Handle.cancel`.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    finish_reason: Literal["stop", "length", "cancelled"]
