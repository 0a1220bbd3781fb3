"""Reads and writes `tokenizer.json`, the file of Hugging Face `tokenizers`, for every kind of tokenizer.

`tokenizers.Tokenizer.from_file` loads a file written here and encodes every text to the same ids. So the special tokens
of words, characters and bytes are not in `added_tokens`: `tokenizers` would find them in texts, where ours are plain
text unless allowed. They are in the vocabulary, and a post-processor that adds nothing names them.

A file is read exactly as `tokenizers` reads it, or refused with the name of the unsupported setting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soma_native.core import _core
from soma_native.errors import CheckpointError
from soma_native.files.untrusted import Problem, is_shallow, parse_json, read_regular, same, short
from soma_native.tokenizer.added_tokens import RuledCore
from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary
from soma_native.tokenizer.formats.tiktoken_gpt2 import MAX_BYTES, check_id, check_vocab
from soma_native.tokenizer.formats.tokenizer_json_bpe import PLAIN_BPE, bpe_document, parse_bpe

FILE_NAME = "tokenizer.json"
UNKNOWN = "<UNK>"

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_WORD_LEVEL = {"type": "WordLevel", "unk_token": UNKNOWN}
# The file of each kind without its vocabulary. The regular expressions are Oniguruma's.
_SECTIONS: dict[str, dict[str, Any]] = {
    "word": {
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\p{L}\p{N}_]+"},
            "behavior": "Removed",
            "invert": True,
        },
        "decoder": None,
        "model": _WORD_LEVEL,
    },
    "char": {
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Fuse"},
        "model": _WORD_LEVEL,
    },
    "byte": {
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {**PLAIN_BPE, "ignore_merges": False, "merges": []},
    },
}
_KEYS = {
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
}
SETTINGS = ("truncation", "padding")  # done to ids after encoding; they change no id
_SEQUENCE_A = {"Sequence": {"id": "A", "type_id": 0}}
_SEQUENCE_B = {"Sequence": {"id": "B", "type_id": 1}}


def _listed_document(kind: str, tokens: Sequence[str], special_ids: Sequence[int]) -> dict[str, Any]:
    """The JSON document of a tokenizer.

    Args:
        kind: "word", "char" or "byte".
        tokens: the texts of all tokens, by id.
        special_ids: the ids of the special tokens.
    """
    sections = _SECTIONS[kind]
    post_processor = None
    if special_ids:
        post_processor = {
            "type": "TemplateProcessing",
            "single": [_SEQUENCE_A],
            "pair": [_SEQUENCE_A, _SEQUENCE_B],
            "special_tokens": {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in special_ids},
        }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": sections["normalizer"],
        "pre_tokenizer": sections["pre_tokenizer"],
        "post_processor": post_processor,
        "decoder": sections["decoder"],
        "model": {**sections["model"], "vocab": {token: i for i, token in enumerate(tokens)}},
    }


def read_tokenizer(path: Path) -> tuple[_core.Tokenizer | RuledCore, dict[str, Any]]:
    """Read a tokenizer file of any kind. Returns what `make_tokenizer` does.

    Raises:
        CheckpointError: the file is damaged or has an unsupported setting. Names the file and the problem.
    """
    document = parse_json(read_regular(path, MAX_BYTES), path)
    try:
        return make_tokenizer(document)
    except (Problem, ValueError) as problem:
        raise CheckpointError(str(problem), path=path) from None


def make_tokenizer(document: Any) -> tuple[_core.Tokenizer | RuledCore, dict[str, Any]]:
    """The tokenizer of a file's content, and the settings of the file that are kept but not applied.

    Raises:
        Problem, ValueError: the content is wrong or not supported.
    """
    _check(document)
    settings = {key: document[key] for key in SETTINGS if document.get(key) is not None}
    if _is_bpe(document):
        vocabulary, rules = parse_bpe(document)
        return RuledCore(vocabulary.make(), rules), settings
    return _core.Tokenizer(*_parse(document)), settings


def write_tokenizer(path: Path, document: Mapping[str, Any]) -> None:
    """Write the file of a tokenizer."""
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8", newline="\n")


def document_of(core: _core.Tokenizer | RuledCore, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer's file, from which `make_tokenizer` makes the same tokenizer."""
    if isinstance(core, RuledCore):
        document = bpe_document(BpeVocabulary.of(core.core), core.rules)
    elif core.kind == "bpe":
        document = bpe_document(BpeVocabulary.of(core), None)
    else:
        document = _listed_document(core.kind, [core.token(i) for i in range(core.vocab_size)], core.special_ids)
    return {**document, **settings}


def _check(document: object) -> None:
    """Check the parts of a tokenizer's file that are the same for every kind."""
    if not isinstance(document, dict):
        raise Problem("is not a tokenizer: a JSON object is expected")
    if not isinstance(document.get("model"), dict):
        raise Problem("is not a tokenizer: it has no 'model' (a vocab.json is read together with its merges.txt)")
    for key in sorted(set(document) - _KEYS):
        raise Problem(f"has the key {short(key)}, which is unknown")
    if document.get("version", "1.0") != "1.0":
        raise Problem(f"is of version {short(document['version'])}; only '1.0' can be read")
    for key in SETTINGS:
        if not isinstance(document.get(key), dict | None) or not is_shallow(document.get(key)):
            expected = "null or an object of at most 32 levels"
            raise Problem(f"has the {key} {short(document[key])}, where {expected} is expected")


