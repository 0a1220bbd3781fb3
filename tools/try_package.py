"""Tries a wheel or a source distribution as a stranger gets it: in an empty environment, away from the source tree.

The environment holds the package and its dependencies. In it the package is imported, trains a tiny model, saves it,
loads it and generates; the command says what it is. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
LARGEST_WHEEL = 3_000_000  # bytes
IN_A_WHEEL = ("soma_native/_core.pyi", "soma_native/py.typed", "soma_native/showcase/corpus.txt")
LEVELS = ("", "scalar", "sse")  # of the instruction set; "" is the best
# The aim is 0.15 s, and anything above is said. Only 0.3 s fails: where other programs hold every core, the same import
# takes twice its time, and a failure must mean that the package became slower, not the machine.
IMPORT_SECONDS = "0.3"


def problems_of_wheel(wheel: Path) -> list[str]:
    """One line for each thing that is wrong with what a wheel holds."""
    found = []
    if (size := wheel.stat().st_size) >= LARGEST_WHEEL:
        found.append(f"{wheel.name} has {size:,} bytes: it must have fewer than {LARGEST_WHEEL:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    return found + [f"{wheel.name} lacks {name}" for name in IN_A_WHEEL if name not in names]


def install(package: Path, python: str, into: Path) -> Path:
    """Make an environment of that Python in `into`, install the package, and return its folder of programs."""
    subprocess.run([python, "-m", "venv", str(into)], check=True)
    bin = into / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(bin / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(package.resolve())], check=True)
    subprocess.run([*pip, "check"], check=True)
    return bin


def use(bin: Path, folder: Path) -> None:
    """Run what is installed in `bin`, in `folder`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOMA_"))}

    def run(*command: str | Path, isa: str = "") -> None:
        chosen = {"SOMA_ISA": isa} if isa else {}
        subprocess.run([str(word) for word in command], cwd=folder, env={**environment, **chosen}, check=True)

    run(bin / "soma-native", "info")
    for isa in LEVELS:
        run(bin / "python", TOOLS / "smoke.py", isa=isa)
    run(bin / "python", TOOLS / "import_time.py", "--limit", IMPORT_SECONDS)


def try_package(package: Path, python: str, into: Path) -> None:
    """Install the package into an environment in `into` and use it; whatever fails raises."""
    print(f"{package.name}: {package.stat().st_size:,} bytes", flush=True)
    if package.suffix == ".whl" and (found := problems_of_wheel(package)):
        raise SystemExit("\n".join(found))
    use(install(package, python, into), into)


def main() -> int:
    """Try the package that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="a wheel or a source distribution")
    parser.add_argument("--python", default=sys.executable, help="the Python of the environment (default: this one)")
    parser.add_argument("--into", type=Path, help="where to leave the environment (default: it is removed)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try_package(arguments.package, arguments.python, arguments.into or Path(scratch) / "environment")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
