"""soma-native serve: bad usage in one line, and the program from its first line to Ctrl-C."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import soma_native
from helpers.serving import Client

pytestmark = pytest.mark.levels()

PROGRAM = [sys.executable, "-m", "soma_native"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that never ends a text by itself."""
    folder = tmp_path_factory.mktemp("models") / "my_model"
    tok = soma_native.Tokenizer.train(["the cat"], kind="byte")
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_seq_len": 64, "block": "gpt2"}
    soma_native.save(folder, soma_native.Model(soma_native.ModelConfig(vocab_size=256, **shape), seed=0), tok)
    return folder


@contextlib.contextmanager
def program(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The program once it serves at a free port, and what it said."""
    command = [*PROGRAM, "serve", *map(str, arguments), "--port", "0", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **environment}, **pipes) as process:
        try:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                if line == "}\n":
                    break
            yield process, json.loads("".join(lines))
        finally:
            process.kill()


def port_of(said: dict[str, Any]) -> int:
    return int(said["url"].rsplit(":", 1)[1])


def failed(result: Any, status: int, problem: str) -> None:
    assert result.status == status, result.err
    assert result.err.startswith("soma-native: error: ") and result.err.count("\n") == 1
    assert problem in result.err, result.err
    assert result.out == ""


def test_a_port_in_use_is_one_line(run: Any, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        failed(
            run("serve", folder, "--port", port),
            1,
            f"127.0.0.1:{port} is in use by another program: give another --port",
        )


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        ((), 2, "the following arguments are required: DIR"),
        (("--port", "70000"), 2, "--port: must be from 0 to 65535"),
        (("--host", "no.such.host.invalid"), 1, "no.such.host.invalid is no known host"),
        (("--host", "203.0.113.1"), 1, "203.0.113.1 is no address of this machine"),
        (("--api-key", ""), 2, "--api-key must be printable ASCII"),
        (("--allow-origin", "example.org"), 2, "--allow-origin must be '*' or like"),
        (("--timeout", "0"), 2, "--timeout: must be above 0"),
        (("--max-queue", "0"), 2, "--max-queue: must be from 1"),
    ],
)
def test_bad_usage_is_one_line(run: Any, folder: Path, arguments: tuple[str, ...], status: int, problem: str) -> None:
    failed(run("serve", *([folder] if arguments else []), "--port", 0, *arguments), status, problem)


def test_folders_that_cannot_be_served(run: Any, folder: Path, tmp_path: Path) -> None:
    failed(run("serve", tmp_path / "none", "--port", 0), 1, "there is no such folder")
    soma_native.save(tmp_path / "without", soma_native.load_model(folder), None)
    failed(run("serve", tmp_path / "without", "--port", 0), 1, "tokenizer.json: is missing")
    failed(run("serve", folder, tmp_path / "my_model", "--port", 0), 2, "two have one name: my_model, my_model")


def test_a_missing_package_is_one_line(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("soma_native.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.types", None)
    failed(run("serve", folder), 1, "serve needs the package starlette: pip install 'soma-native[serve]'")


def test_the_import_of_the_package_and_the_command_bring_no_server() -> None:
    code = (
        "import sys, soma_native.cli.serve, soma_native.cli.main; print(*sorted(m.split('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"starlette", "uvicorn", "jinja2", "asyncio", "anyio"} & set(done.stdout.split())


def test_the_program_serves_and_ends_with_status_0(folder: Path, tmp_path: Path) -> None:
    with program(folder, SOMA_API_KEY="secret") as (process, said):
        assert said["api_key"] is True and [card["id"] for card in said["models"]] == ["my_model"]
        client = Client(port_of(said))
        assert client.get("/v1/models").status == 401
        answer = client.get("/v1/models", Authorization="Bearer secret")
        assert answer.json["data"] == said["models"]
        folder.rename(tmp_path / "gone")  # the model is in memory: the folder may change
        (tmp_path / "gone").rename(folder)
        body = json.dumps({"prompt": "the cat", "max_tokens": 5, "seed": 1}).encode()
        text = client.send("POST", "/v1/completions", body, {"Authorization": "Bearer secret"}).json["choices"][0][
            "text"
        ]
        model, tok = soma_native.load(folder)
        assert "the cat" + text == soma_native.Generator(model, tok).generate("the cat", max_tokens=5, seed=1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert (
            err == "soma-native: no more requests are taken; those that run are finished, unless Ctrl-C comes again\n"
        )


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it closed while this connected
        return True
    return False


def test_ctrl_c_finishes_what_runs_and_refuses_what_comes(folder: Path) -> None:
    with program(folder) as (process, said):
        port = port_of(said)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            fields = {"prompt": "a", "max_tokens": 2000, "seed": 1, "stream": True, "logprobs": 20}
            connection.request("POST", "/v1/completions", json.dumps(fields))
            response = connection.getresponse()
            first = response.readline()
            process.send_signal(signal.SIGINT)
            while not refuses(port):
                pass
            assert (first + response.read()).endswith(b"data: [DONE]\n\n")
        assert process.wait(timeout=60) == 0


def test_a_second_ctrl_c_ends_at_once(folder: Path) -> None:
    with program(folder, "--max-tokens", 65536) as (process, said):
        port = port_of(said)
        fields = {"prompt": "a", "max_tokens": 65536, "seed": 1, "stream": True, "logprobs": 20}
        with Client(port).open("/v1/completions", **fields) as connection:  # which reads no more than this
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            while not refuses(port):
                pass
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in err


def test_the_address_is_said(folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from soma_native.serve import server

    monkeypatch.setattr(server.Server, "run_on", lambda self, listening: None)
    result = run("serve", folder, "--port", 0)
    assert result.status == 0 and "parameters, context of 64 tokens\n" in result.out
    assert "http://127.0.0.1:" in result.out and "Ctrl-C ends it" in result.out and result.err == ""
    result = run("serve", folder, "--port", 0, "--host", "0.0.0.0")
    assert "everyone who reaches http://0.0.0.0:" in result.err and "SOMA_API_KEY" in result.err
