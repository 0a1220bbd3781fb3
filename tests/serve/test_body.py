"""The body of a request: strict JSON with limits, and fields that are taken by name or refused."""

from __future__ import annotations

import pytest

from soma_native._checks import integer
from soma_native.serve.body import Fields, parse, text
from soma_native.serve.errors import ApiError


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no body"),
        (b" \n", "no body"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xff{}", "not UTF-8: byte 0 is wrong"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": %s}' % (b"9" * 5000), "not valid JSON: a number has 5000 digits"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested too deeply"),
        (b"[" * 10_000, "nested too deeply"),
        (b"null", "must be an object, not null"),
        (b"[1]", "must be an object, not [1]"),
        (b'"text"', "must be an object"),
    ],
)
def test_what_is_no_object_of_json_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ApiError, match=r"\A[^\n]*\Z") as caught:
        parse(data)
    assert caught.value.status == 400 and problem in caught.value.message


def test_a_body_is_parsed() -> None:
    assert parse('{"a": [1, {"é": null}]}'.encode()) == {"a": [1, {"é": None}]}


def test_fields_are_taken_once_and_the_rest_is_refused() -> None:
    fields = Fields({"n": 3, "seed": None, "x": 1})
    assert fields.take("n", integer) == 3 and fields.take("seed", integer, 7) == 7
    assert fields.some(["a", "b"]) == {}
    with pytest.raises(ApiError, match="there is no field 'x'; there are a, b, n, seed") as caught:
        fields.close()
    assert (caught.value.param, caught.value.code) == ("x", "unknown_parameter")
    fields.ignore("x")
    fields.close()


def test_names_of_one_field() -> None:
    assert Fields({"prompt": "a"}).first(("text", "prompt"), text) == "a"
    assert Fields({"text": ""}).first(("text", "prompt"), text) == ""
    with pytest.raises(ApiError, match="text and prompt mean the same"):
        Fields({"text": "a", "prompt": "b"}).first(("text", "prompt"), text)
    with pytest.raises(ApiError, match="the field text is missing"):
        Fields({}).first(("text", "prompt"), text)


def test_a_field_that_would_change_the_answer_is_refused_unless_it_asks_for_nothing() -> None:
    reasons, harmless = {"tools": "the model calls no functions"}, {"tools": ([],)}
    Fields({"tools": []}).refuse(reasons, harmless)
    with pytest.raises(ApiError, match="tools is not supported: the model calls no functions") as caught:
        Fields({"tools": [{}]}).refuse(reasons, harmless)
    assert caught.value.param == "tools"


def test_half_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(TypeError, match="half of a surrogate pair"):
        text("prompt", "\ud800")
    with pytest.raises(TypeError, match="must be a text, got 5"):
        text("prompt", 5)
