"""`train` with too little memory: one line, and the folder stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.levels("bfloat16")

SMALL = ("--preset", "nano-cpu", "--tokenizer", "char", "--seq-len", 16, "--batch-size", 4, "--steps", 4)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_too_little_memory_is_one_line_and_touches_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "m"
    text.write_text("the cat saw the dog and the dog ran. " * 40, encoding="utf-8")
    assert run("train", text, "--out", out, *SMALL).status == 0
    before = contents(out)
    monkeypatch.setattr("soma_native.training.layout.free_memory", lambda **_: 500_000)
    for flags in (("--overwrite", *SMALL), ("--resume",)):
        refused = run("train", text, "--out", out, *flags)
        assert refused.status == 1
        said = refused.err.strip().splitlines()[-1]
        assert (
            said.startswith("soma-native: error: training needs ") and "500 kB are free: take a smaller batch" in said
        )
        assert "_" not in said.partition("are free")[2], "no name of the library"
        assert "Traceback" not in refused.err
        assert contents(out) == before
    assert run("train", text, "--out", tmp_path / "new", *SMALL).status == 1
    assert not (tmp_path / "new").exists()
