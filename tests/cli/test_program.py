"""The command as a program: Ctrl-C before it begins, standard streams that are closed, full or hold few characters."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from soma_native.cli.main import main

TEXT = "the cat sat on the mat and the dog ate the food\n" * 20
PROGRAM = [sys.executable, "-m", "soma_native"]
SMALL = ["--preset", "nano-cpu", "--tokenizer", "word", "--seq-len", "16", "--batch-size", "4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `train` made."""
    out = tmp_path_factory.mktemp("runs") / "model"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", str(corpus), "--out", str(out), "--steps", "2", *SMALL]) == 0
    return out


# Ctrl-C at the moment when a module is about to be imported.
STARTS = """
import runpy, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
runpy.run_module("soma_native", run_name="__main__")
"""


@pytest.mark.parametrize(
    "module", ["soma_native.cli.main", "numpy", "soma_native._core", "argparse", "soma_native.cli.info"]
)
def test_ctrl_c_before_the_command_has_begun(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", STARTS, module], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "soma-native: interrupted\n")


def test_a_byte_order_mark_on_standard_input(run: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfthe cat"), encoding="ascii"))
    assert run("generate", trained, "-", "--max-tokens", 0).out == "the cat\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff7 8"))
    assert run("tokenizer", "decode", trained).status == 0


def test_an_empty_name_is_never_the_working_folder(run: Any, corpus: Path) -> None:
    before = os.listdir()
    for arguments, said in (
        (("train", corpus, "--out", ""), "--out must name"),
        (("showcase", "--out", ""), "--out must name"),
        (("tokenizer", "train", corpus, "--out", ""), "--out must name"),
        (("generate", "", "the"), "DIR must name"),
        (("evaluate", "", corpus), "DIR must name"),
        (("tokenizer", "encode", "", "the"), "PATH must name"),
    ):
        result = run(*arguments)
        assert (result.status, result.out) == (2, "") and said in result.err, result.err
    assert os.listdir() == before
