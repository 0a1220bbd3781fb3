"""The official client of OpenAI, unchanged: texts, streams, chats, embeddings, models, errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.serving import TEMPLATE, make_served, serving
from soma_native.serve.limits import Limits

openai = pytest.importorskip("openai")
KEY = "a key"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    served = make_served(special_tokens=("<|end|>", "<|user|>", "<|assistant|>"), template=TEMPLATE)
    with serving(served, api_key=KEY) as client:
        yield f"{client.url}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_texts(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": ["the cat", "a"], "n": 2, "max_tokens": 6, "seed": 1, "logprobs": 2, "echo": True}
    answer = client.completions.create(**ask)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.usage.completion_tokens == 24
    assert answer.choices[0].text.startswith("the cat") and len(answer.choices[0].logprobs.tokens) == 13
    texts = [""] * 4
    for event in client.completions.create(**ask, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [choice.text for choice in answer.choices]


def test_chats(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    ask = {"model": "tiny", "messages": messages, "max_completion_tokens": 6, "seed": 1}
    answer = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and len(choice.logprobs.content[0].top_logprobs) == 3
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    *events, last = list(stream)
    assert "".join(event.choices[0].delta.content or "" for event in events) == choice.message.content
    assert last.usage.completion_tokens == answer.usage.completion_tokens


def test_leaving_a_stream(client: openai.OpenAI) -> None:
    with client.completions.create(model="tiny", prompt="a", max_tokens=4000, stream=True) as stream:
        assert next(iter(stream)).object == "text_completion"


def test_embeddings_and_models(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="tiny", input=["the cat", "a"])
    floats = client.embeddings.create(model="tiny", input=["the cat", "a"], encoding_format="float")
    for one, other in zip(answer.data, floats.data, strict=True):
        assert len(one.embedding) == 16 and one.embedding == pytest.approx(other.embedding)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "soma_native"


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="max_tokens must be from 0") as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=-1)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        messages = [{"role": "user", "content": "the cat"}]
        client.chat.completions.create(model="tiny", messages=messages, tools=[{"type": "function"}])
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
            stranger.models.list()


def test_the_client_hears_that_a_stream_failed() -> None:
    limits = Limits(answer_seconds=0.1, max_tokens=1_000_000_000)
    with serving(make_served(limits=limits)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            stream = client.completions.create(model="tiny", prompt="a", max_tokens=1_000_000_000, stream=True)
            with pytest.raises(openai.APIError, match=r"longer than 0\.1 seconds"):
                list(stream)
