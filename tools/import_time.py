"""Measures how long `import soma_native` takes in a fresh process, several times.

The fastest time is judged, because other programs only add to it. The median is printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = "import time; start = time.perf_counter(); import soma_native; print(time.perf_counter() - start)"
AIM = 0.15


def main() -> int:
    """Print the times, warn if the fastest is over the aim, and return 1 if it is over --limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=AIM, help=f"seconds above which to fail (default {AIM})")
    parser.add_argument("--repeat", type=int, default=9, help="processes to start (default 9)")
    arguments = parser.parse_args()
    seconds = []
    for _ in range(arguments.repeat + 1):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True, text=True)
        seconds.append(float(done.stdout))
    fastest, median = min(seconds[1:]), statistics.median(seconds[1:])
    print(f"import soma_native: fastest {fastest:.3f} s, median {median:.3f} s of {arguments.repeat}; aim {AIM} s")
    if fastest > AIM:
        print(f"WARNING: import soma_native takes {fastest:.3f} s here, more than the {AIM} s it should take at most")
    if fastest > arguments.limit:
        print(f"over the limit of {arguments.limit} s")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
