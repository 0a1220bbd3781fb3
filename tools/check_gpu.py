"""Checks a machine with a GPU in one go: what is there, bits, the tests of models on it, speeds. It builds nothing.

Usage: python tools/check_gpu.py [--minutes 8] [--out FOLDER]. The Python that runs it has soma_native,
soma-native-cuda13 and pytest installed. PyTorch with CUDA is measured beside them where it is there. What each check
prints is left in FOLDER; a table at the end names the card and says how each one ended, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TINY = (
    "import numpy as np, soma_native as s;"
    "config = s.ModelConfig(vocab_size=31, d_model=24, n_layers=1, n_heads=2, d_ff=40, max_seq_len=40);"
    "m = s.Model(config, device='cuda');"
    "ids = np.arange(66).reshape(2, 33) % 31; o = s.Muon(m); m.loss_and_grad(ids, ids); o.step(); m.forward(ids)"
)
# Name, the most seconds it may take, command.
Check = tuple[str, float, list[str]]


def checks(modes: Sequence[str]) -> list[Check]:
    """What is run, in this order; `modes` are those of PyTorch beside us."""
    train = [PYTHON, "benchmarks/bench_train.py", "--device", "cuda", "--precision", "bfloat16", "--rounds", "3"]
    train += ["--seconds", "1", "--modes", *modes]
    generate = [PYTHON, "benchmarks/bench_generate.py", "--device", "cuda", "--rounds", "3", "--seconds", "0.5"]
    profile = [PYTHON, "-m", "soma_native", "bench", "--device", "cuda", "--precision", "bfloat16", "--profile"]
    alone = [*train[: -len(modes) or None], "--workloads"]
    long = ["gpt2-124m", "--length", "1024", "--batch"]
    processor = [PYTHON, "benchmarks/bench_train.py", "--rounds", "3", "--seconds", "1", "--modes", "--workloads"]
    tests = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # The library is named, so that its absence is an error.
    by_cublas = ["env", "SOMA_CUBLAS=libcublasLt.so.13", "SOMA_CUBLAS_LEAST=0"]
    found: list[Check] = [
        ("info", 10, [PYTHON, "-m", "soma_native", "info"]),
        ("ceilings and ops", 25, [*profile, "gpt2-124m"]),
        ("bits of the emulation", 25, [PYTHON, "tools/gpu_bits.py"]),
        ("tests of models", 65, [*tests, "tests/cuda"]),
        ("models by cuBLASLt", 30, [*by_cublas, *tests, "tests/cuda/test_cuda_models.py"]),
        ("training, small", 55, [*train, "--workloads", "showcase", "nano-cpu"]),
        ("training, gpt2-124m x 16", 90, [*train, "--workloads", *long, "16"]),
        ("training, gpt2-124m x 4", 20, [*alone, *long, "4"]),
        ("training, gpt2-124m x 64", 25, [*alone, *long, "64"]),
        ("small, no graphs", 20, ["env", "SOMA_CUDA_GRAPHS=0", *alone, "showcase", "nano-cpu"]),
        ("gpt2-124m, no cuBLASLt", 20, ["env", "SOMA_CUBLAS=none", *alone, *long, "16"]),
        ("showcase, processor", 15, [*processor, "showcase"]),
        ("generation", 35, [*generate, "--workloads", "showcase", "gpt2-124m"]),
    ]
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            found.append((tool, 22, [sanitizer, "--tool", tool, "--error-exitcode", "1", PYTHON, "-c", TINY]))
    return found


def card() -> str:
    """The GPU and its memory, which differ between cards of one name; or that it cannot be asked."""
    say = "from soma_native.system import gpus; g = gpus()[0]; print(f'{g.name}, {g.memory / 2**30:.0f} GiB')"
    command = [PYTHON, "-c", say]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "no GPU that can be used\n"


def run(command: list[str], seconds: float, log: Path) -> str:
    """How a command ended: "right", "status N", "no time", or why it did not start."""
    environment = {**os.environ, "SOMA_TEST_GPU": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return f"not run: {error.strerror}"
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "no time"
        finally:
            with suppress(ProcessLookupError):  # also what it started and left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"status {status}" if status else "right"


def main() -> int:
    """Run all, print what each said and the table; 1 if one did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all checks together (default: 8)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="where their output goes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    torch = importlib.util.find_spec("torch") is not None
    found = checks(["bf16-eager", "bf16-compile"] if torch else [])
    table = {name: ("not run", 0.0) for name, _, _ in found}
    gpu = card()
    try:
        for number, (name, seconds, command) in enumerate(found):
            began = time.monotonic()
            if began >= end:
                break
            log = arguments.out / f"{number}-{name.replace(', ', '-').replace(' ', '-')}.txt"
            result = run(command, min(seconds, end - began), log)
            table[name] = (result, time.monotonic() - began)
            print(f"=== {name}: {result}", *log.read_text(errors="replace").splitlines()[-25:], sep="\n", flush=True)
    finally:
        print(f"\n{gpu}" + "\n".join(f"{name:25} {result:10} {s:4.0f} s" for name, (result, s) in table.items()))
    return int(any(result != "right" for result, _ in table.values()))


if __name__ == "__main__":
    raise SystemExit(main())
