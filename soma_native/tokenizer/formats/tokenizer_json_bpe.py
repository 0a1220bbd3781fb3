"""`tokenizer.json` for byte-level BPE: the files of GPT-2, Llama-3, Qwen, GPT-4o, SmolLM and relatives, and our own.

A file encodes as in Hugging Face `tokenizers`, or is refused with the name of the unsupported setting. `tokenizers`
finds special tokens in any text; here they are plain text unless `allowed_special` names them. Its default is our
``allowed_special="all"``; our default is its ``encode_special_tokens=True``. Both always find other added tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from soma_native.files.untrusted import Problem, same, short
from soma_native.tokenizer.added_tokens import AddedToken, TextRules
from soma_native.tokenizer.bpe_vocabulary import PATTERNS, BpeVocabulary
from soma_native.tokenizer.formats.split_patterns import numbers_apart, pattern_of, regex_of, with_numbers_apart
from soma_native.tokenizer.formats.tiktoken_gpt2 import (
    BYTES_OF,
    TEXT_OF,
    check_id,
    check_vocab,
    encode_token,
    merge_ids,
    tokens_by_id,
    unmerged,
)

# The settings before the vocabulary in the file of a byte-level model. Ours always has these values.
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
}

_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_LISTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
# These add special tokens and trim offsets. They change no id of the text, so they are kept but not applied.
_POST_PROCESSORS = {"ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"}
_MODEL = {  # false is not 0 here, as in `tokenizers`
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False, None),
    "ignore_merges": (False, True, None),
}
# Settings for a byte that is no token. They are kept but not applied: a text with such a byte is refused.
_UNKNOWN = ("unk_token", "fuse_unk")
_FLAGS = ("lstrip", "rstrip", "normalized", "special")


def parse_bpe(document: Mapping[str, Any]) -> tuple[BpeVocabulary, TextRules]:
    """The vocabulary of a file, and its rules for texts.

    Args:
        document: its JSON object, which has a `model` that is an object and no keys that are unknown.

    Raises:
        Problem: the file is wrong, or has a setting that is not supported.
    """
    model = document["model"]
    for name in sorted(set(model) - {"vocab", "merges", *_UNKNOWN}):
        if not any(same(model[name], allowed) for allowed in _MODEL.get(name, ())):
            raise Problem(f"has a model with {short(name)[1:-1]} = {short(model[name])}, which is not supported")
    pattern, prefix_space = _pre_tokenizer(document.get("pre_tokenizer"))
    nfc = _normalizer(document.get("normalizer"))
    _all_of("post_processor", document.get("post_processor"), _POST_PROCESSORS)
    if not _all_of("decoder", document.get("decoder"), {"ByteLevel"}):
        raise Problem("has no decoder of type 'ByteLevel'")
    vocab = check_vocab(model.get("vocab"))
    merges = _merges(model.get("merges"), vocab)
    added = _added_tokens(document.get("added_tokens"), vocab)
    unreachable = unmerged(vocab, merges)
    ordinary: dict[bytes, int] = {}
    added_ids = {token.id for token in added}
    apart = {token.content: token.id for token in added if token.content not in vocab}
    for text, i in vocab.items():
        if text in unreachable and (i in added_ids or not BYTES_OF.keys() >= set(text)):
            apart[text] = i
        else:
            ordinary[encode_token(text)] = i
    unknown = {name: model[name] for name in _UNKNOWN if name in model}
    if not isinstance(unknown.get("unk_token"), str | None) or not isinstance(unknown.get("fuse_unk"), bool | None):
        raise Problem(f"has a model with {short(unknown)}, where a token or null, and true or false are expected")
    ignore_merges = bool(model.get("ignore_merges"))
    vocabulary = BpeVocabulary(pattern, tokens_by_id(ordinary, apart), merges, apart, ignore_merges)
    return vocabulary, TextRules(added, nfc, prefix_space, {key: document.get(key) for key in _SECTIONS}, unknown)


def _steps(key: str, section: object) -> list[dict[str, Any]]:
    """A section of the file as the list of its steps."""
    if section is None:
        return []
    is_sequence = isinstance(section, dict) and section.get("type") == "Sequence"
    steps = section.get(_LISTS[key]) if is_sequence else [section]  # type: ignore[attr-defined]
    if not isinstance(steps, list) or not all(isinstance(s, dict) and isinstance(s.get("type"), str) for s in steps):
        raise Problem(f"has the {key} {short(section)}, which is not an object with a type, nor a sequence of them")
    return steps


def _all_of(key: str, section: object, types: set[str]) -> int:
    """The number of steps of the section. All must be of these types."""
    steps = _steps(key, section)
    for step in steps:
        if step["type"] not in types:
            raise Problem(f"has a {key} of type {short(step['type'])}; only {_names(types)} can be read")
    return len(steps)


def _normalizer(section: object) -> bool:
    """Whether text is normalized to NFC, the only supported normalization."""
    return _all_of("normalizer", section, {"NFC"}) > 0


def _pre_tokenizer(section: object) -> tuple[str, bool]:
    """The pattern, and whether text gets a space in front."""
    steps = list(_steps("pre_tokenizer", section))
    _all_of("pre_tokenizer", section, {"Digits", "Split", "ByteLevel"})
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or "ByteLevel" in kinds[:-1]:
        raise Problem(f"has the pre_tokenizer {short(section)}; only a ByteLevel that comes last can be read")
    byte_level = steps.pop()
    prefix_space, use_regex = byte_level.get("add_prefix_space"), byte_level.get("use_regex", True)
    strange = set(byte_level) - {"type", "add_prefix_space", "trim_offsets", "use_regex"}
    if strange or not isinstance(prefix_space, bool) or not isinstance(use_regex, bool):
        raise Problem(f"has the pre_tokenizer {short(byte_level)}, which is not as ByteLevel is")
    if steps and prefix_space:
        raise Problem("has the pre_tokenizer ByteLevel with add_prefix_space after others, which is not supported")
    if use_regex:
        pattern = "gpt2"
    elif not steps or steps[-1]["type"] != "Split":
        raise Problem(f"has the pre_tokenizer {short(byte_level)}, which does not split the text")
    else:
        expression = _expression(steps.pop())
        found = pattern_of(expression)
        if found is None:
            raise Problem(
                f"splits text by the pattern {expression[:1000]!a}, which is not supported; only the patterns of "
                f"{_names(PATTERNS)}, and patterns of the same alternatives, can be read"
            )
        pattern = found
    for step in reversed(steps):
        apart = with_numbers_apart(pattern, *_digits(step)) if len(steps) == 1 else None
        if apart is None:
            raise Problem(
                f"has the pre_tokenizer {short(step)} before others, which is not supported; only numbers can be cut "
                "out first, once, and as the next pattern cuts them"
            )
        pattern = apart
    return pattern, prefix_space


def _expression(split: dict[str, Any]) -> str:
    """The regular expression of a Split that keeps what it finds."""
    pattern, how = split.get("pattern"), (split.get("behavior"), split.get("invert"))
    if set(split) != {"type", "pattern", "behavior", "invert"} or how not in (("Isolated", False), ("Removed", True)):
        raise Problem(
            f"has the pre_tokenizer {short(split)}; only a Split that keeps what its pattern finds can be read"
        )
    regex = pattern.get("Regex") if isinstance(pattern, dict) and len(pattern) == 1 else None
    if not isinstance(regex, str):
        raise Problem(f"splits text by the pattern {short(pattern)}, which is no regular expression")
    return regex


def _digits(step: dict[str, Any]) -> tuple[str, int]:
    """What a step is that cuts numbers out, and how many digits it leaves together; 0: all."""
    if step["type"] == "Digits":
        individual = step.get("individual_digits", False)
        if set(step) - {"type", "individual_digits"} or not isinstance(individual, bool):
            raise Problem(f"has the pre_tokenizer {short(step)}, which is not as Digits is")
        return "digits-apart", int(individual)
    expression = _expression(step)
    if step["behavior"] == "Isolated" and (match := re.fullmatch(r"\\p\{N\}(?:\{1,([1-9])\}|(\+?))", expression)):
        return "digits-split", int(match[1]) if match[1] else 1 - len(match[2])
    raise Problem(
        f"splits text by the pattern {expression[:1000]!a} before another, which is not supported; only "
        "\\p{N}, \\p{N}{1,3} and their like can come first"
    )


def _merges(merges: object, vocab: Mapping[str, int]) -> list[tuple[int, int]]:
    if not isinstance(merges, list):
        raise Problem("has a model without a list of merges")
    found = [merge_ids(merge.split(" ") if isinstance(merge, str) else merge, vocab) for merge in merges]
    if len(set(found)) < len(found):
        seen: set[tuple[int, int]] = set()
        twice = next(i for i, merge in enumerate(found) if merge in seen or seen.add(merge))  # type: ignore[func-returns-value]
        raise Problem(f"has the merge {short(merges[twice])} twice")
    return found


def _added_tokens(section: object, vocab: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens, with the ids that `tokenizers` gives them."""
    if section is None:
        return ()
    if not isinstance(section, list):
        raise Problem("has added_tokens that are not a list")
    id_of = {}
    ids = set(vocab.values())
    added: list[AddedToken] = []
    last = -1
    for entry in section:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise Problem(f"has the added token {short(entry)}, which has no content")
        content, i = entry["content"], entry.get("id")
        check_id(content, i)
        flags = {name: entry.get(name, False) for name in (*_FLAGS, "single_word")}
        if not all(isinstance(flag, bool) for flag in flags.values()) or set(entry) - set(flags) - {"content", "id"}:
            raise Problem(f"has the added token {short(entry)}, which is not as added tokens are")
        if flags.pop("single_word"):
            raise Problem(f"has the added token {short(content)} with single_word, which is not supported")
        if (flags["lstrip"] or flags["rstrip"]) and content.isspace():
            raise Problem(f"has the added token {short(content)} with lstrip or rstrip, but it is white space itself")
        if content in id_of:
            raise Problem(f"has the added token {short(content)} twice")
        expected = vocab.get(content, last + 1 if last >= len(vocab) else len(vocab))
        if i != expected:
            where = "the vocabulary" if content in vocab else "its place after the vocabulary"
            raise Problem(f"gives the added token {short(content)} the id {i}, but {where} gives it {expected}")
        if content not in vocab:
            if i in ids:
                raise Problem(f"gives the added token {short(content)} the id {i}, which another token has")
            ids.add(i)
        last = max(last, i)
        id_of[content] = i
        added.append(AddedToken(content, i, **flags))
    return tuple(added)


