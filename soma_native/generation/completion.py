"""A text that was generated, with all that a program asks of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: the continuation, without the prompt and without the stop string.
        tokens: the ids of its tokens, without the one that ended it. A stop string may be in the last ones.
        finish_reason: "stop" for an end token or a stop string, "length" for `max_tokens`, "cancelled" for a call of
            `Handle.cancel`.
        logprobs: the natural logarithm of the probability of each token. It is the model's own: of the softmax of the
            logits, before temperature and all other rules. An engine gives them where `submit` asks for them.
        top: for each token the likeliest ids in its place and their logarithms, best first; as many as `logprobs` of
            the call says.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: list[float] = dataclasses.field(default_factory=list)
    top: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
