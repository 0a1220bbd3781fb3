"""Shared by the benchmarks: workloads, one process for each contender, alternation, records, tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from soma_native import _core
from soma_native.profiling.workloads import WORKLOADS as WORKLOADS
from soma_native.profiling.workloads import Workload as Workload
from soma_native.profiling.workloads import training_batches as training_batches

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


# weights --------------------------------------------------------------------------------------------------------


def parameter_shapes(w: Workload) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape, as soma_native names them."""
    return dict(_core.parameter_shapes(w.config.core))


def initial_parameters(w: Workload) -> dict[str, np.ndarray]:
    """Starting weights that every contender gets: N(0, 0.02), biases 0, norm weights 1."""
    rng = np.random.default_rng(1337)
    params = {}
    for name, shape in parameter_shapes(w).items():
        if len(shape) > 1:
            params[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        else:
            params[name] = np.full(shape, name.endswith(".weight"), dtype=np.float32)
    return params


# workers --------------------------------------------------------------------------------------------------------


class Worker:
    """A contender in a process of its own. A pipe tells it to run one chunk at a time.

    Separate processes keep the waiting threads of an OpenMP runtime away from the contender whose turn it is.
    """

    def __init__(self, kind: str, label: str, options: dict[str, Any], threads: int, isa: str | None = None) -> None:
        self.label = label
        environment = {**os.environ, **thread_environment(threads), **isa_environment(isa)}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), kind, json.dumps({**options, "threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.info = self._read()

    def call(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.label}: the worker ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise WorkerError(f"{self.label}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


class WorkerError(RuntimeError):
    """A contender that could not start or that failed; its message says why."""


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that give every runtime the same number of threads."""
    names = ("SOMA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def isa_environment(isa: str | None) -> dict[str, str]:
    """Variables that hold us to one instruction set, and PyTorch too where that is possible."""
    if isa is None:
        return {}
    held = {"SOMA_ISA": isa}
    if isa == "avx2":
        held |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    return held


def alternate(workers: Sequence[Worker], rounds: int, commands: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """The answers of each worker, one for each round. The order changes, so that no worker is always first."""
    answers: dict[str, list[Any]] = {worker.label: [] for worker in workers}
    for turn in range(rounds):
        shift = turn % len(workers)
        for worker in [*workers[shift:], *workers[:shift]]:
            answers[worker.label].append(worker.call(**commands[worker.label]))
    return answers


def pairwise(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ratios of figures of the same round: how many times as fast we are."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "rounds": ratios}


# record ---------------------------------------------------------------------------------------------------------


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="cpu", help="where all contenders compute: cpu, cuda or cuda:N")


def machine_record(threads: int, isa: str | None, device: str = "cpu") -> dict[str, Any]:
    """Machine, device, instruction set, threads, commit and versions of a measurement."""
    import soma_native
    from soma_native.system import gpus

    return {
        "cpu": cpu_model(),
        **({} if device == "cpu" else {"gpu": {gpu.device: gpu.name for gpu in gpus()}[device.removesuffix(":0")]}),
        "cpu_flags": cpu_flags(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "isa": isa or soma_native.active_isa(),
        "isas": list(soma_native.available_isas()),
        "system": f"{platform.system()} {platform.release().split('-')[0]} on {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
        "versions": versions("soma-native", "numpy", "torch", "transformers", "tokenizers", "llama-cpp-python"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cpu_model() -> str:
    """The name of the processor, or else of the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The features of the CPU that decide how fast a matrix product can be."""
    wanted = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
    try:
        present = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [flag for flag in wanted if flag in present]


def commit() -> str:
    """The commit of the source tree, with "-dirty" if the tree was changed; "unknown" outside a repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def versions(*packages: str) -> dict[str, str]:
    """Package -> version, for each installed package."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_record(path: str | None, benchmark: str, machine: dict[str, Any], results: Iterable[dict[str, Any]]) -> None:
    """Write the record as JSON if a path was given."""
    if path is None:
        return
    record = {"benchmark": benchmark, "machine": machine, "results": list(results)}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nrecord written to {target}")


def print_machine(machine: dict[str, Any]) -> None:
    """One paragraph above every table."""
    parts = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f"{machine['gpu']}; " if "gpu" in machine else ""
    print(f"{gpu}{machine['cpu']}, {machine['threads']} threads, isa {machine['isa']}, commit {machine['commit']}")
    print(parts + "\n", flush=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A plain table: first column left, the others right."""
    text = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(header[i]), *(len(row[i]) for row in text)) for i in range(len(header))]
    for row in [list(header), *text]:
        cells = [
            cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), flush=True)


def describe(workload: Workload) -> dict[str, Any]:
    """The workload as the record has it, with its counts."""
    parameters = sum(int(np.prod(shape)) for shape in parameter_shapes(workload).values())
    return {**workload.to_dict(), "parameters": parameters, "flops_per_token": workload.flops_per_token}
