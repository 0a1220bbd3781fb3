"""/v1/chat/completions: the prompt that the folder's template makes, as transformers makes it, and the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import soma_native
from helpers.serving import TEMPLATE, Client, make_served, serving
from soma_native.serve.chat import ChatTemplate
from soma_native.serve.errors import ApiError
from soma_native.serve.models import Served

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat"}]
CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
<|system|>None.{{ eos_token }}
    {%- endif %}
<|{{ message['role'] }}|>{{ message['content'] | trim }}{{ eos_token }}
    {%- if message['role'] == 'assistant' %}{% generation %}!{% endgeneration %}{% endif %}
    {%- if loop.index0 > 9 %}{% break %}{% endif %}
{%- endfor %}
{{- {'a': 'é<'} | tojson }}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
"""


@pytest.fixture(scope="module")
def served() -> Served:
    return make_served(special_tokens=SPECIAL, template=TEMPLATE)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with serving(served, make_served("plain")) as client:
        yield client


def test_a_chat_continues_the_text_of_the_template(client: Client, served: Served) -> None:
    answer = client.post("/v1/chat/completions", messages=MESSAGES, max_tokens=8, seed=3)
    assert answer.status == 200, answer.body
    document = answer.json
    assert document["object"] == "chat.completion" and document["id"].startswith("chatcmpl-")
    (choice,) = document["choices"]
    ids = served.tok.encode("<|end|><|system|>be kind<|user|>the cat<|assistant|>", "all")
    assert document["usage"]["prompt_tokens"] == len(ids)
    expected = client.post("/v1/completions", prompt=ids, max_tokens=8, seed=3).json["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected["text"], "refusal": None}
    assert choice["finish_reason"] == expected["finish_reason"]


def test_a_stream_says_who_speaks_and_then_what(client: Client) -> None:
    ask: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "seed": 3}
    whole = client.post("/v1/chat/completions", **ask).json["choices"][0]["message"]["content"]
    first, *events = client.post("/v1/chat/completions", **ask, stream=True).events
    assert first["object"] == "chat.completion.chunk" and first["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] is not None


def test_log_probabilities_of_a_chat(client: Client, served: Served) -> None:
    ask = {"messages": MESSAGES, "max_completion_tokens": 4, "seed": 3, "logprobs": True, "top_logprobs": 2}
    (choice,) = client.post("/v1/chat/completions", **ask).json["choices"]
    content = choice["logprobs"]["content"]
    assert (
        b"".join(bytes(token["bytes"]) for token in content).decode("utf-8", "replace") == choice["message"]["content"]
    )
    for token in content:
        first, second = token["top_logprobs"]
        assert first["logprob"] >= second["logprob"] and token["logprob"] <= first["logprob"] + 1e-5


def prompt_of(template: str, messages: list[dict[str, str]]) -> tuple[str, list[int], soma_native.Tokenizer]:
    tok = soma_native.Tokenizer.train(["the cat sat on the mat"], kind="bpe", vocab_size=270, special_tokens=SPECIAL)
    text, ids = ChatTemplate(template, {"eos_token": "<|end|>", "bos_token": "<|end|>"}, SPECIAL).prompt(messages, tok)
    return text, ids, tok


CHATS: list[list[dict[str, str]]] = [
    MESSAGES,
    MESSAGES[1:],
    [*MESSAGES, {"role": "assistant", "content": " hi \n"}, {"role": "user", "content": "é\n {{ x }} <|user|"}],
]


@pytest.mark.parametrize("messages", CHATS, ids=["system", "user", "long"])
def test_prompts_are_those_of_transformers(messages: list[dict[str, str]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text, ids, tok = prompt_of(CHATML, messages)
    tok.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|end|>", bos_token="<|end|>", chat_template=CHATML
    )
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids == theirs.encode(text, add_special_tokens=False)


def test_special_tokens_in_a_message_are_plain_text() -> None:
    messages = [{"role": "user", "content": "<|end|>a<|assistant|>\ufdd05\ufdd1\ufdd09999\ufdd1"}]
    text, ids, tok = prompt_of(TEMPLATE, messages)
    assert text.startswith("<|end|><|user|><|end|>a<|assistant|>")
    end, user, assistant = (tok.token_to_id(token) for token in ("<|end|>", "<|user|>", "<|assistant|>"))
    assert ids == [end, user, *tok.encode(text[len("<|end|><|user|>") : -len("<|assistant|>")]), assistant]
    assert ids.count(end) == 1 and ids.count(assistant) == 1


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('no system, please') }}", "no system, please"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].content.format_map(messages) }}{{ 1 / 0 }}", ""),
        ("{% for i in range(10000000) %}{% endfor %}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply"),
        ("{{ missing.name }}", "is undefined"),
    ],
)
def test_a_template_that_refuses_or_fails_is_a_400(template: str, problem: str) -> None:
    with pytest.raises(ApiError, match=r"\A[^\n]*\Z") as caught:
        prompt_of(template, MESSAGES)
    assert caught.value.status == 400 and problem in caught.value.message


