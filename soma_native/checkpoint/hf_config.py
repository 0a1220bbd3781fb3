"""The content of `config.json`, `generation_config.json` and `tokenizer_config.json`, and a ModelConfig from the first.

`folder.py` writes and reads the files. The defaults of generation stand here too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soma_native.checkpoint.architectures import ARCHITECTURES, Architecture, of_config
from soma_native.errors import CheckpointError
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")

CONFIG = "config.json"
GENERATION = "generation_config.json"
_OF_OLD_WEIGHTS = ("dtype", "quantization_config", "compression_config")  # describe the loaded weights; we save float32

# The defaults of generation, by their keys in generation_config.json.
SAMPLING: dict[str, Any] = {
    "max_new_tokens": 100,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.95,
    "repetition_penalty": "auto",
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
}

_START_TOKENS = ("<|endoftext|>", "<BOS>", "<START>")
_LIMIT = 1 << 31  # larger numbers in a config.json are damage or an attack, not a model


def start_token(tok: Tokenizer | None) -> str | None:
    """The special token that replaces an empty prompt: the first of <|endoftext|>, <BOS>, <START> that exists."""
    return next((token for token in _START_TOKENS if tok is not None and token in tok.special_tokens), None)


def end_token(tok: Tokenizer | None) -> str | None:
    """The special token that ends a text of a model whose settings name none: <|endoftext|> if the vocabulary has it.

    A run with an `end_of_document` puts its id into the model's settings, see `keep_end`.
    """
    return "<|endoftext|>" if tok is not None and "<|endoftext|>" in tok.special_tokens else None


def keep_end(model: Model, end_id: int) -> None:
    """Let generation from `model` end at this id, now and in every folder that it is saved to."""
    settings = {file: dict(values) for file, values in model._settings.items()}
    settings.setdefault(CONFIG, {})["eos_token_id"] = end_id
    if settings.get(GENERATION, {}).get("eos_token_id") is not None:
        settings[GENERATION]["eos_token_id"] = end_id
    model._settings = settings


def auto_penalty(tok: Tokenizer | None) -> float:
    """The repetition penalty that "auto" means: 1.15 for a word tokenizer, else 1.0, which is no penalty.

    Every text must repeat its letters and parts of words.
    """
    return 1.15 if tok is not None and tok.kind == "word" else 1.0


def token_ids(model: Model, name: str) -> list[int]:
    """The ids that the model's folder gives for `name`, such as `eos_token_id`: one, several or none.

    `generation_config.json` takes precedence over `config.json`, as in `transformers`. Ids outside the model's
    vocabulary are left out with a warning.
    """
    said = (model._settings.get(file, {}).get(name) for file in (GENERATION, CONFIG))
    value: Any = next((value for value in said if value is not None), [])
    ids = value if isinstance(value, list) else [value]
    known = [i for i in ids if type(i) is int and 0 <= i < model.config.vocab_size]
    if len(known) < len(ids):
        _log.warning("%s of the model's folder is %.80r; what is no id of the vocabulary is ignored", name, value)
    return known


def _id(tok: Tokenizer | None, token: str | None) -> int | None:
    return None if tok is None or token is None else tok.token_to_id(token)


def config_to_json(config: ModelConfig, tok: Tokenizer | None, kept: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        config: the settings of the model. They replace those of `kept`.
        tok: the tokenizer. It gives the ids of start and end, unless `kept` has them.
        kept: the `config.json` that the model was loaded with, or empty. Its other settings are written again, except
            those that describe the loaded weights.
    """
    model_type, entry = of_config(config)
    ours = {
        "model_type": model_type,
        "architectures": [entry.class_name],
        **{key: getattr(config, name) for name, keys in entry.sizes.items() for key in keys},
        **{key: getattr(config, name) for name, key in entry.options.items()},
        **_rope(config, entry),
        **{key: _word(kept, key, words[getattr(config, name)]) for name, (key, words) in entry.choices.items()},
        **{key: _word(kept, key, words) for key, words in entry.settings.items()},
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": "float32",
    }
    more = {**entry.written, "bos_token_id": _id(tok, start_token(tok)), "eos_token_id": _id(tok, end_token(tok))}
    more.update((key, value) for key, value in kept.items() if value is not None or key not in more)
    return {**ours, **{key: value for key, value in more.items() if key not in {*ours, *_OF_OLD_WEIGHTS}}}


def _rope(config: ModelConfig, entry: Architecture) -> dict[str, object]:
    """The base of rotary positions under the keys of earlier and of later versions of `transformers`."""
    if not entry.rotary:
        return {}
    theta = config.rope_theta
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def generation_config(tok: Tokenizer | None, config: Mapping[str, Any]) -> dict[str, object]:
    """The content of `generation_config.json`: the defaults of `Generator.generate` under the keys of `transformers`.

    Args:
        tok: the tokenizer.
        config: the content of `config.json`.
    """
    pad = _id(tok, "<PAD>" if tok is not None and "<PAD>" in tok.special_tokens else end_token(tok))
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": pad}
    ids.update((name, config[name]) for name in ids if config.get(name) is not None)
    named = {name: value for name, value in ids.items() if value is not None}
    return {"do_sample": True, **SAMPLING, "repetition_penalty": auto_penalty(tok), **named}


