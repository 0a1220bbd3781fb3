"""Kills a rank of a run at random moments, resumes on 1, 2 and 4 ranks, and compares with a run that nobody killed.

python tools/kill_ranks.py [--kills 20] [--seed 0]: needs mpi4py, and an mpiexec beside this Python or on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, RANKS, TOLERANCE = 16, 4, 1e-4
WORDS = ["the", "cat", "dog", "hen", "cow", "owl", "fox", "bee", "ant", "saw", "ran", "sat", "on", "mat", "log", "away"]


def command(size: int, out: str, *options: str) -> list[str]:
    """The command line of a run on so many ranks, which saves after nearly every step."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    train = [sys.executable, "-m", "soma_native", "train", "t.txt", "--out", out, "--preset", "showcase"]
    settings = [
        "--steps",
        str(STEPS),
        "--batch-size",
        "8",
        "--seq-len",
        "16",
        "--max-eval-windows",
        "4",
        "--precision",
        "float32",
        "--optimizer",
        "muon",
    ]
    return [
        shutil.which("mpiexec", path=beside) or "mpiexec", "-n", str(size), *train, *settings,
        "--checkpoint-minutes", "0.0001", *options,
    ]  # fmt: skip


def write_text(folder: Path, draw: random.Random) -> None:
    """The text that `command` trains on."""
    (folder / "t.txt").write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(600)))


def events(folder: Path, kind: str) -> list[int]:
    """The steps of the events of a kind; the last line may be half written."""
    steps = []
    for line in (folder / "events.jsonl").read_text().splitlines() if (folder / "events.jsonl").exists() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event.get("event") == kind:
            steps.append(event["step"])
    return steps


def losses(folder: Path) -> list[list[float]]:
    """Training and validation losses of the records."""
    return [[r["train_loss"], r["val_loss"]] for r in json.loads((folder / "history.json").read_text())["records"]]


def children(process: int) -> list[int]:
    """The processes of `train` below this one."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            line = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == process:
            found += [int(place.name)] if b"soma_native\0train" in line and b"mpiexec" not in line else []
            found += children(int(place.name))
    return found


def kill_one(folder: Path, out: str, seconds: float, draw: random.Random) -> tuple[int, float]:
    """Kill a rank so many seconds after the first save.

    Returns the last step said to be saved, and how long the others lived.
    """
    run = subprocess.Popen(command(RANKS, out), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not events(folder / out, "save") and run.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    ranks = sorted(children(run.pid))
    if ranks:
        os.kill(draw.choice(ranks), signal.SIGKILL)
    began = time.monotonic()
    run.wait(timeout=60)
    return max(events(folder / out, "save"), default=0), time.monotonic() - began


def largest_difference(found: list[list[float]], expected: list[list[float]]) -> float:
    """The largest relative difference of two lists of losses."""
    assert len(found) == len(expected), (len(found), len(expected))
    return max(abs(a - b) / abs(b) for f, e in zip(found, expected, strict=True) for a, b in zip(f, e, strict=True))


def main() -> int:
    """Kill, resume, compare; print a line for each kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    worst, lost = 0.0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_text(folder, draw)
        began = time.monotonic()
        subprocess.run(command(RANKS, "whole"), cwd=folder, check=True, capture_output=True)
        length = (time.monotonic() - began) / 2
        expected = losses(folder / "whole")
        for number in range(arguments.kills):
            out = f"killed{number}"
            saved, lived = kill_one(folder, out, draw.uniform(0, length), draw)
            while saved == STEPS:  # the run had ended
                shutil.rmtree(folder / out)
                saved, lived = kill_one(folder, out, draw.uniform(0, length), draw)
            differences, before = [], lost
            for size in (1, 2, 4):
                copy = f"{out}on{size}"
                shutil.copytree(folder / out, folder / copy)
                done = subprocess.run(
                    command(size, copy, "--resume"), cwd=folder, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    print(done.stderr)
                    return 1
                begun_at = events(folder / copy, "start")[-1]
                lost += begun_at < saved
                differences.append(largest_difference(losses(folder / copy), expected))
            worst = max(worst, *differences)
            shown = ", ".join(f"{each:.1e}" for each in differences)
            print(
                f"kill {number + 1}: after step {saved}, ended in {lived:.1f} s; {lost - before} saves lost; {shown}",
                flush=True,
            )
    print(f"{arguments.kills} kills, {lost} resumed before the last save, largest relative difference {worst:.1e}")
    return int(lost > 0 or worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
