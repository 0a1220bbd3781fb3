"""Prints the requirements of extras of pyproject.toml, one on each line. They can be installed without a build then."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def optional_dependencies(text: str) -> dict[str, list[str]]:
    """Return the extras of a pyproject.toml; Python 3.10 has no tomllib, and string lists are all that is read here."""
    section = text.split("[project.optional-dependencies]", 1)[1].split("\n[", 1)[0]
    extras = re.findall(r"^(\w+) = \[(.*?)\]$", section, flags=re.MULTILINE | re.DOTALL)
    return {name: re.findall(r'"([^"]+)"', body) for name, body in extras}


def main() -> int:
    """Print the requirements of the extras named on the command line."""
    extras = optional_dependencies(PYPROJECT.read_text(encoding="utf-8"))
    for name in sys.argv[1:]:
        if name not in extras:
            print(f"pyproject.toml has no extra {name!r}; it has {', '.join(extras)}", file=sys.stderr)
            return 2
        print("\n".join(extras[name]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
