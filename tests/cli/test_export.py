"""The command soma-native export: the files of other programs, and errors of one line."""

# ruff: noqa: F811 -- fixtures of test_cli are arguments here

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import corpus, failed, trained  # noqa: F401

import soma_native
from helpers.llama_cpp import greedy_text

pytestmark = pytest.mark.levels()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model that llama.cpp can run."""
    tok = soma_native.Tokenizer.train(["the cat sat on the mat"], "char")
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=32, n_layers=1, n_heads=2, d_ff=32, max_seq_len=12, block="llama"
    )
    soma_native.save(tmp_path / "model", soma_native.Model(config, seed=1), tok)
    return tmp_path / "model"


def test_a_gguf_and_how_to_run_it(run: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mine.gguf"
    done = run("export", folder, "--to", "gguf", "--out", out, "--dtype", "f32")
    assert done.status == 0 and f"llama-server -m {out}" in done.out
    assert len(greedy_text(out, "the", 4, 12)) > 0 and [path.name for path in out.parent.iterdir()] == [out.name]


def test_ollama_gets_a_modelfile(run: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mine.gguf"
    told = run("export", folder, "--to", "ollama", "--out", out, "--dtype", "q8_0", "--json").json
    assert told["bytes"] == out.stat().st_size and told["dtype"] == "q8_0"
    assert Path(told["modelfile"]).read_text().startswith("FROM ./mine.gguf\n")


def test_errors_are_one_line(
    run: Any, folder: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine.gguf"
    failed(run("export", trained, "--to", "gguf", "--out", out), "llama.cpp")
    failed(run("export", folder, "--to", "gguf", "--out", tmp_path), "is a folder")
    failed(run("export", tmp_path / "none", "--to", "gguf", "--out", out), "there is no such folder")
    bad = run("export", folder, "--to", "gguf", "--out", out, "--dtype", "f64")
    assert bad.status == 2 and "--dtype" in bad.err
    assert run("export", folder, "--out", out).status == 2
    monkeypatch.setitem(sys.modules, "gguf", None)
    failed(run("export", folder, "--to", "gguf", "--out", out), "pip install 'soma-native[gguf]'")
    assert not out.exists()
