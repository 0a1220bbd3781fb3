"""The command soma-native score: its table, its JSON, where the text comes from, and errors."""

# ruff: noqa: F811 -- fixtures of test_cli are arguments here

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from test_cli import corpus, failed, trained  # noqa: F401

import soma_native as soma

pytestmark = pytest.mark.levels()

TEXT = "The cat sat on the mat"


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model without training, with a vocabulary of characters."""
    out = tmp_path_factory.mktemp("runs") / "characters"
    tok = soma.Tokenizer.train([TEXT, "\n"], kind="char", special_tokens=())
    config = soma.ModelConfig(
        vocab_size=tok.vocab_size, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=8, block="gpt2"
    )
    soma.save(out, soma.Model(config, seed=1), tok)
    return out


def test_json_has_the_scores_of_the_library(run: Any, characters: Path) -> None:
    result = run("score", characters, TEXT, "--top", 2, "--stride", 3, "--json").json
    model, tok = soma.load(characters)
    scores = soma.Generator(model, tok).score(TEXT, top=2, stride=3)
    assert result["tokens"] == len(scores.tokens) == len(result["scores"])
    for name in ("loss", "perplexity", "bits_per_byte", "bytes"):
        assert result[name] == getattr(scores, name)
    assert result["log_probability"] == scores.total
    for i, entry in enumerate(result["scores"]):
        assert (entry["id"], entry["logprob"], entry["rank"]) == (scores.tokens[i], scores.logprobs[i], scores.ranks[i])
        assert entry["text"] == TEXT[entry["begin"] : entry["end"]] == TEXT[i]
        assert [(best["id"], best["logprob"]) for best in entry["top"]] == scores.top[i]
        assert all(best["text"] == tok.decode([best["id"]]) for best in entry["top"])


def test_the_table_has_a_row_for_each_token(run: Any, characters: Path) -> None:
    result = run("score", characters, "mat\nsat", "--top", 1)
    assert result.status == 0 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0].split() == ["token", "log-probability", "probability", "rank", "likeliest"]
    assert [line.split()[0] for line in lines[2:9]] == [f'"{c}"' if c != "\n" else '"\\n"' for c in "mat\nsat"]
    assert lines[2].split()[1:] == ["-", "-", "-"]
    scores = run("score", characters, "mat\nsat", "--json").json["scores"]
    for line, entry in zip(lines[3:9], scores[1:], strict=True):
        cells = line.split()
        assert cells[1] == f"{entry['logprob']:.4f}" and cells[3] == str(entry["rank"])
        assert cells[2] == f"{math.exp(entry['logprob']):.2%}"
    assert any(line.startswith("bits per byte") for line in lines)
    assert "likeliest" not in run("score", characters, "mat").out


def test_words_are_not_compared_by_bytes(run: Any, trained: Path) -> None:
    result = run("score", trained, "The dog zzz sat", "--top", 9)
    assert result.status == 0 and '"zzz"' in result.out and '"<UNK>"' in result.out
    assert result.out.rstrip().endswith("the tokenizer does not keep all of the text")
    assert "read as <UNK>: zzz" in result.err
    assert run("score", trained, "The dog sat", "--json").json["bits_per_byte"] is None


def test_the_text_comes_from_a_file_or_standard_input(
    run: Any, characters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = run("score", characters, TEXT, "--json").json
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert run("score", characters, "--file", file, "--json").json == want
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT + "\n"))
    assert run("score", characters, "-", "--json").json == want


def test_bfloat16_differs_by_its_rounding(run: Any, characters: Path) -> None:
    exact, rounded = (
        run("score", characters, TEXT, "--precision", precision, "--json").json["loss"]
        for precision in ("float32", "bfloat16")
    )
    assert 0 < abs(rounded - exact) < 0.01 * exact


def test_bad_usage_is_status_2(run: Any, characters: Path, tmp_path: Path) -> None:
    for arguments, problem in (
        ((), "give the text as TEXT or with --file, one of them"),
        (("a", "--file", "b"), "give the text as TEXT or with --file, one of them"),
        (("The", "--top", "-1"), "--top: must be at least 0"),
        (("The", "--top", "999"), "--top must be from 0 to"),
        (("The", "--stride", "9"), "--stride must be from 1 to 8, got 9"),
    ):
        result = run("score", characters, *arguments)
        assert result.status == 2 and problem in result.err and result.err.count("\n") == 1, result.err


def test_texts_that_cannot_be_scored_are_named(run: Any, characters: Path, tmp_path: Path) -> None:
    failed(run("score", tmp_path / "none", "The"), "none")
    failed(run("score", characters, "--file", tmp_path / "none.txt"), "none.txt")
    failed(run("score", characters, "The dog"), "'d'")
    for text in ("", "T"):
        file = tmp_path / "text.txt"
        file.write_text(text)
        failed(run("score", characters, "--file", file), f"{file}: has ")
        result = run("score", characters, text)
        assert result.status == 2 and result.err.startswith("soma-native: error: TEXT has ")
