"""`tokenizer.json` for byte-level BPE: the files of GPT-2, Llama-3, Qwen-2 and GPT-4o, their relatives, and our own.

A file encodes as in Hugging Face `tokenizers`, or is refused with the name of the unsupported setting. `tokenizers`
finds special tokens in any text; here they are plain text unless `allowed_special` names them. Its default is our
``allowed_special="all"``; our default is its ``encode_special_tokens=True``. Both always find other added tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soma_native.files.untrusted import Problem, same, short
from soma_native.tokenizer.added_tokens import AddedToken, TextRules
from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary
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

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_POSSESSIVE = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words_digits_signs(digits: str, end: str = "") -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{end}{_SPACES}"


# The regular expressions (Oniguruma's) of the patterns; the first of a pattern is the one written.
_REGEXES = {
    "llama3": [
        _words_digits_signs(r"\p{N}{1,3}"),
        _POSSESSIVE + r"+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ],
    "qwen2": [_words_digits_signs(r"\p{N}")],
    "cl100k": [_words_digits_signs(r"\p{N}{1,3}", r"\s++\z|")],
    "o200k": [
        rf"{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    ],
    "gpt2": [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
}
_PATTERN_OF = {regex: pattern for pattern, regexes in _REGEXES.items() for regex in regexes}
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
    """The name of the pattern, and whether text gets a space in front."""
    steps = _steps("pre_tokenizer", section)
    _all_of("pre_tokenizer", section, {"Split", "ByteLevel"})
    kinds = [step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise Problem(f"has the pre_tokenizer {short(section)}; only ByteLevel, alone or after one Split, can be read")
    byte_level = steps[-1]
    prefix_space, use_regex = byte_level.get("add_prefix_space"), byte_level.get("use_regex", True)
    strange = set(byte_level) - {"type", "add_prefix_space", "trim_offsets", "use_regex"}
    if strange or not isinstance(prefix_space, bool) or not isinstance(use_regex, bool):
        raise Problem(f"has the pre_tokenizer {short(byte_level)}, which is not as ByteLevel is")
    if len(steps) == 1:
        if not use_regex:
            raise Problem(f"has the pre_tokenizer {short(byte_level)}, which does not split the text")
        return "gpt2", prefix_space
    if use_regex or prefix_space:
        name = "use_regex" if use_regex else "add_prefix_space"
        raise Problem(f"has the pre_tokenizer ByteLevel with {name} after a Split, which is not supported")
    split = steps[0]
    pattern, how = split.get("pattern"), (split.get("behavior"), split.get("invert"))
    if set(split) != {"type", "pattern", "behavior", "invert"} or how not in (("Isolated", False), ("Removed", True)):
        raise Problem(
            f"has the pre_tokenizer {short(split)}; only a Split that keeps what its pattern finds can be read"
        )
    regex = pattern.get("Regex") if isinstance(pattern, dict) and len(pattern) == 1 else None
    if not isinstance(regex, str) or regex not in _PATTERN_OF:
        raise Problem(
            f"splits text by the pattern {short(pattern if regex is None else regex)}, which is not supported; "
            f"only the patterns of {_names(_REGEXES)} are"
        )
    return _PATTERN_OF[regex], False


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
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": pattern == "gpt2"}
    split = {"type": "Split", "pattern": {"Regex": _REGEXES[pattern][0]}, "behavior": "Isolated", "invert": False}
    split_first = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    return {
        "normalizer": None,
        "pre_tokenizer": byte_level if pattern == "gpt2" else split_first,
        "post_processor": None,
        "decoder": byte_level,
    }


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
