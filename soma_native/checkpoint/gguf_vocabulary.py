"""A tokenizer as llama.cpp reads it from a GGUF: byte-level BPE by texts of tokens, their types, and merges.

llama.cpp knows the patterns that split text by name alone. A name is used only where the tests prove that llama.cpp
gives our ids. Characters and bytes become a BPE too, which merges the bytes of each character.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from soma_native.errors import ArgumentError
from soma_native.tokenizer.added_tokens import RuledCore, TextRules
from soma_native.tokenizer.formats.tiktoken_gpt2 import TEXT_OF
from soma_native.tokenizer.formats.tokenizer_json import UNKNOWN, document_of
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")

# The name of a pattern in llama.cpp, by whether a chunk that is a token is taken without merging.
PROVEN: dict[str, dict[bool, str]] = {
    "gpt2": {False: "gpt-2"},
    "llama3": {False: "smaug-bpe", True: "llama-bpe"},
    "qwen2": {False: "qwen2"},
    "qwen3.5": {False: "qwen35"},
}
_NO_MERGE = "<> <>"  # a list of merges must not be empty; no text has this pair of symbols

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


class GgufVocabulary(NamedTuple):
    """The vocabulary of a GGUF.

    Attributes:
        pre: llama.cpp's name of the pattern that splits text.
        tokens: the text of each id; ordinary tokens in GPT-2's byte-level alphabet. All are different.
        types: the type of each id: ordinary, special, always found, or without a token.
        merges: pairs of texts, lowest rank first.
        never: ids that are never to be generated.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    never: list[int]

    def quiet_token(self) -> int | None:
        """An id that ends no text by chance, for a vocabulary without an end token.

        The byte 0xff stands in no text. Else an id without a token, else a special token; None if there is none.
        """
        if TEXT_OF[0xFF] in self.tokens:
            return self.tokens.index(TEXT_OF[0xFF])
        return next((i for kind in (UNUSED, CONTROL) for i, found in enumerate(self.types) if found == kind), None)


def gguf_vocabulary(tok: Tokenizer, size: int) -> GgufVocabulary:
    """The vocabulary of a tokenizer, filled up to the `size` ids of its model.

    Raises:
        ArgumentError: llama.cpp cannot give the ids of this tokenizer. The message names what it lacks.
    """
    document = document_of(tok._core, {})
    model = document["model"]
    if tok.kind == "bpe":
        rules = tok._core.rules if isinstance(tok._core, RuledCore) else TextRules()
        _check_rules(rules)
        texts, merges = model["vocab"], model["merges"]
        pre = _pre(tok._core, model)
    elif tok.kind in ("char", "byte"):
        special = set(tok.special_tokens)
        texts, merges = model["vocab"], []
        pre = PROVEN["gpt2"][False]
        if tok.kind == "char":
            merges = _merges_of_characters(text for text in texts if text not in special)
            texts = {text if text in special else _alphabetic(text.encode()): i for text, i in texts.items()}
            _log.warning("llama.cpp leaves out characters that are not in the vocabulary%s", _unknown(tok))
    else:
        raise _refused(
            f"is of kind {tok.kind!r}, which lower-cases text and drops what is no word; llama.cpp cannot. Train with "
            "kind 'bpe', 'char' or 'byte' to export"
        )
    return _filled(tok, document["added_tokens"], texts, merges or [_NO_MERGE], pre, size)


def _refused(problem: str) -> ArgumentError:
    return ArgumentError("tok", problem)


def _unknown(tok: Tokenizer) -> str:
    return f", which are {UNKNOWN} here" if UNKNOWN in tok.special_tokens else ""


def _check_rules(rules: TextRules) -> None:
    """Refuse what a file does to a text before it is split, where llama.cpp does not."""
    if rules.prefix_space:
        raise _refused("puts a space in front of every text (add_prefix_space); llama.cpp cannot")
    for token in rules.added:
        if token.lstrip or token.rstrip:
            raise _refused(f"has the token {token.content!r} with lstrip or rstrip; llama.cpp cannot")
    if rules.nfc:
        _log.warning("llama.cpp does not normalize text to NFC: a text in another form gets other ids there")


def _pre(core: Any, document: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pattern of a byte-level BPE with this `model` in its document."""
    pattern, tokens, merges, *_ = core.bpe_vocabulary()
    names = PROVEN.get(pattern)
    if names is None:
        known = ", ".join(map(repr, PROVEN))
        raise _refused(
            f"splits text by the pattern {pattern!r}, for which llama.cpp has no name that is proven to give the same "
            f"ids. Train with the pattern {known} to export"
        )
    # Where ranks give every token a merge of its own, merging gives the ids of chunks that are tokens too.
    same = merges is None and len(document["merges"]) == sum(len(token or b"") > 1 for token in tokens)
    name = names.get(document["ignore_merges"]) or (names[False] if same else None)
    if name is None:
        raise _refused(
            f"takes a chunk that is a token without merging (ignore_merges); llama.cpp does not with {pattern!r}"
        )
    return name


def _alphabetic(raw: bytes) -> str:
    return "".join(TEXT_OF[byte] for byte in raw)


def _merges_of_characters(characters: Iterable[str]) -> list[str]:
    """The merges that join the bytes of each character, from its first byte on."""
    written = (_alphabetic(character.encode()) for character in characters)
    return list(dict.fromkeys(f"{text[:end]} {text[end]}" for text in written for end in range(1, len(text))))


def _filled(
    tok: Tokenizer,
    added: Iterable[Mapping[str, Any]],
    texts: Mapping[str, int],
    merges: list[str],
    pre: str,
    size: int,
) -> GgufVocabulary:
    """The vocabulary by ids, with made-up texts for ids without a token."""
    tokens: list[str | None] = [None] * size
    types = [UNUSED] * size
    for text, i in texts.items():
        tokens[i], types[i] = text, NORMAL
    for token in added:
        i, content = token["id"], token["content"]
        if tokens[i] not in (None, content):
            raise _refused(f"has the added token {content!r}, which merges make too; llama.cpp cannot have both")
        tokens[i], types[i] = content, USER_DEFINED
    for i in tok._special.values():
        types[i] = CONTROL
    named = [f"[PAD{i}]" if text is None else text for i, text in enumerate(tokens)]
    if len(set(named)) < size:
        seen: set[str] = set()
        twice = next(text for text in named if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise _refused(f"has the token {twice!r} twice, as llama.cpp writes tokens")
    never = [i for i, kind in enumerate(types) if kind == UNUSED or i == tok._special.get(UNKNOWN)]
    return GgufVocabulary(pre, named, types, merges, never)
