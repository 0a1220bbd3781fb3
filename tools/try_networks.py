"""Trains on two ranks in two network namespaces, as on two machines; then cuts their link, and resumes on one process.

python tools/try_networks.py: needs root, `ip` of iproute2, MPICH and mpi4py. Losses must be those of one process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from kill_ranks import STEPS, TOLERANCE, children, command, events, largest_difference, losses, write_text

SPACES = {"soma_first": "10.199.77.1", "soma_second": "10.199.77.2"}  # and their addresses
FIRST, SECOND = SPACES
# What mpiexec takes for ssh: it enters the namespace of an address.
ENTER = "\n".join(
    [
        "#!/bin/sh",
        "while [ $# -gt 0 ]; do case $1 in -*) shift ;; *) break ;; esac; done",
        "host=$1; shift",
        "case $host in",
        *(f'  {address}) exec ip netns exec {space} sh -c "$*" ;;' for space, address in SPACES.items()),
        "esac",
        "exit 1",
    ]
)


def ip(*words: str, check: bool = True) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=check)


def end(space: str) -> dict[str, Any]:
    """What `ip` says of one end of the link."""
    words = ["ip", "-n", space, "-json", "-statistics", "link", "show", "soma0"]
    (found,) = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return dict(found)


def connect() -> None:
    """Make both namespaces and the link between them."""
    for space in SPACES:
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
    ip("link", "add", "soma0", "netns", FIRST, "type", "veth", "peer", "name", "soma0", "netns", SECOND)
    for space, address in SPACES.items():
        ip("-n", space, "address", "add", f"{address}/24", "dev", "soma0")
        ip("-n", space, "link", "set", "soma0", "up")
    while any(end(space)["operstate"] != "UP" for space in SPACES):
        time.sleep(0.01)


def apart(folder: Path, out: str) -> subprocess.Popen[str]:
    """Start a run with one rank in each namespace."""
    mpiexec, *rest = command(2, out)
    enter = folder / "enter"
    enter.write_text(ENTER, encoding="utf-8")
    enter.chmod(0o755)
    # Else ranks of one kernel would share memory.
    tcp = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "soma0"}
    hosts = ["-launcher", "ssh", "-launcher-exec", str(enter), "-hosts", ",".join(SPACES.values())]
    return subprocess.Popen(
        ["ip", "netns", "exec", FIRST, mpiexec, *hosts, *rest],
        cwd=folder, env={**os.environ, **tcp}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def main() -> int:
    """Train on one process and on two; cut the link; resume. Prints what was found."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_text(folder, random.Random(0))
        alone = command(1, "alone")[3:]
        subprocess.run(alone, cwd=folder, check=True, capture_output=True)
        expected = losses(folder / "alone")
        try:
            connect()
            whole = apart(folder, "whole")
            _, said = whole.communicate(timeout=300)
            if whole.returncode:
                print(said)
                return 1
            together = largest_difference(losses(folder / "whole"), expected)
            megabytes = end(FIRST)["stats64"]["tx"]["bytes"] / 1e6
            print(f"two networks, {megabytes:.0f} MB sent: losses of one process to {together:.1e}")
            cut = apart(folder, "cut")
            while not events(folder / "cut", "save") and cut.poll() is None:
                time.sleep(0.01)
            ip("-n", SECOND, "link", "set", "soma0", "down")
            began = time.monotonic()
            assert cut.stderr is not None
            line = next(line for line in cut.stderr if "error: rank" in line)
            said_at = time.monotonic()
            while children(cut.pid):
                time.sleep(0.01)
            ended_at = time.monotonic()
            cut.kill()  # it waits for a machine that it cannot reach
            saved = events(folder / "cut", "save")[-1]
            print(f"link cut after step {saved} of {STEPS}; {said_at - began:.0f} s later: {line.strip()}")
            print(f"all had ended {ended_at - said_at:.0f} s after that line")
        finally:
            for space in SPACES:
                found = subprocess.run(["ip", "netns", "pids", space], check=False, capture_output=True, text=True)
                for process in found.stdout.split():
                    os.kill(int(process), signal.SIGKILL)
                ip("netns", "del", space, check=False)
        resumed = [*alone, "--resume"]
        resumed[resumed.index("alone")] = "cut"
        subprocess.run(resumed, cwd=folder, check=True, capture_output=True)
        difference = largest_difference(losses(folder / "cut"), expected)
        print(f"resumed on one process: losses of one process to {difference:.1e}")
        return int(max(together, difference) > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
