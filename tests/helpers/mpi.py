"""Starts programs as the ranks of an MPI, on this machine. A test is skipped where there is no MPI."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# As Open MPI wants it, to run as root and with more ranks than cores. MPICH asks for nothing.
_ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


def mpiexec() -> str:
    """The program that starts ranks: beside this Python, or on the path. Without it, or mpi4py, the test is skipped."""
    pytest.importorskip("mpi4py")
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpiexec", path=places)
    if found is None:
        pytest.skip("there is no mpiexec")
    return found


def start_ranks(size: int, *arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `python ARGUMENTS` as that many ranks, without the thread settings of this process."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SOMA_NUM_THREADS", "OMP_", "GOMP_"))}
    return subprocess.Popen(
        [mpiexec(), "-n", str(size), sys.executable, *map(str, arguments)],
        cwd=cwd, env={**_ALLOWED, **inherited, **environment}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end_of(ranks: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    """Status, output and errors of ranks. After `timeout` seconds they are ended, and the test fails."""
    try:
        out, err = ranks.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        ranks.send_signal(signal.SIGTERM)  # the mpiexec ends its ranks
        try:
            out, err = ranks.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            ranks.kill()
            out, err = ranks.communicate()
        pytest.fail(f"the ranks did not end within {timeout} s; they said:\n{out}\n{err}")
    return ranks.returncode, out, err


def run_ranks_of_mpi(size: int, code: str, cwd: Path, **environment: str) -> str:
    """What the ranks print that run this code."""
    status, out, err = end_of(start_ranks(size, "-m", "mpi4py", "-c", code, cwd=cwd, **environment))
    assert status == 0, err
    return out
