"""The endpoints beside texts: models, embeddings, scores, tokens, the state, the page's files."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import numpy as np
import pytest

import soma_native
from helpers.serving import Client, make_served, serving
from soma_native.serve import static
from soma_native.serve.models import Served, folder_sampling


@pytest.fixture(scope="module")
def served() -> Served:
    return make_served(special_tokens=("<|end|>",))


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with serving(served, make_served("other", kind="word", special_tokens=("<UNK>",))) as client:
        yield client


def test_models_say_what_a_program_needs(client: Client, served: Served) -> None:
    document = client.get("/v1/models").json
    assert document["object"] == "list" and [card["id"] for card in document["data"]] == ["tiny", "other"]
    card = client.get("/v1/models/tiny").json
    assert card == document["data"][0] and card["object"] == "model" and card["owned_by"] == "soma_native"
    assert (card["max_model_len"], card["tokenizer"], card["chat"]) == (64, "byte", False)
    memory = soma_native.Engine.memory_of(served.model, served.engine.max_sequences)
    assert (card["max_sequences"], card["memory_bytes"]) == (served.engine.max_sequences, memory)
    assert card["parameters"] == served.model.num_parameters and card["special_tokens"] == ["<|end|>"]
    assert (
        card["sampling"]["repetition_penalty"] == 1.0 and document["data"][1]["sampling"]["repetition_penalty"] == 1.15
    )
    missing = client.get("/v1/models/none")
    assert missing.status == 404 and missing.json["error"]["code"] == "model_not_found"


def test_sampling_defaults_are_the_folder_s(caplog: pytest.LogCaptureFixture) -> None:
    served = make_served()
    model = served.model
    model._settings = {"generation_config.json": {"temperature": 0.3, "top_k": -5, "max_new_tokens": 7, "top_p": None}}
    found = folder_sampling(model, served.tok)
    assert (found["temperature"], found["max_tokens"]) == (0.3, 7)
    assert (found["top_k"], found["top_p"]) == (50, 0.95) and "top_k" in caplog.text
    model._settings["generation_config.json"]["do_sample"] = False
    assert folder_sampling(model, served.tok)["temperature"] == 0
    one = Served("one", model, served.tok)
    generator = soma_native.Generator(model, served.tok)
    with serving(one) as client:
        (choice,) = client.post("/v1/completions", prompt="the", seed=1).json["choices"]
        assert "the" + choice["text"] == generator.generate("the", max_tokens=7, temperature=0)
        (choice,) = client.post("/v1/completions", prompt="the", seed=1, temperature=2, max_tokens=9).json["choices"]
        assert "the" + choice["text"] == generator.generate("the", max_tokens=9, temperature=2, seed=1)


def test_embeddings_are_those_of_the_generator(client: Client, served: Served) -> None:
    expected = [served.generator.embed(text) for text in ("the cat", "a")]
    document = client.post("/v1/embeddings", input=["the cat", "a"]).json
    for item, vector in zip(document["data"], expected, strict=True):
        assert item["object"] == "embedding" and np.array(item["embedding"], np.float32).tolist() == vector.tolist()
    assert document["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    (item,) = client.post("/v1/embeddings", input="a", encoding_format="base64").json["data"]
    assert np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tolist() == expected[1].tolist()
    (item,) = client.post("/v1/embeddings", input=served.tok.encode("a"), dimensions=16).json["data"]
    assert item["embedding"] == pytest.approx(expected[1].tolist())


def test_scores_are_those_of_the_generator(client: Client, served: Served) -> None:
    expected = served.generator.score("the cat", top=3)
    document = client.post("/score", text="the cat", top=3).json
    assert document["logprobs"] == expected.logprobs and document["ranks"] == expected.ranks
    assert document["ids"] == expected.tokens and document["tokens"] == list("the cat")
    assert document["offsets"] == [list(place) for place in expected.offsets]
    tops = [[(one["id"], one["logprob"]) for one in place] for place in document["top"]]
    assert tops == [list(place) for place in expected.top]
    assert document["top"][1][0]["token"] == served.vocabulary.text(tops[1][0][0])
    assert document["bits_per_byte"] == expected.bits_per_byte and document["total"] == expected.total


def test_tokens_there_and_back(client: Client, served: Served) -> None:
    text = "é <|end|>"
    document = client.post("/tokenize", text=text).json
    assert document["tokens"] == served.tok.encode(text) and document["count"] == len(document["tokens"])
    assert document["texts"][:3] == ["bytes:\\xc3", "bytes:\\xa9", " "]
    assert document["offsets"][:3] == [[0, 1], [0, 1], [1, 2]] and document["max_model_len"] == 64
    special = client.post("/tokenize", content=text, special=True, add_special_tokens=False).json
    assert special["tokens"] == served.tok.encode(text, "all") and special["texts"][-1] == "<|end|>"
    assert client.post("/detokenize", tokens=document["tokens"]).json["text"] == text
    assert client.post("/detokenize", tokens=[]).json["text"] == ""
    assert client.post("/tokenize", prompt="", model="other").json["tokens"] == []


@pytest.mark.parametrize(
    ("path", "fields", "problem"),
    [
        ("/v1/embeddings", {}, "the field input is missing"),
        ("/v1/embeddings", {"input": ""}, "has no token"),
        ("/v1/embeddings", {"input": []}, "must be a text"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "must be one of float, base64"),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, "must be from 16 to 16, got 8"),
        ("/score", {}, "the field text is missing"),
        ("/score", {"text": "a"}, "only one token"),
        ("/score", {"text": "ab", "top": 21}, "must be from 0 to 20"),
        ("/score", {"text": "x" * 13_000, "top": 20}, "needs 273000 log-probabilities; an answer may have 262144"),
        ("/tokenize", {"text": 5}, "must be a text"),
        ("/tokenize", {"text": "a", "prompt": "b"}, "text and prompt mean the same"),
        ("/tokenize", {"text": "a", "add_special_tokens": True}, "add_special_tokens is not supported"),
        ("/detokenize", {"tokens": "abc"}, "must be a list of tokens"),
        ("/detokenize", {"tokens": [257]}, "must be from 0 to 256, got 257"),
        ("/detokenize", {"tokens": [1], "more": 1}, "there is no field 'more'"),
    ],
)
def test_a_wrong_field_is_named(client: Client, path: str, fields: dict[str, object], problem: str) -> None:
    answer = client.post(path, **fields)
    assert answer.status == 400 and problem in answer.message, answer.message


def test_a_path_or_method_that_is_not_there(client: Client) -> None:
    for answer, status in ((client.get("/v1/files"), 404), (client.post("/health"), 405), (client.get("/score"), 405)):
        assert answer.status == status and answer.message


def test_health_and_metrics(client: Client) -> None:
    assert client.get("/health").json == {"status": "ok", "models": ["tiny", "other"]}
    before = client.metric("generated_tokens_total", model="tiny")
    client.post("/v1/completions", prompt="a", max_tokens=5, seed=1)
    assert client.metric("generated_tokens_total", model="tiny") == before + 5
    assert client.metric("requests_total", path="/v1/completions", status="200") > 0
    assert client.metric("first_token_seconds_count", model="tiny") > 0
    assert client.metric("requests_in_flight") == 1, "the question itself"
    lines = client.get("/metrics").body.decode().splitlines()
    sample = re.compile(r'soma_[a-z_]+(\{([a-z]+="[^"]*",?)+\})? [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_files_of_the_page_are_served_and_nothing_else(client: Client) -> None:
    for name, (content, kind) in static.page_files().items():
        answer = client.get(f"/page/{name}")
        assert answer.body == content and answer.headers["content-type"].startswith(kind)
    for path in ("/page/", "/page/../models.py", "/page/%2e%2e/models.py", "/page/..%2fmodels.py", "/page/none.js"):
        assert client.get(path).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "problem"),
    [
        ("POST", "/v1/responses", 404, "there is no '/v1/responses' here; there are /, /health, /metrics, /v1/models"),
        ("GET", "/a%0Ab", 404, r"there is no '/a\nb' here"),
        ("GET", "/v1/completions", 405, "'/v1/completions' takes POST, not GET"),
        ("PUT", "/health", 405, "'/health' takes GET, HEAD, not PUT"),
    ],
)
def test_a_wrong_path_or_method_is_told_what_there_is(
    client: Client, method: str, path: str, status: int, problem: str
) -> None:
    answer = client.send(method, path, None, {})
    assert answer.status == status and problem in answer.message
    assert (answer.headers["allow"] or "") == ("" if status == 404 else problem.split("takes ")[1].split(", not")[0])


def test_many_inputs_are_embedded_and_too_many_refused(client: Client, served: Served) -> None:
    texts = ["the cat" + " sat" * (number % 7) for number in range(300)]
    data = client.post("/v1/embeddings", input=texts).json["data"]
    assert [item["index"] for item in data] == list(range(300))
    for item in (0, 31, 32, 299):
        assert data[item]["embedding"] == pytest.approx(served.generator.embed(texts[item]).tolist(), rel=1e-6)
    answer = client.post("/v1/embeddings", input=["a"] * 2049)
    assert answer.status == 400 and answer.message == "input has 2049 texts; a request may have 2048: ask several times"


def test_tokens_are_embedded_as_they_are() -> None:
    """The text of a special token is another token."""
    served = make_served(kind="word", special_tokens=("<UNK>",))
    ids = [served.tok.token_to_id("<UNK>"), *served.tok.encode("the cat")]
    with serving(served) as client:
        answer = client.post("/v1/embeddings", input=[ids]).json
    hidden = served.model.hidden(np.array([ids], np.int32))[0]
    assert answer["data"][0]["embedding"] == pytest.approx(hidden.mean(axis=0).tolist(), rel=1e-4, abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize(("given", "name"), [("", "input"), (["a", ""], "input[1]")])
def test_an_input_without_tokens_is_named(client: Client, given: object, name: str) -> None:
    answer = client.post("/v1/embeddings", input=given)
    assert answer.status == 400 and answer.json["error"]["param"] == name
    assert answer.message == f"{name} has no token of the vocabulary: ''"
