"""One text that grows token by token: what the model reads next, what was written, and how the text ended."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from soma_native.generation.healing import Healing, Reading
from soma_native.generation.text_writer import TextWriter

STEPS = 16  # most tokens that are drawn in a call of the core, whose caller may wait
Score = tuple[float, list[tuple[int, float]]]  # the log-probability of a token, and those of the likeliest in its place


class Sequence:
    """A prompt and its continuation so far. Tokens that are drawn go to `take`, until there is a `finish_reason`.

    The model has to read `context`. Then `read` says whether the first token may be drawn.

    Args:
        ids: the tokens of the prompt.
        writer: turns the continuation into text.
        piece: the bytes of a token.
        window: most tokens of a context, `max_seq_len`.
        most: most tokens to add.
        ends: the tokens that end the text.
        healing: finds how the prompt's end is read (healing.py); None where it is read as it stands.
        rest: bytes of the prompt after `ids`, which the first token must begin with.
    """

    def __init__(
        self,
        ids: list[int],
        writer: TextWriter,
        piece: Callable[[int], bytes],
        *,
        window: int,
        most: int,
        ends: Collection[int],
        healing: Healing | None = None,
        rest: bytes = b"",
    ) -> None:
        self.prompt_ids = ids
        self.context = ids[-window:]  # the tokens that the model has to read before the next one is drawn
        self.tokens: list[int] = []  # of the continuation
        self.scores: list[Score] = []  # of each of them, if they are wanted
        self.finish_reason: Literal["stop", "length"] | None = None if most else "length"
        self._writer = writer
        self._piece = piece
        self._window = window
        self._most = most
        self._ends = ends
        self._healing = healing
        self.rest = rest
        self.healed = 0  # bytes of the first token that are the prompt's end
        if healing is not None:
            self._go_on(lambda: next(healing))

    def read(self, logits: NDArray[np.float32]) -> bool:
        """Whether the prompt is read, from the logits (vocab_size,) after `context`. Else `context` is another one."""
        healing, read = self._healing, list(self.context)
        if healing is not None:
            self._go_on(lambda: healing.send(logits))
        return self._healing is None and self.context == read

    def _go_on(self, step: Callable[[], list[int]]) -> None:
        try:
            self.context = step()
        except StopIteration as end:
            reading: Reading = end.value
            before = len(self.prompt_ids) - min(len(self.prompt_ids), self._window)  # what the model does not see
            self.prompt_ids = self.prompt_ids[:before] + reading.ids
            self.context, self.rest, self._healing = list(reading.ids), reading.rest, None

    def again(self, writer: TextWriter) -> Sequence:
        """Another continuation of the same prompt, which must have none yet."""
        copied = copy.copy(self)
        copied.context, copied.tokens, copied.scores, copied._writer = list(self.context), [], [], writer
        return copied

    @property
    def left(self) -> int:
        """The tokens that may still come."""
        return self._most - len(self.tokens)

    def take(self, tokens: list[int], scores: list[Score]) -> str:
        """Add tokens that were drawn; those after the end of the text are dropped. A token of `ends` may be the last.

        Tokens that fill the context make `context` shorter: its last `window // 2` tokens, to be read again. More than
        one such token must not come at once.

        Returns:
            The text that is certain now, often "", and the rest of it at the end.
        """
        ended = tokens[-1:] != [] and tokens[-1] in self._ends
        tokens = tokens[:-1] if ended else tokens
        pieces = [self._piece(token) for token in tokens]
        if tokens and self.rest:
            pieces[0] = pieces[0][len(self.rest) :]
            self.healed, self.rest = len(self.rest), b""
        writer = self._writer
        if writer.stops:
            text = ""
            for count in range(len(pieces)):
                text += writer.write(pieces[count : count + 1])
                if writer.stopped:
                    tokens, ended = tokens[: count + 1], True
                    break
        else:
            text = writer.write(pieces)
        self.tokens += tokens
        self.scores += scores[: len(tokens)]
        if ended or not self.left:
            text += writer.finish()
            self.finish_reason = "stop" if ended or writer.stopped else "length"
        self.context += tokens
        if len(self.context) > self._window:
            del self.context[: -max(1, self._window // 2)]
        return text
