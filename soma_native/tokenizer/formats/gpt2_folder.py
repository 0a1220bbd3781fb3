"""Reads the tokenizer of a folder from before `tokenizer.json`: GPT-2's `vocab.json` and `merges.txt`, and beside them
`added_tokens.json`, `special_tokens_map.json` and `tokenizer_config.json`.
"""

from __future__ import annotations

import os
from typing import Any

from soma_native.core import _core
from soma_native.errors import CheckpointError
from soma_native.files.atomic_folder import FolderView
from soma_native.files.untrusted import Problem, parse_json, read_regular, short
from soma_native.tokenizer.added_tokens import RuledCore
from soma_native.tokenizer.formats.tiktoken_gpt2 import MAX_BYTES, read_gpt2
from soma_native.tokenizer.formats.tokenizer_json import make_tokenizer
from soma_native.tokenizer.formats.tokenizer_json_bpe import bpe_document

_FILES = ("vocab.json", "merges.txt")
_CONFIG, _ADDED, _SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
_CLASSES = {"GPT2Tokenizer", "CodeGenTokenizer", "RobertaTokenizer", "BartTokenizer", "PreTrainedTokenizer"}


def is_gpt2_folder(view: FolderView) -> bool:
    """Whether the folder has both files."""
    return all(os.path.lexists(view.path(name)) for name in _FILES)


def read_gpt2_folder(view: FolderView) -> tuple[_core.Tokenizer | RuledCore, dict[str, Any]]:
    """The tokenizer of a folder, as `make_tokenizer` makes it.

    Raises:
        CheckpointError: a file is damaged, the files contradict each other, or the rules are not those of GPT-2.
    """
    config, added, special = (_object(view, name) for name in (_CONFIG, _ADDED, _SPECIAL))
    kind, prefix_space = config.get("tokenizer_class") or "GPT2Tokenizer", config.get("add_prefix_space", False)
    if not isinstance(kind, str) or kind.removesuffix("Fast") not in _CLASSES:
        raise CheckpointError(
            f"names the tokenizer_class {short(kind)}, whose rules {_FILES[0]} and {_FILES[1]} do not say; write a "
            "tokenizer.json by transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
            path=view.path(_CONFIG),
        )
    if not isinstance(prefix_space, bool):
        problem = f"has the add_prefix_space {short(prefix_space)}; true or false is expected"
        raise CheckpointError(problem, path=view.path(_CONFIG))
    document = bpe_document(read_gpt2(*map(view.path, _FILES)), None)
    tokens = {token["content"]: token for token in document["added_tokens"]}
    named = _texts([special, *(value for name, value in config.items() if name.endswith(("_token", "_tokens")))])
    tokens.update((text, {"id": i, "content": text, "special": text in named}) for text, i in added.items())
    try:
        for i, token in config.get("added_tokens_decoder", {}).items():
            tokens[token["content"]] = {**token, "id": int(i)}
        document["added_tokens"] = sorted(tokens.values(), key=lambda token: int(token["id"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        problem = f"or {_ADDED} has added tokens that are not texts with their ids"
        raise CheckpointError(problem, path=view.path(_CONFIG)) from None
    document["pre_tokenizer"] = {**document["pre_tokenizer"], "add_prefix_space": prefix_space}
    try:
        return make_tokenizer(document)
    except (Problem, ValueError) as problem:
        raise CheckpointError(str(problem), path=view.path(_FILES[0])) from None


def _object(view: FolderView, name: str) -> dict[str, Any]:
    """The JSON object of a file; {} if there is no such file."""
    path = view.path(name)
    document = parse_json(read_regular(path, MAX_BYTES), path) if os.path.lexists(path) else {}
    if not isinstance(document, dict):
        raise CheckpointError("is not a JSON object", path=path)
    return document


def _texts(value: object) -> set[str]:
    """The texts of tokens in a JSON value: of a list, of the values of an object, or an object's `content`."""
    if isinstance(value, dict):
        value = [value["content"]] if "content" in value else list(value.values())
    return {value} if isinstance(value, str) else set().union(*map(_texts, value)) if isinstance(value, list) else set()
