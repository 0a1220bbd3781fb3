"""Says, before a build begins, what this machine lacks for it. Needs nothing but Python."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def problems() -> list[str]:
    """Return a line for each missing thing, with the way to mend it."""
    found: list[str] = []
    running = f"{sys.executable} (Python {sys.version.split()[0]})"
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info < (3, 10):  # noqa: UP036 - this file is what tells an older Python so
        found.append(f"{running} is too old: Python 3.10 or newer is needed; name one with make PYTHON=/path/to/python")
        return found
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append(
            f"{running} cannot make virtual environments (no ensurepip): on Debian and Ubuntu "
            f"'apt-get install {python}-venv', elsewhere install a complete Python"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        found.append(
            f"{running} has no headers (Python.h): on Debian and Ubuntu 'apt-get install {python}-dev', "
            f"on Fedora 'dnf install {python}-devel'"
        )
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name.split()[0]) for name in compilers if name.strip()):
        found.append("no C++ compiler (c++, g++, clang++ or $CXX): on Debian and Ubuntu 'apt-get install g++'")
    return found


def main() -> int:
    """Print the problems and return the exit status."""
    found = problems()
    for problem in found:
        print(f"cannot build soma_native here: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
