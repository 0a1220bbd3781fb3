"""`train --optimizer` and `--schedule`: what they set, and that a run goes on only with its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from soma_native.training.recipes import RECIPES
from soma_native.training.state import read_state

SMALL = ("--preset", "nano-cpu", "--tokenizer", "char", "--seq-len", 16, "--batch-size", 4, "--steps", 6)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat saw the dog and the dog ran. " * 40, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ((), {"optimizer": "adamw", "schedule": "cosine", "lr": RECIPES["nano-cpu"].lr}),
        (("--optimizer", "muon"), {"optimizer": "muon", "schedule": "cosine", "lr": 3e-3, "betas": [0.9, 0.99]}),
        (("--optimizer", "muon", "--lr", "0.01"), {"optimizer": "muon", "lr": 0.01}),
        (("--schedule", "wsd"), {"optimizer": "adamw", "schedule": "wsd"}),
    ],
    ids=str,
)
def test_what_is_trained_with(run: Any, text: Path, tmp_path: Path, flags: Any, settings: dict[str, Any]) -> None:
    result = run("train", text, "--out", tmp_path / "m", *SMALL, *flags)
    assert result.status == 0, result.err
    config = read_state(tmp_path / "m")[0].config
    assert {name: config[name] for name in settings} == settings


def test_a_run_goes_on_with_its_own_optimizer_alone(run: Any, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert run("train", text, "--out", out, *SMALL, "--optimizer", "muon", "--schedule", "linear").status == 0
    assert run("train", text, "--out", out, "--resume", "--optimizer", "muon").status == 0
    for flags in (("--optimizer", "adamw"), ("--schedule", "wsd")):
        refused = run("train", text, "--out", out, "--resume", *flags)
        assert refused.status == 2
        assert f"{' '.join(flags)}: this run has" in refused.err


def test_an_optimizer_that_is_none_is_bad_usage(run: Any, text: Path, tmp_path: Path) -> None:
    result = run("train", text, "--out", tmp_path / "m", "--optimizer", "sgd")
    assert result.status == 2
    assert "--optimizer" in result.err and "muon" in result.err
