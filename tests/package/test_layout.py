"""The layout of the package, checked by tools/layout.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import layout


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
