"""The command soma-native evaluate: its measures, precisions, and errors for texts without pairs."""

# ruff: noqa: F811 -- fixtures of test_cli are arguments here

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from test_cli import TEXT, corpus, failed, trained  # noqa: F401


def test_evaluate_compares_bytes_only_where_nothing_is_lost(run: Any, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    small = ["--preset", "nano-cpu", "--tokenizer", "byte", "--seq-len", "16", "--batch-size", "4"]
    assert run("train", corpus, "--out", out, "--steps", 2, *small).status == 0
    measured = run("evaluate", out, corpus, "--json").json
    bits = measured["loss"] * measured["pairs"] / math.log(2) / (len(TEXT.encode()) - 1)
    assert math.isclose(measured["bits_per_byte"], bits, rel_tol=1e-9)


def test_evaluate_in_bfloat16_differs_by_its_rounding(run: Any, corpus: Path, trained: Path) -> None:
    exact, rounded = (
        run("evaluate", trained, corpus, "--precision", precision, "--json").json["loss"]
        for precision in ("float32", "bfloat16")
    )
    assert run("evaluate", trained, corpus, "--json").json["loss"] == exact
    assert 0 < abs(rounded - exact) < 0.01 * exact


def test_texts_that_cannot_be_evaluated_are_named(run: Any, trained: Path, tmp_path: Path) -> None:
    bad, empty, single = tmp_path / "bad.txt", tmp_path / "empty.txt", tmp_path / "single.txt"
    bad.write_bytes(b"good \xff bad")
    empty.write_text("")
    single.write_text("the")
    failed(run("evaluate", trained, tmp_path / "none.txt"), "none.txt: no such file or folder")
    failed(run("evaluate", trained, bad), "bad.txt", "byte 5")
    failed(run("evaluate", trained, empty), "empty.txt: is empty")
    failed(run("evaluate", trained, single), f"no next-token pair in {single}: all 1 document(s)")
    failed(run("evaluate", trained, single, empty), f"no next-token pair in {single} and the other files")


def test_evaluate_beside_a_floor(run: Any, corpus: Path, tmp_path: Path) -> None:
    out, held_out = tmp_path / "model", tmp_path / "held_out.txt"
    small = ["--preset", "nano-cpu", "--tokenizer", "byte", "--seq-len", "16", "--batch-size", "4"]
    assert run("train", corpus, "--out", out, "--steps", 2, *small).status == 0
    held_out.write_text(TEXT[: len(TEXT) // 3])
    measured = run("evaluate", out, held_out, "--json", "--floor", corpus).json
    floor = measured["floor"]
    assert floor["bytes"] == measured["bytes"] == len(TEXT) // 3 - 1
    assert floor["ngram"] < floor["characters"]
    assert floor["tokens"] > floor["ngram"]
    assert floor["sentence"].startswith("this text is too small: the 5-gram wins by ")
    table = run("evaluate", out, held_out, "--floor", corpus)
    assert table.status == 0
    assert f"character 5-gram   {floor['ngram']:.4f}" in table.out
    assert floor["sentence"] in table.out
    assert "floor" not in run("evaluate", out, held_out, "--json").json
    failed(run("evaluate", out, held_out, "--floor", tmp_path / "none.txt"), "none.txt: no such file or folder")


def test_an_empty_text_beside_a_floor_is_named_as_it_was_given(run: Any, trained: Path, corpus: Path) -> None:
    result = run("evaluate", trained, corpus, "--floor", "/dev/null")
    assert result.status == 1
    assert result.err.startswith("soma-native: error: --floor /dev/null: must have at least a ")


def test_a_floor_of_words_is_not_compared(run: Any, corpus: Path, trained: Path) -> None:
    floor = run("evaluate", trained, corpus, "--json", "--floor", corpus).json["floor"]
    assert floor["tokens"] is floor["sentence"] is None
    assert floor["bytes"] == len(TEXT.encode())
    table = run("evaluate", trained, corpus, "--floor", corpus).out
    assert "single tokens      -" in table