def _names(names: Any) -> str:
    return ", ".join(map(repr, sorted(names)))


def bpe_document(vocabulary: BpeVocabulary, rules: TextRules | None) -> dict[str, Any]:
    """The JSON document of a tokenizer of kind "bpe". `rules` are those of its file; None if it is from no file."""
    text_of = {
        i: token.decode("latin-1").translate(_ALPHABET)
        for i, token in enumerate(vocabulary.tokens)
        if token is not None
    }
    special = [AddedToken(text, i) for text, i in vocabulary.special_tokens.items()]
    added = sorted(special if rules is None else rules.added, key=lambda token: token.id)
    after = {token.id: token.content for token in added if token.id not in text_of}
    vocab = dict(text_of)
    vocab.update((i, text) for text, i in vocabulary.special_tokens.items() if i not in after)
    first = end = len(vocab) + len(after)
    while first - 1 in after:
        first -= 1  # `tokenizers` numbers added tokens after the vocabulary; only these get their ids so
    vocab.update((i, text) for i, text in after.items() if not first <= i < end)
    merges = _merges_of_ranks(vocabulary.tokens) if vocabulary.merges is None else vocabulary.merges
    sections = (rules and rules.sections) or _sections(vocabulary.pattern)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": t.id, "content": t.content, "single_word": False, **{name: getattr(t, name) for name in _FLAGS}}
            for t in added
        ],
        **sections,
        "model": {
            **PLAIN_BPE,
            **((rules and rules.unknown) or {}),
            "ignore_merges": vocabulary.ignore_merges or vocabulary.merges is None,
            "vocab": {vocab[i]: i for i in sorted(vocab)},
            "merges": [f"{text_of[int(left)]} {text_of[int(right)]}" for left, right in merges],
        },
    }


