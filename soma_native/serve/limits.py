"""What a request may ask of the server: sizes, numbers and times. What is beyond a limit gets a status of its own."""

from __future__ import annotations

import dataclasses

from soma_native._checks import integer, number


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body_bytes: the largest body of a request (413).
        body_seconds: the longest time that a client may take to send a request (408).
        max_tokens: most tokens that one text of an answer may have (400).
        max_texts: most texts of one request: prompts times `n` (400).
        max_inputs: most inputs of a request for embeddings (400); OpenAI's own limit.
        max_numbers: most log-probabilities of an answer that is no stream (400).
        max_queue: most texts of each model that wait, and most calls for tokens, embeddings and scores; more are
            refused (429).
        answer_seconds: the longest time from request to the end of its answer (504).
        idle_seconds: how long a client may not read its answer, or keep an unused connection, before it is closed.
        grace_seconds: how long running requests may take after Ctrl-C.
        connections: most open connections; more are refused (503).
    """

    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    max_tokens: int = 4096
    max_texts: int = 128
    max_inputs: int = 2048
    max_numbers: int = 1 << 18
    max_queue: int = 128
    answer_seconds: float = 600.0
    idle_seconds: float = 30.0
    grace_seconds: float = 60.0
    connections: int = 512

    def __post_init__(self) -> None:
        """Check each limit by its default's type."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, int):
                integer(field.name, value, 1)
            else:
                number(field.name, value, above=0)
