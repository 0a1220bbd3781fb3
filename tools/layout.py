"""Checks the promises of the package's layout, and says where one is broken.

The promises: no module imports the package's own `__init__`. Only core.py imports `_core`. Imports run downwards
through LEVELS, without a circle. Few files lie at the top of the package. Tests lie in folders. Imports under
TYPE_CHECKING and inside functions count. tests/package/test_layout.py runs the same checks.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "soma_native"
MOST_FILES_AT_THE_TOP = 12
MOST_TESTS_OUTSIDE = 6

# A package or module at the top may import from the lines below its own line, and from itself.
LEVELS = (
    ("__init__", "__main__"),
    ("cli",),
    ("serve", "planning"),
    ("showcase", "profiling"),
    ("training",),
    ("analysis",),
    ("generation",),
    ("checkpoint", "data"),
    ("tokenizer", "optim"),
    ("files", "model"),
    ("parallel",),
    ("system",),
    ("version",),
    ("_checks",),
    ("core", "errors"),
)


def name_of(path: Path) -> str:
    """The dotted name of a module below the package; that of a package is its folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The modules of this package that a module imports anywhere in its code; "" is the package's own `__init__`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            deeper = {name for name in inside if name.removeprefix("soma_native.") in modules}
            found |= deeper or {node.module or ""}
    own = {name for name in found if name.split(".")[0] == "soma_native"}
    return {name.removeprefix("soma_native").removeprefix(".") for name in own}


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Each circle of imports, once."""
    found: dict[frozenset[str], str] = {}

    def walk(way: list[str]) -> None:
        for following in sorted(imports.get(way[-1], ())):
            if following in way:
                circle = way[way.index(following) :]
                found.setdefault(frozenset(circle), " -> ".join([*circle, following]))
            elif following not in done:
                walk([*way, following])
        done.add(way[-1])

    done: set[str] = set()
    for module in sorted(imports):
        walk([module])
    return list(found.values())


def measure() -> dict[str, list[str]]:
    """The breaches of each promise. The last two entries list the files that are counted."""
    paths = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    imports = {name: imports_of(path, {*paths, "_core"}) for name, path in paths.items()}
    level = {top: number for number, tops in enumerate(LEVELS) for top in tops}
    upwards = [
        f"{name} imports {other}"
        for name, others in sorted(imports.items())
        for other in sorted(others - {"", "_core"})
        if (top := name.split(".")[0]) != (below := other.split(".")[0]) and level.get(top, 0) >= level.get(below, 0)
    ]
    return {
        "modules that import the package's __init__": sorted(name for name in imports if "" in imports[name]),
        "modules beside core.py that import _core": sorted(n for n in imports if "_core" in imports[n] and n != "core"),
        "imports upwards": upwards,
        "packages without a level": sorted({name.split(".")[0] for name in imports} - level.keys()),
        "circles": circles(imports),
        "files at the package's top": sorted(path.name for path in PACKAGE.iterdir() if path.suffix in {".py", ".pyi"}),
        "test files outside a folder": sorted(path.name for path in (ROOT / "tests").glob("*.py")),
    }


def main() -> int:
    """Print the counts; return 1 if a promise is broken."""
    most = {"files at the package's top": MOST_FILES_AT_THE_TOP, "test files outside a folder": MOST_TESTS_OUTSIDE}
    broken = False
    for promise, found in measure().items():
        limit = most.get(promise, 0)
        print(f"{promise}: {len(found)} (at most {limit})")
        if len(found) > limit:
            broken = True
            print(*(f"  {one}" for one in found), sep="\n")
    return int(broken)


if __name__ == "__main__":
    raise SystemExit(main())
