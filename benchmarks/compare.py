"""Two records of one benchmark side by side: python benchmarks/compare.py before.json after.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import print_table

RATES = ("tokens_per_second", "megabytes_per_second")
KEYS = ("workload", "task", "label")


def rate(result: dict[str, Any]) -> float:
    """The figure of a result that is better when larger."""
    return float(next(result[name] for name in RATES if name in result))


def read(path: str) -> dict[str, Any]:
    """A record, or an exit that says what is wrong with the file."""
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"compare: {path}: {error}")
    if not {"benchmark", "machine", "results"} <= record.keys():
        sys.exit(f"compare: {path} is not a record of these benchmarks")
    return record


def main(argv: list[str]) -> int:
    """Print rates of both and their ratio, for what both measured."""
    if len(argv) != 2:
        sys.exit(__doc__)
    before, after = (read(path) for path in argv)
    if before["benchmark"] != after["benchmark"]:
        sys.exit(f"compare: {argv[0]} is of '{before['benchmark']}', {argv[1]} of '{after['benchmark']}'")
    for name in ("cpu", "cores", "threads", "isa", "commit"):
        pair = before["machine"].get(name), after["machine"].get(name)
        print(f"{name}: {pair[0]}" + ("" if pair[0] == pair[1] else f" -> {pair[1]}"))
    if before["machine"].get("cpu") != after["machine"].get("cpu"):
        print("The machines differ: these ratios say nothing about the code.")
    print()
    old = {tuple(r.get(key) for key in KEYS): r for r in before["results"]}
    rows = []
    for result in after["results"]:
        key = tuple(result.get(k) for k in KEYS)
        if key in old:
            was, now = rate(old[key]), rate(result)
            rows.append([" ".join(filter(None, key)), f"{was:,.2f}", f"{now:,.2f}", f"{now / was:.2f}"])
    if not rows:
        sys.exit("compare: the two records have nothing in common")
    print_table(["what", "before", "after", "after / before"], rows)
    print("\nThe two were not run alternately: on a shared machine figures move by a factor of two between hours.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