def _is_bpe(document: Mapping[str, Any]) -> bool:
    """Whether this is of kind "bpe". The kind "byte" is a BPE that neither merges nor splits."""
    model = document["model"]
    if "type" in model or "merges" not in model:  # GPT-2's own file does not say the type
        return model.get("type") == "BPE" and bool(model.get("merges") or _splits(document.get("pre_tokenizer")))
    return True


def _splits(pre_tokenizer: object) -> bool:
    return _that_matters(pre_tokenizer, "pre_tokenizer") != _that_matters(_BYTE_LEVEL, "pre_tokenizer")


def _parse(document: Mapping[str, Any]) -> tuple[str, list[str], list[int]]:
    """The kind, the texts of the tokens by id, and the ids of the special ones."""
    kind = _kind(document)
    ids = dict(check_vocab(document["model"].get("vocab")))
    special = _post_processor(document.get("post_processor"), ids) | _added_tokens(document.get("added_tokens"), ids)
    if UNKNOWN in ids:
        special.add(UNKNOWN)
    tokens = [""] * len(ids)
    for token, i in ids.items():
        if i >= len(ids):
            raise Problem(f"gives {short(token)} the id {i}, but has {len(ids)} tokens: ids must be 0 to n - 1")
        if tokens[i]:
            raise Problem(f"gives the id {i} to both {short(tokens[i])} and {short(token)}")
        tokens[i] = token
    return kind, tokens, sorted(ids[token] for token in special)


def _kind(document: Mapping[str, Any]) -> str:
    """The kind whose sections the document has."""
    model = document["model"]
    settings = {key: value for key, value in model.items() if key != "vocab"}
    by_pattern = {"word": document.get("normalizer") is not None, "char": document.get("normalizer") is None}
    if model.get("type") == "BPE":
        kind = "byte"
    elif model.get("type") == "WordLevel":
        kind = next(kind for kind, matches in by_pattern.items() if matches)
    else:
        raise Problem(f"has a model of type {short(model.get('type'))}; 'WordLevel' and 'BPE' can be read")
    expected = _SECTIONS[kind]
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        if _that_matters(document.get(key), key) != _that_matters(expected[key], key):
            raise Problem(
                f"has the {key} {short(document.get(key))}, which is not supported; a tokenizer of kind {kind!r} "
                f"has {short(expected[key])}"
            )
    for name in sorted(set(settings) | set(expected["model"])):
        # A missing setting is off: older versions of `tokenizers` did not write every one.
        found, wanted = settings.get(name), expected["model"].get(name)
        if not same(found, wanted) and not (name not in settings and not wanted):
            raise Problem(f"has a model with {name} = {short(found)}; only {short(wanted)} can be read")
    return kind


def _that_matters(section: object, key: str) -> object:
    """The section without settings that change neither ids nor text."""
    if not isinstance(section, dict) or section.get("type") != "ByteLevel":
        return section
    if key == "decoder":
        return "ByteLevel"
    return {name: value for name, value in section.items() if name != "trim_offsets"}


def _post_processor(section: object, ids: Mapping[str, int]) -> set[str]:
    """The special tokens that the post-processor of a file of ours names."""
    if section is None:
        return set()
    if not isinstance(section, dict) or section.get("type") != "TemplateProcessing":
        raise Problem(f"has the post_processor {short(section)}, which is not supported")
    if section.get("single") != [_SEQUENCE_A] or section.get("pair") != [_SEQUENCE_A, _SEQUENCE_B]:
        raise Problem("has a post_processor that adds tokens to a text, which is not supported")
    named = section.get("special_tokens")
    if not isinstance(named, dict):
        raise Problem("has a post_processor without special_tokens")
    for token, entry in named.items():
        if token not in ids or entry != {"id": token, "ids": [ids[token]], "tokens": [token]}:
            raise Problem(f"has a post_processor that disagrees with the vocabulary about {short(token)}")
    return set(named)


def _added_tokens(section: object, ids: dict[str, int]) -> set[str]:
    """The special tokens of a file that `tokenizers` made. Adds those that `ids` lacks to `ids`."""
    if section is None:
        return set()
    if not isinstance(section, list):
        raise Problem("has added_tokens that are not a list")
    special = set()
    for entry in section:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise Problem(f"has the added token {short(entry)}, which has no content")
        token = entry["content"]
        check_id(token, entry.get("id"))
        if entry.get("special") is not True:
            raise Problem(f"has the added token {short(token)}, which is not special; only special ones are supported")
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            if entry.get(flag, False) is not False:
                raise Problem(f"has the added token {short(token)} with {flag}, which is not supported")
        if ids.setdefault(token, entry["id"]) != entry["id"]:
            raise Problem(f"gives {short(token)} the ids {ids[token]} and {entry['id']}")
        special.add(token)
    return special