def tokenizer_config(config: ModelConfig, tok: Tokenizer) -> dict[str, object]:
    """The content of `tokenizer_config.json`, which makes `AutoTokenizer` read `tokenizer.json`.

    Without it, `AutoTokenizer` reads a gpt2 folder's tokenizer as GPT-2's own, which gives other ids and no error.
    """
    named = {"unk_token": "<UNK>", "pad_token": "<PAD>", "bos_token": start_token(tok), "eos_token": end_token(tok)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_seq_len,
        **{name: token for name, token in named.items() if token in tok.special_tokens},
    }


def json_to_config(document: Any, path: Path) -> ModelConfig:
    """The ModelConfig that a parsed `config.json` describes.

    Args:
        document: the parsed JSON.
        path: its file, for messages.

    Raises:
        CheckpointError: the model_type is unknown, a field is missing or has an impossible value, or the model computes
            something that our blocks do not.
    """
    if not isinstance(document, dict):
        raise CheckpointError("is not a JSON object", path=path)
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        known = ", ".join(map(repr, ARCHITECTURES))
        raise CheckpointError(f"names the model_type {model_type!r:.60}; {known} can be loaded", path=path)
    try:
        return _config(document, ARCHITECTURES[model_type])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"describes no usable model: {error}", path=path) from None


def _config(document: Mapping[str, Any], entry: Architecture) -> ModelConfig:
    for key, words in entry.settings.items():
        if words[0] is False and document.get(key) is None:
            continue  # null is off
        _meant(document, key, {None: words}, entry.block)
    for name, wanted in entry.each.items():
        if document.get(name) is not None and not _all_are(document[name], wanted):
            raise ValueError(f"{name} is {document[name]!r:.60}; our {entry.block} block computes {wanted!r} alone")
    for name in entry.absent:
        if document.get(name) is not None:
            raise ValueError(f"{name} is {document[name]!r:.60}; our {entry.block} block computes none")
    keys = {name: next((key for key in keys if key in document), keys[-1]) for name, keys in entry.sizes.items()}
    if entry.d_ff_factor is not None and document.get(keys["d_ff"]) is None:
        document = {**document, keys["d_ff"]: entry.d_ff_factor * _size(document, keys["d_model"])}
    fields: dict[str, Any] = {name: _size(document, key) for name, key in keys.items()}
    for name, (key, meanings) in entry.choices.items():
        fields[name] = _meant(document, key, meanings, entry.block)
    fields["tied_head"] = _flag(document, "tie_word_embeddings", entry.tied_head)
    fields.update(entry.fixed)
    for name, key in entry.options.items():
        if name in entry.needed and document.get(key) is None:
            raise ValueError(f"{key} is missing")
        fields[name] = document.get(key)
    if entry.rotary:
        fields["rope_theta"] = _rope_theta(document, entry)
    return ModelConfig(block=entry.block, **fields)


def _meant(document: Mapping[str, Any], key: str, meanings: Mapping[Any, tuple[object, ...]], block: str) -> Any:
    """The key of `meanings` whose words include document[key]. Without document[key], the first key."""
    for value, words in meanings.items():
        if document.get(key, words[0]) in words:
            return value
    known = " or ".join(repr(word) for words in meanings.values() for word in words)
    raise ValueError(f"{key} is {document[key]!r:.60}; our {block} block computes {known}")


def _word(kept: Mapping[str, Any], key: str, words: tuple[object, ...]) -> object:
    """The word to write: the one in `kept` if `words` has it, else the first of `words`."""
    return kept[key] if kept.get(key) in words else words[0]


def _all_are(values: object, wanted: object) -> bool:
    return isinstance(values, list) and all(value == wanted for value in values)


def _rope_theta(document: Mapping[str, Any], entry: Architecture) -> Any:
    """The base of rotary positions, or None if config.json has none.

    Raises:
        ValueError: another setting of rotary positions asks for something that our block does not compute.
    """
    theta, turned = document.get("rope_theta"), document.get("partial_rotary_factor")
    for key in ("rope_scaling", "rope_parameters"):
        said = document.get(key)
        if said is None:
            continue
        if not isinstance(said, dict):
            raise ValueError(f"{key} must be an object, not {said!r:.60}")
        said = {**said, "rope_type": said.get("rope_type", said.get("type", "default"))}
        if said["rope_type"] != "default":
            raise ValueError(
                f"{key} has the type {said['rope_type']!r:.60}; our {entry.block} block computes 'default'"
            )
        unknown = sorted(set(said) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
        if unknown:
            raise ValueError(f"{key} has {unknown[0]!r:.60}, which our {entry.block} block does not compute")
        theta = said.get("rope_theta", theta)
        turned = said.get("partial_rotary_factor", turned)
    if turned not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {turned!r:.60}; our {entry.block} block computes 1")
    return theta


def _size(document: Mapping[str, Any], name: str) -> int:
    if name not in document:
        raise ValueError(f"{name} is missing")
    value = document[name]
    if type(value) is not int or not 0 < value < _LIMIT:
        raise ValueError(f"{name} must be a whole number from 1 to {_LIMIT - 1}, not {value!r:.60}")
    return value


def _flag(document: Mapping[str, Any], name: str, default: bool) -> bool:
    value = document.get(name, default)
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, not {value!r:.60}")
    return value
