"""Tokens as the API shows them: each as a text of its own, and its place in the text that the tokens make."""

from __future__ import annotations

import codecs
import functools

from soma_native.tokenizer.tokenizer import Tokenizer


class Vocabulary:
    r"""The texts of a tokenizer's tokens.

    A token whose bytes are no whole characters is "bytes:" and its bytes as in "bytes:\xe2\x82", as OpenAI has it.
    """

    def __init__(self, tok: Tokenizer) -> None:
        self._tok = tok
        self._special = {tok.token_to_id(token): token for token in tok.special_tokens}
        self.raw = functools.lru_cache(maxsize=1 << 17)(self._raw)
        self.text = functools.lru_cache(maxsize=1 << 17)(self._text)

    def _raw(self, token: int) -> bytes:
        """The bytes that the token adds to a text, which is nothing for a special token of words and characters."""
        return self._tok.decode_bytes([token])

    def _text(self, token: int) -> str:
        if token in self._special:
            return self._special[token]
        if token >= self._tok.vocab_size:
            return f"<{token}>"  # of a model that has more ids than its tokenizer
        try:
            return self.raw(token).decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.raw(token))


class Places:
    """Where each token of a continuation begins in its text, in code points. Feed it the tokens in order.

    Args:
        vocabulary: of the tokens.
        space: for words, whether a space comes before the first one; None for tokens that hold their own spaces.
        begin: the place of the first token.
        healed: bytes of the first token that are the end of the prompt.
    """

    def __init__(self, vocabulary: Vocabulary, space: bool | None, begin: int = 0, healed: int = 0) -> None:
        self._raw = vocabulary.raw
        self._space = space and not healed
        self._healed = healed
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._next = begin

    def next(self, token: int) -> int:
        """The place of this token: that of the first character which it begins or completes."""
        place = self._next
        self._next += len(self._utf8.decode(self._raw(token)[self._healed :])) + bool(self._space)
        self._healed = 0
        if self._space is not None:
            self._space = True
        return place
