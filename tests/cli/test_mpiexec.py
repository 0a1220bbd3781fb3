"""`train` under mpiexec: the result of one process, one voice, any number of ranks to resume; what cannot run."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.child import run_child
from helpers.command import run_command
from helpers.mpi import end_of, start_ranks
from helpers.training import SENTENCES
from soma_native.cli import starters
from soma_native.parallel.mpi import threads_of

TRAIN = ["-m", "soma_native", "train", "t.txt", "--preset", "showcase", "--batch-size", "8"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t.txt").write_text("\n".join(SENTENCES))
    return tmp_path


def losses_in(folder: Path) -> list[list[float]]:
    records = json.loads((folder / "history.json").read_text())["records"]
    return [[record["train_loss"], record["val_loss"]] for record in records]


def test_ranks_train_what_one_process_does_and_any_number_resumes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [*TRAIN, "--split", "line", "--out"]
    status, out, err = end_of(start_ranks(3, *train, "m", "--steps", "4", cwd=folder))
    assert status == 0, err
    assert out.count("parameters, ") == 1
    assert err.count("step 4/4") == 1, "rank 0 alone displays"
    assert err.count("(process ") == 3
    monkeypatch.chdir(folder)
    alone = run_command(capsys, *train[2:], "alone", "--steps", "4")
    assert alone.status == 0, alone.err
    exact = '"precision": "float32"' in (folder / "m" / "training_state.safetensors").read_bytes()[:99999].decode(
        "latin-1"
    ).replace('\\"', '"')
    np.testing.assert_allclose(losses_in(folder / "m"), losses_in(folder / "alone"), rtol=1e-4 if exact else 2**-7)
    for size in (2, 1):
        status, out, err = end_of(start_ranks(size, *train, "m", "--resume", cwd=folder))
        assert (status, err.count("already finished")) == (0, 1), err


def test_what_cannot_run_is_one_line(folder: Path) -> None:
    def said(size: int, *arguments: str) -> str:
        status, _, err = end_of(start_ranks(size, *TRAIN, "--steps", "4", "--out", "m", *arguments, cwd=folder))
        lines = [line for line in err.splitlines() if line.startswith("soma-native: error: ")]
        assert status != 0
        assert len(lines) == 1, err
        return lines[0].removeprefix("soma-native: error: ")

    assert "this run has 3 ranks, and a micro-batch has 2 windows" in said(3, "--batch-size", "2")
    assert said(2, "--teachers", "1").endswith(
        "--teachers must be 0 on several ranks, got 1; see soma-native train --help"
    )
    (folder / "m").mkdir()
    (folder / "m" / "model.safetensors").write_text("")
    assert said(2) == "m: holds model.safetensors, which training would replace: give another folder, or --overwrite"


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_before_it_joins_ends_all(folder: Path, broken: int) -> None:
    code = f"""
import os, sys
if "{broken}" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
    os.environ["SOMA_ISA"] = "nothing"
from soma_native.__main__ import run
run()
"""
    status, out, err = end_of(start_ranks(2, "-c", code, *TRAIN[2:], "--out", "m", cwd=folder), timeout=60)
    assert status != 0
    assert err.count("SOMA_ISA") == 1, out + err
    assert ("rank 1 on " in err) == (broken == 1)
    assert not (folder / "m").exists()


def test_a_world_of_one_is_said(folder: Path) -> None:
    status, _, err = end_of(start_ranks(1, *TRAIN, "--steps", "2", "--sync-every", "1", "--out", "m", cwd=folder))
    assert status == 0
    assert err.count("one rank was started: it trains as a process alone does\n") == 1
    assert err.count("--sync-every is for several ranks: here one process takes the outer steps\n") == 1


def test_a_process_that_waits_too_long_to_join_ends(tmp_path: Path) -> None:
    code = """
import signal
from soma_native.cli import starters
starters._JOINING = 0.1
with starters.time_to_join():
    signal.pause()
"""
    assert run_child(code, tmp_path).returncode == -signal.SIGALRM


def test_ranks_in_different_folders(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    code = """
import os, sys
from mpi4py import MPI
other = sys.argv.pop(1)
os.chdir(other if MPI.COMM_WORLD.rank else ".")
from soma_native.__main__ import run
run()
"""
    train = ["-c", code, "other", *TRAIN[2:], "--split", "line", "--steps", "4", "--out", "m"]

    def said() -> str:
        status, _, err = end_of(start_ranks(2, *train, cwd=folder))
        assert status != 0
        return next(line for line in err.splitlines() if line.startswith("soma-native: error: "))

    assert said() == "soma-native: error: rank 1: t.txt: no such file or folder"
    (other / "t.txt").write_text("\n".join(SENTENCES[3:]))
    assert "this run joins ranks that differ in training texts" in said()


@pytest.mark.parametrize(
    ("told", "size", "expected"),
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "1", "mpi4py has another MPI than their starter, "),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "1", "mpi4py has another MPI than their starter, "),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, "1", None),
    ],
    ids=["first", "second", "alone"],
)
def test_a_starter_that_mpi_does_not_know(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, told: dict[str, str], size: str,
    expected: str | None,
) -> None:  # fmt: skip
    class Foreign:
        """An mpi4py that was built for another MPI."""

        class rc:
            initialize = True

        class MPI:
            Get_library_version = staticmethod(lambda: "Open MPI v5.0.11, package: other")

    monkeypatch.setitem(sys.modules, "mpi4py", Foreign)  # type: ignore[arg-type]
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(starters, "_PATIENCE", 0.0)
    monkeypatch.chdir(folder)
    result = run_command(capsys, *TRAIN[2:], "--split", "line", "--steps", "2", "--out", "m")
    if expected is None:
        assert (result.status, result.err.count("error")) == (0, 0)
        assert result.out
    else:
        assert expected in result.err
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith("rank 1 on ") == (told["PMI_RANK"] == "1"), "each says why it could not join"


def test_without_mpi4py(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.chdir(folder)
    result = run_command(capsys, *TRAIN[2:], "--out", "m")
    assert result.err.endswith(
        "error: 4 ranks were started, and mpi4py is not installed: pip install 'soma-native[mpi]'\n"
    )
    assert result.status == 1


def test_ranks_share_the_processors_of_a_machine() -> None:
    both, first, second = {0, 1, 2, 3}, {0, 1}, {2, 3}
    assert threads_of(both, [(both, 4)]) == 4
    assert threads_of(both, [(both, 4), (both, 4)]) == 2
    assert threads_of(both, [(both, 4)] * 8) == 1, "never none"
    assert threads_of(first, [(first, 2), (second, 2)]) == 2, "the starter has bound them"
    assert threads_of(both, [(both, 2), (both, 2)]) == 1, "a cgroup allows two for all"
    assert threads_of({0}, [({0}, 1), ({0}, 1)]) == 1


def test_a_disk_that_is_full_on_one_rank_ends_all(folder: Path) -> None:
    code = """
import resource
from mpi4py import MPI
from soma_native.__main__ import run
if MPI.COMM_WORLD.rank == 0:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run()
"""
    train = ["-c", code, *TRAIN[2:], "--split", "line", "--steps", "4", "--out", "m"]
    status, _, err = end_of(start_ranks(2, *train, cwd=folder))
    assert status != 0
    errors = [line for line in err.splitlines() if line.startswith("soma-native: error: ")]
    assert len(errors) == 1, err
    assert "File too large" in errors[0]
    assert not (folder / "m" / "model.safetensors").exists()
