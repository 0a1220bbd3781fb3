"""Requests of all kinds: every answer is a success or one clear line, and the server goes on. A bounded run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.serving import TEMPLATE, Client, make_served, serving
from soma_native.serve.limits import Limits

# A request that is right but for some fields, so that the fuzz gets behind the first check.
RIGHT: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "the cat"},
    "/tokenize": {"text": "the cat"},
    "/detokenize": {"tokens": [1, 2]},
    "/score": {"text": "the cat"},
}
PATHS = tuple(RIGHT)
NAMES = {name for fields in RIGHT.values() for name in fields} | {
    *("model", "content", "ids", "max_completion_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "n"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "echo", "stop", "seed", "logit_bias", "top", "special"),
    *("dimensions", "encoding_format", "tools", "best_of", "user", "min_p", "heal_prompt"),
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["tiny", "the cat", "user", "auto", "base64", "\ud800", "<|end|>", "\x00", "\ufdd00\ufdd1"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "1", "include_usage", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    limits = Limits(max_tokens=20, max_texts=8)
    with serving(make_served(special_tokens=("<|end|>",), template=TEMPLATE, limits=limits)) as client:
        yield client


def is_clean(client: Client, path: str, body: bytes) -> None:
    answer = client.post(path, body)
    assert answer.status in (200, 400, 404), answer.body
    if answer.status != 200:
        assert answer.message
    elif answer.headers["content-type"] != "application/json":
        assert answer.events


@settings(max_examples=80)
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(sorted(NAMES)), VALUES, max_size=4), st.booleans())
def test_any_fields(client: Client, path: str, fields: dict[str, Any], right: bool) -> None:
    is_clean(client, path, json.dumps({**RIGHT[path], **fields} if right else fields).encode())


@settings(max_examples=40)
@given(st.sampled_from(PATHS), st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body(client: Client, path: str, body: bytes) -> None:
    is_clean(client, path, body)


@settings(max_examples=30)
@given(st.sampled_from(PATHS), st.data())
def test_a_body_that_was_damaged(client: Client, path: str, data: st.DataObject) -> None:
    body = bytearray(json.dumps(RIGHT[path]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    is_clean(client, path, bytes(body))


def test_the_server_goes_on(client: Client) -> None:
    assert client.get("/health").status == 200 and client.metric("sequences_running") == 0
    assert client.metric("requests_total", status="500") == 0