_ALPHABET = dict(enumerate(TEXT_OF))


def _sections(pattern: str) -> dict[str, Any]:
    """The sections in the file of a tokenizer that was made here."""
    between, step, digits = numbers_apart(pattern)
    own_regex = between == "gpt2"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": own_regex}
    steps = [byte_level] if own_regex else [_split(regex_of(between)), byte_level]
    if step == "digits-apart":
        steps.insert(0, {"type": "Digits", "individual_digits": digits == 1})
    elif step == "digits-split":
        steps.insert(0, _split(rf"\p{{N}}{{1,{digits}}}" if digits else r"\p{N}+"))
    return {
        "normalizer": None,
        "pre_tokenizer": byte_level if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
    }


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _merges_of_ranks(tokens: Any) -> list[tuple[int, int]]:
    """The merges that have the effect of the ranks: for each token the one pair that it can come from.

    Merging the bytes of a token alone, by lower ranks only, ends in its parts. In a text the same merges come first,
    so two parts are the token's merge. A token with more than two parts is found only as a whole chunk.
    """
    rank_of = {token: i for i, token in enumerate(tokens) if token is not None}
    merges = []
    for token, rank in rank_of.items():
        cuts = list(range(len(token) + 1))  # between the parts
        ranks = [rank_of.get(token[i : i + 2], rank) for i in range(len(token) - 1)]  # of each part with the next
        while len(ranks) > 1 and (lowest := min(ranks)) < rank:
            at = ranks.index(lowest)
            del ranks[at], cuts[at + 1]
            if at > 0:
                ranks[at - 1] = rank_of.get(token[cuts[at - 1] : cuts[at + 1]], rank)
            if at < len(ranks):
                ranks[at] = rank_of.get(token[cuts[at] : cuts[at + 2]], rank)
        if len(ranks) == 1:
            merges.append((rank_of[token[: cuts[1]]], rank_of[token[cuts[1] :]]))
    return merges
