"""Checks the library for GPUs: tensor cores are used, copies are asynchronous, nothing is spilled, glibc may be old.

Usage: python tools/check_cuda.py LIBRARY [CUOBJDUMP]. LIBRARY is what cmake/cuda.cmake built. Nothing needs a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

# Instructions that the products must have on every chip, and those that only spilled registers make.
WANTED = ("HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128")
UNWANTED = ("LDL", "STL")
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25)}  # of Red Hat Enterprise Linux 8


def find_cuobjdump() -> Path:
    """The cuobjdump of the wheels in this Python."""
    spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cu13")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for place in places if (path := Path(place, "bin", "cuobjdump")).exists()]
    if not found:
        sys.exit("no cuobjdump: run pip install -r cmake/requirements-cuda.txt, or name it as the second argument")
    return found[0]


def instructions(assembly: str) -> dict[str, Counter[str]]:
    """For each chip, how often each instruction is there."""
    found: dict[str, Counter[str]] = {}
    for part in re.split(r"^\s*arch = ", assembly, flags=re.MULTILINE)[1:]:
        chip = part.split(None, 1)[0]
        lines = re.findall(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", part)
        found.setdefault(chip, Counter()).update(lines)
    return found


def breaches(counts: Counter[str]) -> list[str]:
    """What the code of one chip lacks, and what it should not have."""
    lacking = [f"no {name}" for name in WANTED if not counts[name]]
    spilled = [f"{n} {name}" for name, n in counts.items() if name.split(".")[0] in UNWANTED]
    return lacking + spilled


def newest(library: bytes, name: str) -> tuple[int, ...]:
    """The newest version of glibc or libstdc++ that a library names: those that its linker saw."""
    named = re.findall(rb"\0%s_(\d+(?:\.\d+)+)(?=\0)" % name.encode(), library)
    return max((tuple(map(int, version.split(b"."))) for version in named), default=(0,))


def main(library: Path, cuobjdump: Path) -> int:
    """Print what each chip's code has, and return 1 where something is wrong."""
    path = os.pathsep.join((str(cuobjdump.parent), os.environ.get("PATH", "")))  # cuobjdump looks for nvdisasm
    command = [str(cuobjdump), "-sass", str(library)]
    assembly = subprocess.run(command, capture_output=True, check=True, text=True, env={**os.environ, "PATH": path})
    chips = instructions(assembly.stdout)
    wrong = 0 if chips else 1
    if not chips:
        print(f"{library} has no machine code of a GPU")
    for chip, counts in sorted(chips.items()):
        problems = breaches(counts)
        wrong |= bool(problems)
        print(f"{chip}: {', '.join(f'{counts[name]} {name}' for name in WANTED)}; {', '.join(problems) or 'right'}")
    content = library.read_bytes()
    for name, most in NEWEST.items():
        found = newest(content, name)
        wrong |= found > most
        verdict = "too new for old systems (cmake/old_glibc.cmake)" if found > most else "right"
        print(f"{name.lower()} {'.'.join(map(str, found))}: {verdict}")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else find_cuobjdump()))
