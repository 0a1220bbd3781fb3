"""The models that a server has: each with its engine, its template for chats, and what /v1/models says of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from soma_native.checkpoint import load
from soma_native.checkpoint.hf_config import CONFIG, GENERATION, auto_penalty
from soma_native.errors import ArgumentError
from soma_native.generation.engine import Engine, Handle
from soma_native.generation.sampling import Sampling
from soma_native.generation.scoring import unknown_said
from soma_native.model.model import Model
from soma_native.serve.chat import ChatTemplate
from soma_native.serve.errors import ApiError
from soma_native.serve.limits import Limits
from soma_native.serve.vocabulary import Places, Vocabulary
from soma_native.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger("soma_native")
_KEYS = {"max_tokens": "max_new_tokens"}  # names in generation_config.json
_OF_A_CALL = ("seed", "stop", "logit_bias")  # rules that a folder does not have


class Prompt(NamedTuple):
    """A text to continue.

    Attributes:
        text: the text.
        ids: its tokens.
        exact: whether the model has to read just these tokens, as a client or a chat template gave them.
    """

    text: str
    ids: list[int]
    exact: bool = False


class Served:
    """One model behind the address.

    Args:
        name: what requests call it.
        model: the model.
        tok: its tokenizer.
        created: when it was saved, in seconds since 1970.
        weights: the form of the weights, as for `Generator`. The weights do not change here, so an exact copy pays.
        kv_cache: the form of keys and values, as for `Generator`.
        max_sequences: most texts that are generated at once.
        limits: of the server.

    Raises:
        ValueError, MemoryError: as `Generator` and `Engine`.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        tok: Tokenizer,
        *,
        created: int = 0,
        weights: str = "float32",
        kv_cache: str = "auto",
        max_sequences: int = 16,
        limits: Limits | None = None,
    ) -> None:
        self.name, self.model, self.tok, self.created = name, model, tok, created
        self.limits = limits or Limits()
        self.context = model.config.max_seq_len
        self.vocabulary = Vocabulary(tok)
        self.engine = Engine(
            model, tok, max_sequences, weights=weights, kv_cache=kv_cache, max_queue=self.limits.max_queue
        )
        self.generator = self.engine._generator
        self.defaults = folder_sampling(model, tok)
        try:
            self.template = ChatTemplate.of(tok)
        except ValueError as error:
            _log.warning("%s answers no chats: %s", name, error)
            self.template = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "cpu", **more: Any) -> Served:
        """The model of a folder, which is called as the folder. Raises as `soma_native.load` and the class do."""
        path = Path(folder)
        model, tok = load(path, device=device)
        created = 0
        with contextlib.suppress(OSError):
            created = int((path / CONFIG).stat().st_mtime)
        return cls(name_of(path), model, tok, created=created, **more)

    def submit(self, prompt: Prompt, number: int, sampling: Mapping[str, Any], logprobs: int | None) -> Handle:
        """Ask the engine for the continuation `number` of a prompt. Raises as `Engine.submit` does."""
        seed = sampling.get("seed")
        options = {**sampling, "seed": None if seed is None else (seed + number) % 2**64}
        ids = prompt.ids if prompt.exact else None
        return self.engine.submit(prompt.text, ids=ids, logprobs=logprobs, **options)

    def warnings(self, prompts: Iterable[Prompt]) -> list[str]:
        """What a client should know of its prompts: the words that are read as <UNK>."""
        unknown = self.generator._unknown_id()
        words = [
            word
            for prompt in prompts
            if unknown in prompt.ids
            for word in self.generator._unknown_words(prompt.text, "all" if prompt.exact else ())
        ]
        return [unknown_said([*dict.fromkeys(words)])] if words else []

    def places(self, prompt: Prompt) -> list[int]:
        """Where each token of a prompt begins in its text, in code points."""
        if not prompt.exact:
            return [begin for begin, _ in self.tok.encode_with_offsets(prompt.text)[1]]
        places = Places(self.vocabulary, False if self.tok.kind == "word" else None)
        return [places.next(token) for token in prompt.ids]

    def card(self) -> dict[str, Any]:
        """What /v1/models says: OpenAI's fields, and what a program needs to ask for a text."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "soma_native",
            "max_model_len": self.context,
            "max_tokens": self.limits.max_tokens,
            "max_sequences": self.engine.max_sequences,
            "memory_bytes": self.engine.memory_bytes,
            "parameters": self.model.num_parameters,
            "block": self.model.config.block,
            "tokenizer": self.tok.kind,
            "vocab_size": self.tok.vocab_size,
            "special_tokens": list(self.tok.special_tokens),
            "chat": self.template is not None,
            "sampling": self.defaults,
        }


def name_of(folder: str | os.PathLike[str]) -> str:
    """What a folder's model is called: the name of the folder."""
    return Path(folder).resolve().name


def folder_sampling(model: Model, tok: Tokenizer) -> dict[str, Any]:
    """The sampling rules of the model's `generation_config.json`, by the names of `Generator.generate`.

    What the file does not say, or says with an impossible value, is the library's default.
    """
    said = model._settings.get(GENERATION, {})
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Sampling):
        value = said.get(_KEYS.get(field.name, field.name))
        if field.name in _OF_A_CALL:
            continue
        found[field.name] = field.default
        if value is not None:
            try:
                Sampling.of(**{field.name: value})
                found[field.name] = value
            except (ValueError, TypeError) as error:
                _log.warning("%s is not used: %s", GENERATION, error)
    if said.get("do_sample") is False:
        found["temperature"] = 0.0
    if found["repetition_penalty"] == "auto":
        found["repetition_penalty"] = auto_penalty(tok)
    return found


class Models:
    """The models of a server by name; the first is asked where a request names none.

    Raises:
        ArgumentError: two have one name, or there is none.
    """

    def __init__(self, served: Iterable[Served]) -> None:
        served = list(served)
        self._by_name = {one.name: one for one in served}
        if not served or len(self._by_name) < len(served):
            raise ArgumentError("models", f"must have different names, got {', '.join(one.name for one in served)}")

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def named(self, name: str | None) -> Served:
        """The model of this name. Raises an ApiError if there is none."""
        if name is None:
            return next(iter(self._by_name.values()))
        if name not in self._by_name:
            problem = f"there is no model {name!r:.80} here; there are {', '.join(self._by_name)}"
            raise ApiError(404, problem, param="model", code="model_not_found")
        return self._by_name[name]

    def close(self) -> None:
        """End the engines."""
        for one in self:
            one.engine.close()