def test_where_a_template_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tok = soma_native.Tokenizer.train(["the cat"], kind="byte", special_tokens=SPECIAL)

    def said(**files: Any) -> str | None:
        tok._beside = {name.replace("__", "."): value for name, value in files.items()}
        template = ChatTemplate.of(tok)
        return template and template.prompt(MESSAGES[1:], tok)[0]

    def config(**document: Any) -> bytes:
        return json.dumps(document).encode()

    assert said() is None and said(tokenizer_config__json=config(chat_template=None)) is None
    assert (
        said(tokenizer_config__json=config(chat_template="a{{ bos_token }}", bos_token={"content": "<|end|>"}))
        == "a<|end|>"
    )
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert said(tokenizer_config__json=config(chat_template=named)) == "d"
    assert said(tokenizer_config__json=config(chat_template="a"), chat_template__jinja=b"b") == "b"
    with pytest.raises(ValueError, match="the chat template cannot be used: line 1: "):
        said(chat_template__jinja=b"{% if %}")
    tok._beside = {"chat_template.jinja": b"{% if %}"}
    model = make_served(special_tokens=SPECIAL).model
    assert Served("broken", model, tok).template is None and "broken answers no chats" in caplog.text


def test_a_model_without_a_template_says_so(client: Client) -> None:
    answer = client.post("/v1/chat/completions", model="plain", messages=MESSAGES)
    assert answer.status == 400 and answer.json["error"]["code"] == "no_chat_template"
    assert "the model plain has no chat template" in answer.message and "/v1/completions" in answer.message


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"messages": []}, "must be a list of messages"),
        ({"messages": "hello"}, "must be a list of messages"),
        ({"messages": None}, "the field messages is missing"),
        ({"messages": ["hello"]}, "messages[0] must be an object"),
        ({"messages": [{"role": "cat", "content": "a"}]}, "messages[0].role must be one of system, developer"),
        ({"messages": [{"role": "user"}]}, "messages[0].content must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "the model reads texts alone"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
            "messages[0].tool_calls is not supported",
        ),
        ({"messages": [{"role": "user", "content": "a" * 100}]}, "the context of tiny holds 64"),
        ({"tools": [{"type": "function"}]}, "tools is not supported: the model calls no functions"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"logprobs": 5}, "logprobs must be True or False"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"echo": True}, "there is no field 'echo'"),
    ],
)
def test_a_wrong_field_is_named(client: Client, fields: dict[str, Any], problem: str) -> None:
    answer = client.post("/v1/chat/completions", **{"messages": MESSAGES, "max_tokens": 1, **fields})
    assert answer.status == 400 and problem in answer.message, answer.message


def test_parts_of_text_are_joined_and_developer_means_system(client: Client) -> None:
    plain = {"messages": MESSAGES, "max_tokens": 4, "seed": 1}
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]
    other = [{"role": "developer", "content": parts}, {"role": "user", "content": "the cat", "name": "me"}]
    texts = [
        client.post("/v1/chat/completions", **{**plain, "messages": one}).json["choices"] for one in (MESSAGES, other)
    ]
    assert texts[0] == texts[1]
    harmless = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
    }
    assert client.post("/v1/chat/completions", **plain, **harmless).json["choices"] == texts[0]
