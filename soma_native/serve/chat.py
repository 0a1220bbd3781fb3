"""Turns the messages of a chat into a prompt, with the template of the model's folder in jinja2's sandbox.

The rules are those of `transformers` (`apply_chat_template`), so that a template means the same here.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.serve.body import text
from soma_native.serve.errors import ApiError
from soma_native.tokenizer.tokenizer import Tokenizer

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_ROLES = ("system", "developer", "user", "assistant")
_MARK = re.compile("\ufdd0([0-9]{1,9})\ufdd1")  # Unicode keeps these characters for the use inside programs
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class _Generation(jinja2.ext.Extension):
    """The tag {% generation %} of transformers, which marks the model's part for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        """The statements between the tag and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """The chat template of a model's folder.

    Args:
        source: the template.
        names: the texts of special tokens that the template may use, such as `bos_token`.
        special_tokens: all special tokens of the vocabulary.

    Raises:
        ValueError: the template is not valid; the message says where.
    """

    def __init__(self, source: str, names: dict[str, str], special_tokens: Sequence[str]) -> None:
        sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        sandbox.filters["tojson"] = _to_json
        sandbox.globals["raise_exception"] = _raise
        sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template cannot be used: line {error.lineno}: {error}") from None
        except (jinja2.TemplateError, RecursionError) as error:
            raise ValueError(f"the chat template cannot be used: {error}") from None
        self._names = names
        self._special = sorted(special_tokens, key=len, reverse=True)
        self._any_special = re.compile(f"({'|'.join(map(re.escape, self._special)) or '(?!)'})")

    @classmethod
    def of(cls, tok: Tokenizer) -> ChatTemplate | None:
        """The template beside the tokenizer's file; None if there is none. Raises a ValueError as the class does.

        `chat_template.jinja` takes precedence over `tokenizer_config.json`, and "default" over other named templates.
        """
        config = json.loads(tok._beside.get(_CONFIG, b"{}"))
        source: Any = config.get("chat_template")
        if isinstance(source, list):
            named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
            source = named.get("default", next(iter(named.values()), None))
        if _FILE in tok._beside:
            source = tok._beside[_FILE].decode("utf-8", "replace")
        if not isinstance(source, str):
            return None
        said = {name: config.get(name) for name in _NAMED}
        said = {name: one.get("content") if isinstance(one, dict) else one for name, one in said.items()}
        names = {name: one for name, one in said.items() if isinstance(one, str)}
        return cls(source, names, tok.special_tokens)

    def prompt(self, messages: list[dict[str, str]], tok: Tokenizer) -> tuple[str, list[int]]:
        """The prompt that ends where the assistant's answer begins, and its ids.

        Special tokens count where the template wrote them. In a message their text is plain text.

        Raises:
            ApiError: the template refuses the messages, or fails (400).
        """
        plain = [{name: self._masked(value) for name, value in message.items()} for message in messages]
        try:
            rendered = self._template.render(messages=plain, add_generation_prompt=True, **self._names)
        except RecursionError:
            raise ApiError(400, "the chat template of the model fails: it is nested too deeply") from None
        except Exception as error:  # a template is a program: it can fail in any way
            problem = f"the chat template of the model refuses these messages: {error}"
            raise ApiError(400, " ".join(problem.split()), param="messages") from None
        if plain == messages:
            return rendered, tok.encode(rendered, allowed_special="all")
        ids: list[int] = []
        for part in self._any_special.split(rendered):
            token = tok.token_to_id(part) if part in self._special else None
            ids += tok.encode(self._unmasked(part)) if token is None else [token]
        return self._unmasked(rendered), ids

    def _masked(self, content: str) -> str:
        """A message's content with a mark in the place of each special token's text."""
        return self._any_special.sub(lambda found: f"\ufdd0{self._special.index(found[0])}\ufdd1", content)

    def _unmasked(self, rendered: str) -> str:
        def token(found: re.Match[str]) -> str:
            number = int(found[1])
            return self._special[number] if number < len(self._special) else found[0]

        return _MARK.sub(token, rendered)


def messages_of(name: str, value: Any) -> list[dict[str, str]]:
    """The field `messages` with texts as contents.

    Raises:
        ArgumentError: there is none, or one has a role or a content that is not supported.
    """
    if not isinstance(value, list) or not value:
        raise ArgumentError(name, 'must be a list of messages such as {"role": "user", "content": "hello"}')
    return [_message(f"{name}[{number}]", message) for number, message in enumerate(value)]


def _message(name: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ArgumentTypeError(name, f'must be an object with "role" and "content", got {message!r:.80}')
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ArgumentError(f"{name}.role", f"must be one of {', '.join(_ROLES)}, got {role!r:.80}")
    unknown = [key for key, given in message.items() if key not in ("role", "content", "name") and given]
    if unknown:
        raise ArgumentError(f"{name}.{unknown[0]:.80}", "is not supported: a message has role, content and name")
    if isinstance(content, list):
        content = "".join(_part(f"{name}.content[{number}]", part) for number, part in enumerate(content))
    found = {"role": "system" if role == "developer" else role, "content": text(f"{name}.content", content)}
    if message.get("name") is not None:
        found["name"] = text(f"{name}.name", message["name"])
    return found


def _part(name: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise ArgumentError(
            name, f'must be {{"type": "text", "text": ...}}, for the model reads texts alone: {part!r:.80}'
        )
    return text(f"{name}.text", part.get("text"))
