"""`soma-native info`: version, instruction sets, threads, GPUs, and what precision "auto" means on this machine."""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict
from typing import Any

import numpy

from soma_native import system
from soma_native.cli.arguments import add_command
from soma_native.cli.output import print_json, print_table
from soma_native.model.model import resolve_precision
from soma_native.training.memory import size_text
from soma_native.version import __version__


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    add_command(commands, "info", run, "say what this machine and this installation can do", "info --json")


def collect() -> dict[str, Any]:
    """The facts, by name."""
    training, evaluation = resolve_precision("auto")
    return {
        "version": __version__,
        "isas": list(system.available_isas()),
        "isa": system.active_isa(),
        "threads": system.get_num_threads(),
        "precision": training,
        "evaluation_precision": evaluation,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": collect_cuda(),
    }


def collect_cuda() -> dict[str, Any]:
    """The facts about GPUs; `problem` says why there is none."""
    facts: dict[str, Any] = {"library": None, "driver": None, "products": None, "gpus": [], "problem": None}
    try:
        facts["library"] = system.cuda_library()
        facts["driver"] = system.cuda_driver()
        facts["products"] = system.cuda_products()
        facts["gpus"] = [asdict(gpu) for gpu in system.gpus()]
    except RuntimeError as error:
        facts["problem"] = str(error)
    return facts


def _rows_of_cuda(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (f"GPU {gpu['device']}", f"{gpu['name']}, {size_text(gpu['memory'])}, capability {gpu['compute_capability']}")
        for gpu in facts["gpus"]
    ]
    if facts["problem"]:
        rows = [("GPUs", f"none: --device cuda {facts['problem']}")]
    if facts["driver"]:
        rows.append(("CUDA of the driver", facts["driver"]))
    if facts["gpus"]:
        rows.append(("large products", facts["products"]))
    return rows


def run(arguments: argparse.Namespace) -> None:
    """Print the facts."""
    facts = collect()
    if arguments.json:
        print_json(facts)
        return
    rows = [
        ("version", facts["version"]),
        ("instruction sets here", " < ".join(facts["isas"])),
        ("in use (SOMA_ISA limits it)", facts["isa"]),
        ("threads (SOMA_NUM_THREADS sets it)", facts["threads"]),
        ('"auto" trains in (SOMA_PRECISION sets it)', facts["precision"]),
        ('"auto" evaluates in', facts["evaluation_precision"]),
        ("Python, NumPy", f"{facts['python']}, {facts['numpy']}"),
        ("system", facts["system"]),
        *_rows_of_cuda(facts["cuda"]),
    ]
    print_table("", ("what", "value"), rows)
