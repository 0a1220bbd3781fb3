"""Checks a machine with a GPU in one go: what is there, the tests of models on it, speeds. It builds nothing.

Usage: python tools/check_gpu.py [--minutes 8] [--out FOLDER]. The Python that runs it has soma_native,
soma-native-cuda13 and pytest installed. PyTorch with CUDA is measured beside them where it is there. What each check
prints is left in FOLDER; a table at the end says how each one ended.
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
    processor = [PYTHON, "benchmarks/bench_train.py", "--rounds", "3", "--seconds", "1", "--modes", "--workloads"]
    tests = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found: list[Check] = [
        ("info", 15, [PYTHON, "-m", "soma_native", "info"]),
        ("ceilings and ops", 30, [*profile, "gpt2-124m"]),
        ("tests of models", 80, [*tests, "tests/cuda"]),
        ("models by cuBLASLt", 40, ["env", "SOMA_CUBLAS_LEAST=0", *tests, "tests/cuda/test_cuda_models.py"]),
        ("training, small", 60, [*train, "--workloads", "showcase", "nano-cpu"]),
        ("training, gpt2-124m", 60, [*train, "--workloads", "gpt2-124m"]),
        ("small, no graphs", 30, ["env", "SOMA_CUDA_GRAPHS=0", *alone, "showcase", "nano-cpu"]),
        ("gpt2-124m, no cuBLASLt", 30, ["env", "SOMA_CUBLAS=none", *alone, "gpt2-124m"]),
        ("showcase, processor", 15, [*processor, "showcase"]),
        ("generation", 50, [*generate, "--workloads", "showcase", "gpt2-124m"]),
    ]
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in ("memcheck", "racecheck"):
            found.append((tool, 35, [sanitizer, "--tool", tool, "--error-exitcode", "1", PYTHON, "-c", TINY]))
    return found


def run(command: list[str], seconds: float, log: Path) -> str:
    """How a command ended: "right", "status N", or "no time"."""
    environment = {**os.environ, "SOMA_TEST_GPU": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "no time"
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
    table = []
    for number, (name, seconds, command) in enumerate(checks(["bf16-eager", "bf16-compile"] if torch else [])):
        began = time.monotonic()
        log = arguments.out / f"{number}-{name.replace(', ', '-').replace(' ', '-')}.txt"
        result = run(command, max(0.0, min(seconds, end - began)), log)
        table.append((name, result, f"{time.monotonic() - began:.0f} s"))
        print(f"=== {name}: {result}", *log.read_text(errors="replace").splitlines()[-25:], sep="\n", flush=True)
    print("\n" + "\n".join(f"{name:22} {result:10} {seconds:>6}" for name, result, seconds in table))
    return int(any(result != "right" for _, result, _ in table))


if __name__ == "__main__":
    raise SystemExit(main())
