"""Turns the tokens of one row into text, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextWriter:
    """Turns one row's tokens into text with whole characters only, which never shows a part of a stop string.

    Args:
        space: for words, whether a space comes before the first one; None for tokens that are joined as bytes.
        stops: the stop strings. With some of them, tokens are to be written one by one: `stopped` tells which was the
            last.
    """

    def __init__(self, space: bool | None, stops: tuple[str, ...]) -> None:
        self._words = space is not None
        self._space = bool(space)
        self.stops = stops
        self._held = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.stopped = False

    def write(self, tokens: Sequence[bytes]) -> str:
        """Add tokens. Returns the text that is certain now, often ""."""
        joined = (b" " if self._words else b"").join(tokens)
        if self._words and tokens:
            joined = b" " + joined if self._space else joined
            self._space = True
        return self._emit(self._utf8.decode(joined))

    def finish(self) -> str:
        """The text that was held back, with a replacement character for an unfinished character."""
        if self.stopped:
            return ""
        certain = self._emit(self._utf8.decode(b"", final=True))
        return certain if self.stopped else certain + self._held

    def _emit(self, text: str) -> str:
        if not self.stops:
            return text
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
