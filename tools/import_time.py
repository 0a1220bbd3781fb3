"""Measures how long `import soma_native` takes in a fresh process: the median of several."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = "import time; start = time.perf_counter(); import soma_native; print(time.perf_counter() - start)"
AIM = 0.15


def main() -> int:
    """Print the median and return 1 where it is over --limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=AIM, help=f"seconds above which to fail (default {AIM})")
    parser.add_argument("--repeat", type=int, default=9, help="processes to start (default 9)")
    arguments = parser.parse_args()
    seconds = []
    for _ in range(arguments.repeat + 1):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True, text=True)
        seconds.append(float(done.stdout))
    median = statistics.median(seconds[1:])
    print(f"import soma_native: {median:.3f} s (median of {arguments.repeat}; aim {AIM} s, limit {arguments.limit} s)")
    return 0 if median <= arguments.limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
