"""Who may ask: names of the server, pages of other origins, keys; and the headers of every answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.serving import Client, make_served, serving
from soma_native.errors import ArgumentError
from soma_native.serve.guard import Guard
from soma_native.serve.metrics import Metrics


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving(make_served(), allow_origins=["https://ours.example", "http://[::1]:3000"]) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "127.0.0.1:8080", "127.9.9.9", "[::1]:5", "LOCALHOST", "ours.example"]
)
def test_a_local_server_answers_to_its_names(client: Client, host: str) -> None:
    assert client.get("/health", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[", "a@localhost", "0x7f.1"],
)
def test_a_local_server_answers_to_no_other_name(client: Client, host: str) -> None:
    answer = client.get("/health", Host=host)
    assert answer.status == 403 and "does not answer to the name" in answer.message


def test_a_server_of_the_network_answers_to_any_name() -> None:
    with serving(make_served(), local=False) as client:
        assert client.get("/health", Host="machine.example").status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://ours.example", "https://ours.example:8443", "//["]
)
def test_pages_of_other_origins_are_refused(client: Client, origin: str) -> None:
    for answer in (client.get("/health", Origin=origin), client.send("POST", "/tokenize", b"{}", {"Origin": origin})):
        assert answer.status == 403 and "--allow-origin" in answer.message
        assert "access-control-allow-origin" not in answer.headers
    assert client.send("OPTIONS", "/tokenize", None, {"Origin": origin, **PREFLIGHT}).status == 403


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def test_pages_of_allowed_origins_may_ask_and_read(client: Client) -> None:
    headers = {"Origin": "https://ours.example"}
    asked = client.send(
        "OPTIONS", "/v1/completions", None, {**headers, **PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    )
    assert asked.status == 204 and asked.headers["access-control-allow-origin"] == "https://ours.example"
    assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-private-network"] == "true"
    answer = client.get("/health", **headers)
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://ours.example"
    assert answer.headers["vary"] == "Origin"
    refused = client.send("POST", "/tokenize", b"{", headers)
    assert refused.status == 400 and refused.headers["access-control-allow-origin"] == "https://ours.example"


def test_the_server_s_own_page_may_ask(client: Client) -> None:
    origin = f"http://127.0.0.1:{client.port}"
    answer = client.get("/health", Origin=origin, Sec_Fetch_Site="same-origin")
    assert answer.status == 200 and "access-control-allow-origin" not in answer.headers
    assert client.get("/health", Origin=origin, Host="localhost").status == 403


def test_a_picture_or_script_of_another_page_gets_nothing_but_a_link_does(client: Client) -> None:
    assert client.get("/metrics", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
    assert client.get("/health", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200


def test_all_origins() -> None:
    with serving(make_served(), allow_origins=["*"]) as client:
        answer = client.get("/health", Origin="https://any.example")
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://any.example"


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "https://", "", "https://a/b"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ArgumentError, match="allow_origin must be"):
        Guard(None, Metrics(), (), allow_origins=[origin])  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", " a", "a\n", "é"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ArgumentError, match="api_key must be printable ASCII"):
        Guard(None, Metrics(), (), api_key=key)  # type: ignore[arg-type]


def test_a_key_is_needed_where_there_is_one() -> None:
    with serving(make_served(), api_key="secret key", allow_origins=["https://ours.example"]) as client:
        for path in ("/v1/models", "/metrics", "/v1/models/tiny", "/none"):
            answer = client.get(path)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json["error"]["code"] == "invalid_api_key" and "Authorization: Bearer KEY" in answer.message
        for wrong in ("Bearer secret", "Bearer secret key2", "Basic secret key", "Bearer", "secret key", "Bearer \xe9"):
            answer = client.get("/v1/models", Authorization=wrong)
            assert answer.status == 401 and "secret" not in answer.message
        for right in ("Bearer secret key", "bearer  secret key"):
            assert client.get("/v1/models", Authorization=right).status == 200
        assert client.get("/health").status == 200
        assert client.get("/page/none").status == 404, "the page has no secrets"
        assert client.send("POST", "/v1/completions", b"{}", {}).status == 401
        preflight = {"Origin": "https://ours.example", **PREFLIGHT}
        assert client.send("OPTIONS", "/v1/completions", None, preflight).status == 204, (
            "a browser asks without the key"
        )


def test_every_answer_keeps_a_browser_strict(client: Client) -> None:
    for answer in (client.get("/health"), client.get("/none"), client.get("/health", Host="evil.example")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_a_failure_inside_is_one_line_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    served = make_served()
    with serving(served) as client:
        served.card = lambda: 1 / 0  # type: ignore[method-assign,return-value,assignment]
        answer = client.get("/v1/models")
        assert answer.status == 500 and answer.message == "the server failed: its log says why"
        assert "GET /v1/models failed" in caplog.text and "ZeroDivisionError" in caplog.text
        assert client.get("/health").status == 200
