"""The layout of the package, checked by tools/layout.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import layout

pytestmark = pytest.mark.levels()


def test_the_package_is_laid_out_as_promised() -> None:
    """tools/layout.py checks: one import of the core, imports downwards without circles, few files outside folders."""
    found = layout.measure()
    tops, outside = found.pop("files at the package's top"), found.pop("test files outside a folder")
    assert not {promise: broken for promise, broken in found.items() if broken}
    assert len(tops) <= layout.MOST_FILES_AT_THE_TOP and len(outside) <= layout.MOST_TESTS_OUTSIDE


@pytest.mark.parametrize(
    ("code", "promise"),
    [
        ("from soma_native import Model", "modules that import the package's __init__"),
        ("import soma_native", "modules that import the package's __init__"),
        ("from soma_native import _core", "modules beside core.py that import _core"),
        ("def f():\n    from soma_native.cli.main import main", "imports upwards"),
        ("if TYPE_CHECKING:\n    from soma_native.files.b import B", "circles"),
    ],
)
def test_a_broken_layout_is_found(code: str, promise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "soma_native"
    for folder in (package, package / "files", package / "cli"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    (package / "cli" / "main.py").touch()
    (package / "files" / "b.py").write_text("from soma_native.files.a import A")
    (package / "files" / "a.py").write_text(code)
    monkeypatch.setattr(layout, "PACKAGE", package)
    assert [name for name, found in layout.measure().items() if found and "files" not in name] == [promise]


def test_the_map_names_files_and_names_that_exist() -> None:
    """Every path and every identifier in backticks in the tables of CONTRIBUTING.md."""
    rows = [
        line for line in (layout.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    named = set(re.findall(r"`([^`]+)`", " ".join(rows)))
    tops = ("src", "bindings", "soma_native", "tests", "tools", "cmake", "benchmarks", "docs")
    code = [
        p for top in tops for p in (layout.ROOT / top).rglob("*") if p.suffix in {".py", ".h", ".cpp", ".cmake", ".md"}
    ]
    places = {f"/{p.relative_to(layout.ROOT).as_posix()}" for p in (*code, *(p.parent for p in code))}
    paths = {name for name in named if re.fullmatch(r"[a-z][\w/]*\.(?:py|h|cpp|cmake|md)|[a-z]\w+(?:/\w+)*/", name)}
    assert len(paths) > 40
    assert not sorted(name for name in paths if not any(place.endswith(f"/{name.rstrip('/')}") for place in places))
    words = set(re.findall(r"\w+", " ".join(p.read_text(encoding="utf-8") for p in code if p.suffix != ".md")))
    identifiers = {name for name in named if re.fullmatch(r"(?=.*[A-Z_])[A-Za-z_]\w*[A-Za-z]", name)}
    assert len(identifiers) > 10
    assert identifiers - {"LICENSE"} <= words
