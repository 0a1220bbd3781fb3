"""/v1/completions: the texts of Generator, whole and streamed, with log-probabilities, places and numbers of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import soma_native
from helpers.serving import Client, make_served, serving
from soma_native.serve.models import Served

ASK: dict[str, Any] = {"prompt": "the cat", "max_tokens": 12, "seed": 5}


@pytest.fixture(scope="module")
def served() -> Served:
    return make_served()


@pytest.fixture(scope="module")
def words() -> Served:
    return make_served("words", kind="word", special_tokens=("<UNK>", "<EOS>"))


@pytest.fixture(scope="module")
def letters() -> Served:
    return make_served("letters", kind="char")


@pytest.fixture(scope="module")
def client(served: Served, words: Served, letters: Served) -> Iterator[Client]:
    with serving(served, words, letters) as client:
        yield client


def generated(served: Served, prompt: str, **options: Any) -> str:
    """The continuation that the generator gives."""
    text = soma_native.Generator(served.model, served.tok).generate(prompt, **options)
    return text[len(prompt) :]


def test_a_text_is_that_of_the_generator(client: Client, served: Served, words: Served) -> None:
    for one in (served, words):
        answer = client.post("/v1/completions", model=one.name, **ASK)
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"
        document = answer.json
        assert document["object"] == "text_completion" and document["model"] == one.name
        (choice,) = document["choices"]
        assert choice["text"] == generated(one, "the cat", max_tokens=12, seed=5)
        assert choice["finish_reason"] == "length" and choice["index"] == 0 and choice["logprobs"] is None
        prompt = len(one.tok.encode("the cat"))
        usage = {"prompt_tokens": prompt, "completion_tokens": 12, "total_tokens": prompt + 12}
        assert document["usage"] == usage


def test_every_rule_of_sampling_is_used(client: Client, served: Served) -> None:
    rules = {"temperature": 1.3, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.2}
    for name, value in {**rules, "temperature": 0}.items():
        answer = client.post("/v1/completions", **ASK, **{name: value})
        assert answer.json["choices"][0]["text"] == generated(served, "the cat", max_tokens=12, seed=5, **{name: value})
    both = client.post("/v1/completions", **ASK, **rules).json["choices"][0]["text"]
    assert both == generated(served, "the cat", max_tokens=12, seed=5, **rules)


def test_a_stream_gives_the_same_text(client: Client, served: Served) -> None:
    events = client.post("/v1/completions", **ASK, stream=True).events
    assert {event["object"] for event in events} == {"text_completion"} and len({event["id"] for event in events}) == 1
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == generated(served, "the cat", max_tokens=12, seed=5)
    assert [choice["finish_reason"] for choice in choices][-1] == "length"
    assert not any(choice["finish_reason"] for choice in choices[:-1]) and not any("usage" in event for event in events)


def test_a_stream_ends_with_the_numbers_of_tokens_where_asked(client: Client) -> None:
    *events, last = client.post("/v1/completions", **ASK, stream=True, stream_options={"include_usage": True}).events
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 12
    assert all(event["usage"] is None for event in events)


def test_several_prompts_and_several_texts_of_each(client: Client, served: Served) -> None:
    ask = {"prompt": ["the cat", "a"], "n": 2, "max_tokens": 5, "seed": 3}
    choices = client.post("/v1/completions", **ask).json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in choices]
    assert texts[0] == generated(served, "the cat", max_tokens=5, seed=3)
    assert texts[2] == generated(served, "a", max_tokens=5, seed=3)
    assert texts[0] != texts[1], "each text of a prompt has a seed of its own"
    streamed = [""] * 4
    for event in client.post("/v1/completions", **ask, stream=True).events:
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert streamed == texts


def test_a_stop_text_ends_the_text_and_is_left_out(client: Client, served: Served) -> None:
    whole = generated(served, "the cat", max_tokens=40, seed=5, temperature=1.5)
    stop = whole[6:8]
    ask = {"prompt": "the cat", "max_tokens": 40, "seed": 5, "temperature": 1.5, "stop": [stop], "logprobs": 1}
    (choice,) = client.post("/v1/completions", **ask).json["choices"]
    assert choice["text"] == whole[: whole.index(stop)] and choice["finish_reason"] == "stop"
    assert all(place < len(choice["text"]) for place in choice["logprobs"]["text_offset"]), "no token of the stop text"
    events = client.post("/v1/completions", **ask, stream=True).events
    tokens = [token for event in events for token in event["choices"][0]["logprobs"]["tokens"]]
    assert tokens == choice["logprobs"]["tokens"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("stream", [False, True])
def test_words_that_the_model_does_not_know_are_a_warning(
    client: Client, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ask = {"model": "words", "prompt": ["the cat zork", "Blup the zork"], "max_tokens": 2, "stream": stream}
    said = "not in the vocabulary, read as <UNK>: zork, Blup"
    answer = client.post("/v1/completions", **ask)
    answers = answer.events if stream else [answer.json]
    assert [one.get("warnings") for one in answers] == [[said]] + [None] * (len(answers) - 1)
    client.post("/v1/completions", **ask)
    assert sum("zork" in message for message in caplog.messages) <= 1, "the log names a word once"
    assert "warnings" not in client.post("/v1/completions", **{**ask, "prompt": "the cat", "stream": False}).json


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_model(client: Client, letters: Served, stream: bool) -> None:
    served = letters
    answer = client.post("/v1/completions", **ASK, model="letters", logprobs=3, stream=stream)
    parts = [event["choices"][0] for event in answer.events] if stream else answer.json["choices"]
    text = "".join(part["text"] for part in parts)
    found = {key: [one for part in parts for one in part["logprobs"][key]] for key in parts[0]["logprobs"]}
    ids = served.tok.encode("the cat" + text)
    begin = len(served.tok.encode("the cat"))
    expected = log_softmax(served.model.forward(ids[:-1]))[begin - 1 :]
    assert len(found["tokens"]) == len(ids) - begin == len(expected)
    for row, token, logprob, top in zip(
        expected, ids[begin:], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        assert logprob == pytest.approx(row[token], abs=1e-4) and top[served.vocabulary.text(token)] == logprob
        assert len(top) == (3 if token in np.argsort(-row, kind="stable")[:3] else 4), "the drawn one is always there"
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-4)
    assert "".join(found["tokens"]) == text and found["text_offset"] == list(range(len(text)))


def test_tokens_that_are_no_characters_have_places_too(client: Client, served: Served) -> None:
    (choice,) = client.post("/v1/completions", **{**ASK, "max_tokens": 40}, logprobs=0).json["choices"]
    said, text = choice["logprobs"], choice["text"]
    raw = b"".join(
        bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()
        for token in said["tokens"]
    )
    assert any(token.startswith("bytes:") for token in said["tokens"]) and raw.decode("utf-8", "replace") == text
    assert said["text_offset"] == sorted(said["text_offset"]) and said["text_offset"][-1] < len(text)
    for token, place in zip(said["tokens"], said["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[place:].lstrip("\ufffd").startswith(token)


def test_log_probabilities_go_on_when_the_context_is_full(client: Client, served: Served) -> None:
    ask = {"prompt": "t", "max_tokens": 150, "seed": 1, "logprobs": 0}
    (choice,) = client.post("/v1/completions", **ask).json["choices"]
    assert served.context < 150 and len(choice["logprobs"]["token_logprobs"]) == 150
    assert all(-50 < logprob < 0 for logprob in choice["logprobs"]["token_logprobs"])


def test_words_have_their_places(client: Client) -> None:
    ask = {"model": "words", "prompt": "the cat", "max_tokens": 6, "seed": 2, "logprobs": 0}
    (choice,) = client.post("/v1/completions", **ask).json["choices"]
    said = choice["logprobs"]
    text = choice["text"]
    assert said["tokens"] == text.split() and text.startswith(" ")
    for token, begin, end in zip(
        said["tokens"], said["text_offset"], [*said["text_offset"][1:], len(text)], strict=True
    ):
        assert text[begin:end] == f" {token}"


def test_a_prompt_that_ends_inside_a_word_is_continued(client: Client, words: Served) -> None:
    ask = {"model": "words", "prompt": "the c", "max_tokens": 4, "seed": 2, "logprobs": 20}
    for echo in (False, True):
        (choice,) = client.post("/v1/completions", **ask, echo=echo).json["choices"]
        said, text = choice["logprobs"], choice["text"]
        assert text[5 * echo :] == generated(words, "the c", max_tokens=4, seed=2)
        tokens, places = said["tokens"][-4:], said["text_offset"][-4:]
        assert tokens[0] == "cat" and text[places[0] : places[1]] == "at" and places[0] == 5 * echo
        assert text[places[1] : places[2]] == f" {tokens[1]}" and text[places[3] :] == f" {tokens[3]}"
        assert len(said["top_logprobs"][-1]) == words.model.config.vocab_size, "no more than there are"
    whole = client.post("/v1/completions", **ask, heal_prompt=False).json["choices"][0]["text"]
    assert whole.startswith(" ")


def test_echo_begins_with_the_prompt_and_its_log_probabilities(client: Client, served: Served) -> None:
    ask = {"prompt": "the cat", "echo": True, "logprobs": 2, "max_tokens": 0}
    answer = client.post("/v1/completions", **ask).json
    (choice,) = answer["choices"]
    assert choice["text"] == "the cat" and choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0
    said, ids = choice["logprobs"], served.tok.encode("the cat")
    expected = log_softmax(served.model.forward(ids))
    assert said["token_logprobs"][0] is None and said["top_logprobs"][0] is None
    assert said["token_logprobs"][1:] == pytest.approx(
        [expected[i, token] for i, token in enumerate(ids[1:])], abs=1e-4
    )
    assert said["text_offset"] == list(range(7)) and said["tokens"] == list("the cat")
    more = client.post("/v1/completions", **{**ask, "max_tokens": 3, "seed": 1}).json["choices"][0]
    assert more["text"].startswith("the cat") and more["logprobs"]["tokens"][:7] == list("the cat")
    assert more["logprobs"]["text_offset"][7] == 7


def test_a_prompt_may_be_tokens(client: Client, served: Served) -> None:
    ids = served.tok.encode("the cat")
    text = client.post("/v1/completions", **{**ASK, "prompt": ids}).json["choices"][0]["text"]
    assert text == generated(served, "the cat", max_tokens=12, seed=5)
    texts = client.post("/v1/completions", **{**ASK, "prompt": [ids, ids]}).json["choices"]
    assert [choice["text"] for choice in texts] == [text, text]


def test_a_request_without_a_prompt_starts_a_text(client: Client, served: Served) -> None:
    for ask in ({}, {"prompt": ""}):
        (choice,) = client.post("/v1/completions", max_tokens=4, seed=1, **ask).json["choices"]
        assert choice["text"] == generated(served, "", max_tokens=4, seed=1)


def test_fields_that_change_nothing_are_accepted(client: Client) -> None:
    harmless = {
        "user": "me",
        "best_of": 1,
        "suffix": "",
        "stop": None,
        "logit_bias": None,
        "n": 1,
        "metadata": {"a": "b"},
    }
    assert client.post("/v1/completions", **ASK, **harmless).status == 200


@pytest.mark.parametrize(
    ("fields", "param", "problem"),
    [
        ({"max_tokens": -1}, "max_tokens", "must be from 0 to 4096, got -1"),
        ({"max_tokens": 5000}, "max_tokens", "must be from 0 to 4096"),
        ({"max_tokens": "5"}, "max_tokens", "must be an integer, got '5'"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "give one"),
        ({"temperature": -1}, "temperature", "must be at least 0"),
        ({"temperature": 1e999}, None, "not valid JSON"),
        ({"top_p": 0}, "top_p", "must be above 0"),
        ({"n": 0}, "n", "must be from 1"),
        ({"n": 129}, "n", "must be from 1 to 128"),
        ({"n": 65, "prompt": ["a", "b"]}, "n", "asks for 130 texts"),
        ({"prompt": ["a"] * 129}, "prompt", "has 129 texts"),
        ({"prompt": 5}, "prompt", "must be a text"),
        ({"prompt": [[]]}, "prompt[0]", "must be a text"),
        ({"prompt": ["a", 5]}, "prompt[1]", "must be a text"),
        ({"prompt": [300]}, "prompt[0]", "must be from 0 to 255, got 300"),
        ({"prompt": [True]}, "prompt", "must be an integer"),
        ({"prompt": "x" * 65}, "prompt", "has 65 tokens; the context of tiny holds 64"),
        ({"logprobs": 21}, "logprobs", "must be from 0 to 20"),
        ({"logprobs": True}, "logprobs", "must be an integer"),
        ({"logprobs": 20, "max_tokens": 4096, "n": 4}, "logprobs", "ask for less, or for a stream"),
        ({"stop": ["a", ""]}, "stop", "must not hold an empty text"),
        ({"stop": 5}, "stop", "must be a text"),
        ({"stop": ["a"] * 33}, "stop", "at most 32 texts"),
        ({"seed": 0.5}, "seed", "must be an integer"),
        ({"seed": 2**64}, "seed", "must be from"),
        ({"stream": 1}, "stream", "must be True or False"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"stream": True, "stream_options": {"more": 1}}, "more", "there is no field 'more'"),
        ({"echo": "yes"}, "echo", "must be True or False"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "numbers of tokens"),
        ({"logit_bias": [1]}, "logit_bias", "must be an object"),
        ({"suffix": "end"}, "suffix", "is not supported"),
        ({"best_of": 2}, "best_of", "is not supported"),
        ({"max_length": 5}, "max_length", "there is no field 'max_length'"),
        ({"\ud800": 5}, None, "there is no field"),
    ],
)
def test_a_wrong_field_is_named(client: Client, fields: dict[str, Any], param: str | None, problem: str) -> None:
    answer = client.post("/v1/completions", **{**ASK, **fields})
    assert answer.status == 400 and problem in answer.message, answer.message
    if param is not None:
        assert answer.json["error"]["param"].split("[")[0] == param.split("[")[0]


def test_a_model_that_is_not_there(client: Client) -> None:
    answer = client.post("/v1/completions", **ASK, model="gpt-4")
    assert answer.status == 404 and answer.json["error"]["code"] == "model_not_found"
    assert "there is no model 'gpt-4' here; there are tiny, words, letters" in answer.message


def test_a_seed_may_have_a_sign(client: Client, served: Served) -> None:
    text = client.post("/v1/completions", **{**ASK, "seed": -1}).json["choices"][0]["text"]
    assert text == generated(served, "the cat", max_tokens=12, seed=2**64 - 1)


def test_a_character_that_is_not_in_the_vocabulary(client: Client) -> None:
    answer = client.post("/v1/completions", model="letters", prompt="xyz", max_tokens=1)
    assert answer.status == 400 and "'x'" in answer.message
