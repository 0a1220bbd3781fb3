"""`config.json` and its small companions: our ModelConfig to and from what `transformers` calls the same things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soma_native.errors import CheckpointError
from soma_native.model.config import ModelConfig
from soma_native.tokenizer.tokenizer import Tokenizer

__all__ = ["config_to_json", "end_token", "generation_config", "json_to_config", "start_token", "tokenizer_config"]

_START_TOKENS = ("<|endoftext|>", "<BOS>", "<START>")
_SIZES = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
_LIMIT = 1 << 31  # larger numbers in a config.json are damage or an attack, not a model

# Settings of a GPT-2 config.json that change the mathematics, and the values that mean what our block computes. Dropout
# is missing on purpose: it is off in everything a loaded model is used for here.
_GPT2_FIXED: dict[str, tuple[object, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def start_token(tok: Tokenizer | None) -> str | None:
    """The special token a text without a beginning starts from: the first of <|endoftext|>, <BOS>, <START> there is."""
    return next((token for token in _START_TOKENS if tok is not None and token in tok.special_tokens), None)


def end_token(tok: Tokenizer | None) -> str | None:
    """The special token after which a text is over: <|endoftext|>, where the vocabulary has it.

    The word tokenizer's <END> and <EOS> are not: training never shows them to the model unless a person puts them in.
    """
    return "<|endoftext|>" if tok is not None and "<|endoftext|>" in tok.special_tokens else None


def _id(tok: Tokenizer | None, token: str | None) -> int | None:
    return None if tok is None or token is None else tok.token_to_id(token)


def config_to_json(config: ModelConfig, tok: Tokenizer | None) -> dict[str, object]:
    """What `config.json` holds for a model and its tokenizer."""
    start, end = _id(tok, start_token(tok)), _id(tok, end_token(tok))
    common: dict[str, object] = {"bos_token_id": start, "eos_token_id": end, "torch_dtype": "float32"}
    if config.block == "gpt2":
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": config.vocab_size,
            "n_positions": config.max_seq_len,
            "n_ctx": config.max_seq_len,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.d_ff,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "scale_attn_weights": True,
            "tie_word_embeddings": config.tied_head,
            **common,
        }
    shape = {name: getattr(config, name) for name in _SIZES}
    return {
        "model_type": "soma",
        "architectures": ["SomaForCausalLM"],
        **shape,
        "tie_word_embeddings": config.tied_head,
        **common,
    }


def generation_config(tok: Tokenizer | None) -> dict[str, object]:
    """What `generation_config.json` holds: the defaults of `Generator.generate`, in the words of `transformers`."""
    ids = {"bos_token_id": _id(tok, start_token(tok)), "eos_token_id": _id(tok, end_token(tok))}
    ids["pad_token_id"] = _id(tok, "<PAD>" if tok is not None and "<PAD>" in tok.special_tokens else end_token(tok))
    sampling = {"do_sample": True, "max_new_tokens": 100, "temperature": 0.7, "top_k": 50, "top_p": 0.95}
    return {**sampling, "repetition_penalty": 1.15, **{name: value for name, value in ids.items() if value is not None}}


def tokenizer_config(config: ModelConfig, tok: Tokenizer) -> dict[str, object]:
    """What `tokenizer_config.json` holds: that `tokenizer.json` is all there is.

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
        path: where it was read, for messages.

    Raises:
        CheckpointError: no model of ours, a field is missing or has an impossible value, or the model computes
            something our blocks do not.
    """
    if not isinstance(document, dict):
        raise CheckpointError("is not a JSON object", path=path)
    model_type = document.get("model_type")
    try:
        if model_type == "soma":
            sizes = {name: _size(document, name) for name in _SIZES}
            return ModelConfig(block="soma", tied_head=_flag(document, "tie_word_embeddings", False), **sizes)
        if model_type == "gpt2":
            return _gpt2_config(document)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"describes no usable model: {error}", path=path) from None
    raise CheckpointError(f"names the model_type {model_type!r:.60}; 'soma' and 'gpt2' can be loaded", path=path)


def _gpt2_config(document: Mapping[str, Any]) -> ModelConfig:
    for name, allowed in _GPT2_FIXED.items():
        if name in document and document[name] not in allowed:
            allowed_text = " or ".join(repr(value) for value in allowed)
            raise ValueError(f"{name} is {document[name]!r:.60}; our gpt2 block computes {allowed_text}")
    width = _size(document, "n_embd")
    return ModelConfig(
        vocab_size=_size(document, "vocab_size"),
        d_model=width,
        n_layers=_size(document, "n_layer"),
        n_heads=_size(document, "n_head"),
        d_ff=4 * width if document.get("n_inner") is None else _size(document, "n_inner"),
        max_seq_len=_size(document, "n_positions" if "n_positions" in document else "n_ctx"),
        block="gpt2",
        tied_head=_flag(document, "tie_word_embeddings", True),
    )


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
