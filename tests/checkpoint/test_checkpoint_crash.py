"""kill -9 while saving, at any moment, leaves a folder that loads as the complete old or complete new state."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import soma_native
from helpers import crash_saving
from soma_native.errors import CheckpointError
from soma_native.files import atomic_folder

PROGRAM = [sys.executable, crash_saving.__file__]
ENVIRONMENT = {**os.environ, "SOMA_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("scenario", "old", "new"), [("first", "none", "2"), ("over-another", "1", "2"), ("after-a-crash", "2", "3")]
)
def test_killed_at_every_step_leaves_old_or_new(tmp_path: Path, scenario: str, old: str, new: str) -> None:
    run = subprocess.run(
        [*PROGRAM, "steps", scenario, str(tmp_path / "model")], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    found = result["found"]
    assert set(found) == {old, new}
    assert found == sorted(found, key=[old, new].index), "after the new state, the old one never comes back"
    assert result["steps"] > 20
    assert result["kept"], "saving changed files of the user"
    assert result["leftovers"] == []


def test_killed_at_random_moments(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    chance = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(
            [*PROGRAM, "forever", str(folder)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert process.stdout is not None
        said = [process.stdout.readline()]
        timer = threading.Timer(chance.uniform(0, 0.15), process.send_signal, [signal.SIGKILL])
        timer.start()
        said += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        timer.join()
        last = max(int(line) for line in said)
        assert crash_saving.loaded_state(folder) in {str(last), str(last + 1)}


def test_a_failing_extra_file_keeps_the_old_state(tmp_path: Path) -> None:
    crash_saving.save_state(tmp_path / "model", 1)
    before = snapshot(tmp_path / "model")
    model, tok = soma_native.load(tmp_path / "model")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        soma_native.save(tmp_path / "model", model, tok, extra_files={"state.json": fail})
    assert snapshot(tmp_path / "model") == before


def test_disk_full_names_the_folder_and_keeps_the_old_state(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    crash_saving.save_state(folder, 1)
    before = snapshot(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # writing a larger file fails
        with pytest.raises(CheckpointError, match="cannot save here: File too large") as caught:
            crash_saving.save_state(folder, 2)
        with pytest.raises(CheckpointError, match="cannot save here"):
            crash_saving.save_state(tmp_path / "other", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(folder) in str(caught.value)
    assert snapshot(folder) == before
    assert crash_saving.loaded_state(folder) == "1"
    assert not (tmp_path / "other").exists()


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    crash_saving.save_state(folder, 1)
    before = snapshot(folder)

    def refuse(path: object, *rest: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(path))  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "mkdir", refuse)  # root can write to a read-only folder
    with pytest.raises(CheckpointError, match="cannot save here: Permission denied") as caught:
        crash_saving.save_state(folder, 2)
    monkeypatch.undo()
    assert str(folder) in str(caught.value)
    assert snapshot(folder) == before


def test_not_finite_weights_are_not_saved(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    crash_saving.save_state(folder, 1)
    before = snapshot(folder)
    model, tok = soma_native.load(folder)
    model.parameters()["wpe"][3, 1] = np.nan
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'wpe' holds NaN"):
        soma_native.save(folder, model, tok)
    assert snapshot(folder) == before


def test_saving_the_same_again_changes_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    crash_saving.save_state(folder, 1)
    before = {name: os.stat(folder / name).st_ino for name in os.listdir(folder)}
    crash_saving.save_state(folder, 1)
    assert {name: os.stat(folder / name).st_ino for name in os.listdir(folder)} == before


def test_readers_never_see_a_mixture_while_another_process_saves(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    process = subprocess.Popen([*PROGRAM, "forever", str(folder)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        seen = [crash_saving.loaded_state(folder, with_extra=False) for _ in range(30)]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert all(state.isdigit() for state in seen), seen
    assert sorted(seen, key=int) == seen


def test_a_save_that_ends_while_its_manifest_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    crash_saving.save_state(folder, 1)
    pending = folder / atomic_folder.PENDING
    pending.mkdir()
    (pending / atomic_folder.MANIFEST).write_text('{"files": [], "removed": []}')
    real = atomic_folder.open_regular

    def open_too_late(path: Path) -> BinaryIO:
        shutil.rmtree(pending)  # the saver's last step, after we find the manifest and before we open it
        return real(path)

    monkeypatch.setattr(atomic_folder, "open_regular", open_too_late)
    assert crash_saving.loaded_state(folder) == "1"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every path below the folder and the content of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }
