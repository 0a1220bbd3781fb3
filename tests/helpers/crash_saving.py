"""Saves that are killed. test_checkpoint_crash.py runs this as a program, so that a real SIGKILL can hit at every step.

crash_saving.py steps SCENARIO FOLDER   kill a save before each thing it does to the file system, and load after each
crash_saving.py forever FOLDER          save states 1, 2, 3, ... until killed, saying each number when it is saved
crash_saving.py states FOLDER           say which state the folder holds
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

import soma_native
from soma_native.checkpoint import extra_file
from soma_native.errors import CheckpointError

WORDS = ("one two three", "four five six seven", "eight nine", "ten eleven twelve thirteen fourteen")


def save_state(folder: Path, number: int, width: int = 8) -> None:
    """Save state `number`: weights, configuration, tokenizer and an extra file all depend on it."""
    kind = number % len(WORDS)
    tok = soma_native.Tokenizer.train([WORDS[kind]], kind="word")
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=width + 4 * kind, n_layers=1 + kind % 2, n_heads=2, d_ff=12, max_seq_len=10
    )
    model = soma_native.Model(config, seed=0)
    for name, array in model.parameters().items():
        model.write(name, np.full_like(array, number))
    extra_files: dict[str, Any] = {"state.json": lambda path: path.write_text(json.dumps({"number": number}))}
    if kind == 0:
        extra_files["more.json"] = lambda path: path.write_text("{}")
    soma_native.save(folder, model, tok, extra_files=extra_files)


def loaded_state(folder: Path, with_extra: bool = True) -> str:
    """The number of the state in the folder, "none", or the error of loading it.

    The extra file is read after the rest, so leave it out while another process may be saving.
    """
    try:
        model, tok = soma_native.load(folder)
    except (CheckpointError, FileNotFoundError) as error:
        return "none" if "holds no saved model" in str(error) or "no such folder" in str(error) else f"refused: {error}"
    numbers = {float(value) for array in model.parameters().values() for value in np.unique(array)}
    if with_extra:
        numbers.add(float(json.loads(extra_file(folder, "state.json").read_text())["number"]))
    if len(numbers) != 1:
        return f"mixed: {sorted(numbers)}"
    number = int(numbers.pop())
    if tok.encode(WORDS[number % len(WORDS)]) != list(
        soma_native.Tokenizer.train([WORDS[number % len(WORDS)]], kind="word").encode(WORDS[number % len(WORDS)])
    ):
        return "mixed: tokenizer"
    return str(number)


def killed_save(folder: Path, number: int, step: int) -> bool:
    """Save in a child that kills itself before its `step`-th change of the file system; return whether it did."""
    child = os.fork()
    if child == 0:
        left = step
        inside = os.fspath(folder)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            touched = event == "open" or event.startswith(("os.", "shutil."))
            if touched and any(
                isinstance(part, (str, os.PathLike)) and inside in os.fspath(part) for part in arguments
            ):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)
        try:
            save_state(folder, number)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def steps(scenario: str, folder: Path) -> dict[str, Any]:
    """Kill the save of the scenario's last state at every step; return the states loaded, and the files left."""
    prepared = folder.with_name("prepared")
    if scenario != "first":
        save_state(prepared, 1)
        (prepared / "history.csv").write_text("mine")
        (prepared / "best").mkdir()
        (prepared / "best" / "model.safetensors").write_text("mine too")
    wanted = 2
    if scenario == "after-a-crash":  # leave a committed save with unfinished moves, then crash the next save
        step = 0
        while True:
            trial = folder.with_name("trial")
            shutil.copytree(prepared, trial)
            assert killed_save(trial, 2, step)
            if (trial / ".soma-pending").exists() and not (trial / ".soma-pending" / "tokenizer.json").exists():
                prepared, wanted = trial, 3
                break
            shutil.rmtree(trial)
            step += 1
    found, kept, leftovers = [], True, set()
    step = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if scenario != "first":
            shutil.copytree(prepared, folder)
        killed = killed_save(folder, wanted, step)
        found.append(loaded_state(folder))
        if scenario != "first":
            kept &= (folder / "history.csv").read_text() == "mine"
            kept &= (folder / "best" / "model.safetensors").read_text() == "mine too"
        if not killed:
            break
        save_state(folder, 4)  # the next save finishes the moves and removes leftovers
        assert loaded_state(folder) == "4"
        leftovers |= {name for name in os.listdir(folder) if name.startswith(".")}
        step += 1
    return {"found": found, "kept": kept, "leftovers": sorted(leftovers), "steps": step}


def main() -> None:
    """Dispatch on the first argument."""
    if sys.argv[1] == "steps":
        os.fsync = lambda descriptor: None  # the system keeps what a killed process wrote; only a power cut loses it
        print(json.dumps(steps(sys.argv[2], Path(sys.argv[3]))))
    elif sys.argv[1] == "forever":
        number = 1
        while True:
            save_state(Path(sys.argv[2]), number, width=256)
            print(number, flush=True)
            number += 1
    else:
        print(loaded_state(Path(sys.argv[2])))


if __name__ == "__main__":
    main()
