"""soma-native evaluate --per-document and --table: a row for each document, which adds up to the whole."""

# ruff: noqa: F811 -- fixtures of test_cli are arguments here

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from test_cli import corpus, failed, trained  # noqa: F401

import soma_native as soma

pytestmark = pytest.mark.levels()

LINES = ["the cat sat on the mat", "x", "the dog sat", "a dog and a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without training that reads bytes, and two texts."""
    folder = tmp_path_factory.mktemp("documents")
    tok = soma.Tokenizer.train(LINES, kind="byte")
    config = soma.ModelConfig(
        vocab_size=tok.vocab_size, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=8, block="gpt2"
    )
    soma.save(folder / "model", soma.Model(config, seed=1), tok)
    (folder / "a.txt").write_text("\n".join(LINES), encoding="utf-8")
    (folder / "b.txt").write_text("the mat", encoding="utf-8")
    return folder


def test_documents_add_up(run: Any, folder: Path) -> None:
    files = folder / "a.txt", folder / "b.txt"
    whole = run("evaluate", folder / "model", *files, "--split", "line", "--json").json
    result = run("evaluate", folder / "model", *files, "--split", "line", "--per-document", "--json").json
    rows = result.pop("per_document")
    assert result == pytest.approx(whole, rel=1e-6)
    assert [row["document"] for row in rows] == [*(f"{files[0]}:{n}" for n in (1, 2, 3, 4)), f"{files[1]}:1"]
    assert [row["pairs"] for row in rows] == [len(text) - 1 for text in [*LINES, "the mat"]]
    assert rows[1] == {"document": f"{files[0]}:2", "loss": None, "bits_per_byte": None, "pairs": 0, "bytes": 0}
    assert sum(row["bytes"] for row in rows) == result["bytes"]
    assert sum((row["loss"] or 0) * row["pairs"] for row in rows) / result["pairs"] == pytest.approx(result["loss"])
    model, tok = soma.load(folder / "model")
    scores = soma.Generator(model, tok).score("the dog sat", stride=8)
    assert (rows[2]["loss"], rows[2]["bits_per_byte"]) == pytest.approx((scores.loss, scores.bits_per_byte), rel=1e-6)


def test_whole_files_have_their_names(run: Any, folder: Path) -> None:
    lines = run("evaluate", folder / "model", folder / "a.txt", folder / "b.txt", "--per-document").out.splitlines()
    at = lines.index(next(line for line in lines if line.startswith("document ")))
    assert [line.split()[0] for line in lines[at + 2 : at + 4]] == [str(folder / "a.txt"), str(folder / "b.txt")]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_the_table_is_written(run: Any, folder: Path, tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"table.{suffix}"
    options = (folder / "model", folder / "a.txt", "--split", "line")
    rows = run("evaluate", *options, "--per-document", "--json").json["per_document"]
    result = run("evaluate", *options, "--table", path, "--json").json
    assert "per_document" not in result
    with path.open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file, delimiter=delimiter))
    assert written == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    assert f"written: {path}" in run("evaluate", *options, "--table", path).out


def test_words_have_no_bits(run: Any, folder: Path, trained: Path) -> None:
    (row,) = run("evaluate", trained, folder / "b.txt", "--per-document", "--json").json["per_document"]
    assert row["bits_per_byte"] is None and row["bytes"] == len("the mat") and row["loss"] > 0
    assert run("evaluate", trained, folder / "b.txt", "--per-document").out.count("-  ") >= 1


def test_a_table_that_cannot_be_written_is_named_before_any_work(run: Any, folder: Path, tmp_path: Path) -> None:
    options = (tmp_path / "no model", folder / "a.txt", "--table")
    failed(run("evaluate", *options, tmp_path / "none" / "t.csv"), f"{tmp_path / 'none'}: no such folder")
    (tmp_path / "t.csv").mkdir()
    failed(run("evaluate", *options, tmp_path / "t.csv"), "t.csv: is a folder")
    result = run("evaluate", *options, tmp_path / "t.txt")
    assert result.status == 2 and "--table: must end in .csv or .tsv" in result.err
