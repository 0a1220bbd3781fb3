"""Records of benchmarks side by side, or as a page.

python benchmarks/compare.py before.json after.json             two records of one benchmark
python benchmarks/compare.py --markdown RECORD... > PAGE.md     a table for each record, the newest first
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import print_table

RATES = ("tokens_per_second", "megabytes_per_second")
KEYS = ("workload", "task", "label")
MACHINE = ("cpu", "cores", "threads", "isa", "commit")
# Columns of a page: the title, and the text for a result. A column without any text is left out.
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "workload": lambda r: r["workload"],
    "task": lambda r: r["task"],
    "contender": lambda r: r["label"],
    "tokens/s": lambda r: f"{r['tokens_per_second']:,.0f}",
    "MB/s": lambda r: f"{r['megabytes_per_second']:,.1f}",
    "seconds": lambda r: f"{r['seconds']:,.3f}",
    "ms": lambda r: f"{r['milliseconds']:.1f}",
    "answers": lambda r: f"{r['right']:,} right, {r.get('wrong', 0)} wrong, {r.get('failed', 0)} failed",
    "range": lambda r: f"{short(min(r['rounds']))} to {short(max(r['rounds']))}",
    "rounds": lambda r: str(len(r["rounds"])),
    "peak MB": lambda r: f"{r['peak_rss_mb'] if 'peak_rss_mb' in r else r['peak_megabytes']:,.0f}",
    "steps": lambda r: str(r["steps"]),
    "validation loss": lambda r: f"{r['curve'][-1]['validation_loss']:.4f}",
    "losses part by at most": lambda r: f"{r['largest_difference']:.3%}",
    "we are x times": lambda r: ratios(r),
}


def short(figure: float) -> str:
    """A figure with three digits, or with all digits before the point if they are more."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def rate(result: dict[str, Any]) -> float | None:
    """The figure of a result for which larger is better, if there is one."""
    if "seconds" in result:
        return float(result["megabytes"] / result["seconds"])
    return next((float(result[name]) for name in RATES if name in result), None)


def ratios(result: dict[str, Any]) -> str:
    """How many times as fast as a peer our contenders are, with the range over the rounds."""
    if result["label"].startswith("soma_native"):
        return "-"
    over = result["ours_over_this"]
    return ", ".join(f"{who}: {p['median']:.2f} ({p['min']:.2f}-{p['max']:.2f})" for who, p in over.items()) or "-"


def read(path: str) -> dict[str, Any]:
    """Read a record; if the file is no record, exit with the reason."""
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"compare: {path}: {error}")
    if not isinstance(record, dict) or not {"benchmark", "machine", "results"} <= record.keys():
        sys.exit(f"compare: {path} is not a record of these benchmarks")
    return record


def cells(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table of a record, its header first."""

    def cell(column: Callable[[dict[str, Any]], str], result: dict[str, Any]) -> str:
        try:
            return column(result).replace("|", "\\|")
        except (KeyError, IndexError):
            return ""

    columns = [[title, *(cell(column, result) for result in results)] for title, column in COLUMNS.items()]
    return [list(row) for row in zip(*(column for column in columns if any(column[1:])), strict=True)]


def page(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a heading, the machine and a table for each record."""
    lines = [
        "# Performance",
        "",
        "Made by `python benchmarks/compare.py --markdown RECORD...` and not edited. Compare ratios, never the rates",
        "of two records: machines are shared. `benchmarks/README.md` says how to read them.",
    ]
    for record in sorted(records, key=lambda record: record["machine"].get("time", ""), reverse=True):
        machine = record["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
        lines += ["", f"## {record['benchmark']}, {machine.get('time', 'undated')[:10]}", ""]
        lines += [f"- {name}: {machine.get(name, 'unknown')}" for name in (*MACHINE, "system", "python")]
        lines += [f"- versions: {versions or 'unknown'}", ""]
        header, *rows = cells(record["results"]) or [["no results"]]
        lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print a page, or the rates of two records and their ratios."""
    if argv[:1] == ["--markdown"] and len(argv) > 1:
        print(page([read(path) for path in argv[1:]]))
        return 0
    if len(argv) != 2 or "--markdown" in argv:
        sys.exit(__doc__)
    before, after = (read(path) for path in argv)
    if before["benchmark"] != after["benchmark"]:
        sys.exit(f"compare: {argv[0]} is of '{before['benchmark']}', {argv[1]} of '{after['benchmark']}'")
    for name in MACHINE:
        pair = before["machine"].get(name), after["machine"].get(name)
        print(f"{name}: {pair[0]}" + ("" if pair[0] == pair[1] else f" -> {pair[1]}"))
    if before["machine"].get("cpu") != after["machine"].get("cpu"):
        print("The machines differ: these ratios say nothing about the code.")
    print()
    old = {tuple(r.get(key) for key in KEYS): r for r in before["results"]}
    rows = []
    for result in after["results"]:
        key = tuple(result.get(k) for k in KEYS)
        if key in old and (was := rate(old[key])) and (now := rate(result)):
            rows.append([" ".join(filter(None, key)), f"{was:,.2f}", f"{now:,.2f}", f"{now / was:.2f}"])
    if not rows:
        sys.exit("compare: the two records have no rate in common")
    print_table(["what", "before", "after", "after / before"], rows)
    print("\nThe two were not run alternately: on a shared machine figures move by a factor of two between hours.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
