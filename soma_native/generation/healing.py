"""Token healing: a prompt that ends inside a token is read as its author means. Its last tokens give way to one longer
token, which begins with their text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soma_native.generation.prefix import shared_length
from soma_native.tokenizer.tokenizer import Tokenizer

_MOST_TOKENS = 16  # of a prompt's end that may give way
_WHOLE = 30.0  # how much more readily an author ends at the end of a word or a mark than inside a token


class Reading(NamedTuple):
    """How the model reads a prompt: the tokens `ids`, then one that begins with the bytes `rest` and is longer.

    With an empty `rest` the next token is any.
    """

    ids: list[int]
    rest: bytes = b""


Healing = Generator[list[int], NDArray[np.float32], Reading]


def half_word(tok: Tokenizer, prompt: str) -> tuple[str, bytes]:
    """For words: the prompt before its last word, and that word, if the vocabulary has only longer ones."""
    found = re.search(r"\w+\Z", prompt) if tok.kind == "word" else None
    word = "".join(character.lower() for character in found[0]) if found else ""
    if found and tok.token_to_id(word) is None and len(tok._token_table().extending(_bytes(word))):
        return prompt[: found.start()], _bytes(word)
    return prompt, b""


def read_prompt(tok: Tokenizer, prompt: str, ids: list[int], start: int, window: int) -> Healing:
    """Find the likeliest reading of a prompt's end, for byte-level BPE.

    A coroutine: it yields tokens, and wants the logits (vocab_size,) after them. It returns the reading.

    The readings are the tokens as they are, and fewer of them with one longer token that begins with the rest. Each has
    the probability that the model gives it. The tokens as they are count `_WHOLE` times where the prompt ends in a
    whole word, as far as the model goes on outside a word, and where it ends in a mark or a line break.

    Args:
        tok: the tokenizer.
        prompt: the text.
        ids: its tokens, of which the last `window` are read.
        start: the token before a text without a prompt, for a prompt of which no token stays.
        window: most tokens of a context.
    """
    cut = max(0, len(ids) - window)
    ids = ids[cut:]
    others = _other_readings(tok, prompt, ids, cut)
    stay = min((shared_length(ids, other.ids) for other in others), default=0)  # the tokens of all readings
    if not others or (stay == 0 and len(ids) == window):
        return Reading(ids)
    table = tok._token_table()
    before = ids[:stay] or [start]
    in_word = _in_word(prompt[-1])
    whole = 1.0 if prompt[-1].isspace() and prompt[-1] != "\n" else _WHOLE
    best, likeliest = -math.inf, Reading(ids)
    first = shares = _log_shares((yield before))
    as_given = 0.0  # logarithm of the probability of ids[stay:at], and at last of the tokens as they are
    for at in range(stay, len(ids) + 1):
        for other in others:
            if other.ids == ids[:at]:
                likely = as_given + _log_sum(shares[table.extending(other.rest)])
                if likely > best:
                    best, likeliest = likely, Reading([*before, *ids[stay:at]], other.rest)
        if at < len(ids):
            as_given += float(shares[ids[at]])
            if as_given + math.log(whole) < best:
                break
            if at + 1 < len(ids) or in_word:
                shares = _log_shares((yield [*before, *ids[stay : at + 1]]))
    else:
        goes_on = math.exp(_log_sum(shares[table.inside_words()])) if in_word else 0.0
        as_given += math.log(whole * (1 - goes_on) + goes_on)
    for other in others:  # those that split the end in another way
        if other.ids == ids[: len(other.ids)]:
            continue
        likely, shares = 0.0, first
        for at in range(stay, len(other.ids)):
            likely += float(shares[other.ids[at]])
            if likely <= max(best, as_given):
                break
            shares = _log_shares((yield [*before, *other.ids[stay : at + 1]]))
        else:
            likely += _log_sum(shares[table.extending(other.rest)])
            if likely > best:
                best, likeliest = likely, Reading([*before, *other.ids[stay:]], other.rest)
    return likeliest if best > as_given else Reading(ids)


def _other_readings(tok: Tokenizer, prompt: str, ids: list[int], cut: int) -> list[Reading]:
    """The readings in which a longer token takes the place of the last of `ids`, which `cut` tokens stand before."""
    table, special = tok._token_table(), set(tok._core.special_ids)
    found, rest = [], b""
    for token in reversed(ids[-_MOST_TOKENS:]):
        if token in special:
            break
        rest = tok.decode_bytes([token]) + rest
        found.append(rest)
    readings = [Reading(ids[: len(ids) - n], rest) for n, rest in enumerate(found, 1) if len(table.extending(rest))]
    if prompt[-1:].isspace() and found:
        # White space is cut elsewhere where a word follows: its last character begins the token of the word.
        with_word = tok.encode(prompt + "a")[cut:]
        stay = shared_length(ids, with_word[: len(ids)])
        if 0 < len(ids) - stay <= len(found):
            rest, kept = found[len(ids) - stay - 1], ids[:stay]
            for token in with_word[stay:]:
                text = tok.decode_bytes([token])
                if len(text) >= len(rest):
                    break
                kept, rest = [*kept, token], rest[len(text) :]
            if len(table.extending(rest)) and Reading(kept, rest) not in readings:
                readings.append(Reading(kept, rest))
    return readings


def _in_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _log_shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of the model's probabilities, float64 (vocab_size,)."""
    with np.errstate(invalid="ignore"):  # broken weights: the sampler says so
        shares: NDArray[np.float64] = logits.astype(np.float64) - logits.max()
        shares -= np.log(np.exp(shares).sum())
        return shares


def _log_sum(shares: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(shares)) if len(shares) else -math.inf
