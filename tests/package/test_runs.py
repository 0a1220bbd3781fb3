"""The tests that run once more, in `make levels` and `make sanitize`: which are chosen, and that no case is lost."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import soma_native
from oracles import reference as ref

pytestmark = pytest.mark.levels()

TESTS = Path(__file__).resolve().parents[1]
CHILD = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def collected(cwd: Path, *arguments: str, **environment: str) -> list[tuple[str, str]]:
    """(file, name) of the tests that pytest collects in an interpreter of its own, away from the source tree."""
    options = ("--collect-only", "-qq", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers")
    files = (str(TESTS / a) if a.endswith(".py") else a for a in arguments)
    command = [sys.executable, "-c", CHILD, f"--rootdir={TESTS.parent}", f"--config-file={TESTS.parent}/pyproject.toml"]
    done = subprocess.run(
        [*command, *options, "-v", *files], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.partition("::") for line in done.stdout.splitlines() if "::" in line]
    return [(Path(file).name, name) for file, _, name in found]


def test_the_sanitizers_see_each_case_and_each_level(tmp_path: Path) -> None:
    models = collected(tmp_path, "generation/test_decode_weights.py", "-k", "other_mathematics", SOMA_SANITIZED="1")
    found = [tuple(name.split("[")[1].rstrip("]").split("-", 1)) for _, name in models]
    cases = {"-".join(case) for case in itertools.product(ref.OTHER_GPT2, ("live", "float32", "bfloat16", "int8"))}
    levels = soma_native.available_isas()
    assert {case for _, case in found} == cases and {level for level, _ in found} == set(levels)
    assert len(found) <= len(cases) * -(-len(levels) // min(3, len(levels)))


def test_kernels_are_sanitized_on_every_level(tmp_path: Path) -> None:
    kernels = collected(tmp_path, "kernels/test_gelu.py", "kernels/test_scores.py", SOMA_SANITIZED="1")
    assert kernels == collected(tmp_path, "kernels/test_gelu.py", "kernels/test_scores.py", SOMA_SANITIZED="")


FILES = ("model/test_gradients.py", "model/test_muon.py", "cli/test_program.py", "cli/test_corpus.py")


@pytest.mark.parametrize(("run", "other"), [("bfloat16", "test_program.py"), ("sse", "test_gradients.py")])
def test_a_test_that_trains_runs_where_it_can_tell_more(tmp_path: Path, run: str, other: str) -> None:
    """Both runs have what `Muon` computes. Where a test gives both precisions itself, one run is enough."""
    chosen = collected(tmp_path, *FILES, "-m", run)
    assert {file for file, _ in chosen} == {"test_muon.py", other}
    assert not [name for _, name in chosen if name.startswith("test_every_parameter")], "runs on all levels anyway"
    assert any(name.startswith("test_it_learns") for _, name in chosen) == (run == "sse")
