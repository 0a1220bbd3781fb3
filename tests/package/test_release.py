"""The tools that build and try what people install; .ci/run calls them on a real wheel."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

sys.path.insert(0, str(ROOT / "tools"))
try:
    import other_linux
    import release
    import try_package
finally:
    sys.path.pop(0)


def test_wheels_are_built_for_every_supported_python() -> None:
    (built,) = re.findall(r'^build = "(cp[^"]*)"$', PYPROJECT, re.MULTILINE)
    assert [f"cp{version.replace('.', '')}-*" for version in release.supported()] == built.split()
    assert release.supported()[0] in re.findall(r'^requires-python = ">=(.*)"$', PYPROJECT, re.MULTILINE)


def test_the_newest_python_of_a_version_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("3.12.9", "3.12.10", "3.1.20", "3.120.1"):
        (tmp_path / "pyenv" / "versions" / name).mkdir(parents=True)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path))
    versions = [Path(python).parent.parent.name for python in release.candidates("3.12")]
    assert versions == ["3.12.10", "3.12.9"]


def test_a_python_that_does_not_run_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("not a program")
    assert not release.can_build(str(broken))
    assert not release.can_build(str(tmp_path / "none"))
    monkeypatch.setattr(release, "candidates", lambda version: iter([str(broken)]))
    assert release.pythons() == {}


def test_what_a_wheel_must_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in try_package.IN_A_WHEEL[1:]:
            archive.writestr(name, "")
    assert try_package.problems_of_wheel(wheel) == ["some.whl lacks soma_native/_core.pyi"]
    monkeypatch.setattr(try_package, "LARGEST_WHEEL", 10)
    assert "it must have fewer than 10" in try_package.problems_of_wheel(wheel)[0]


def test_the_tools_that_are_called_are_declared() -> None:
    source = (ROOT / "tools" / "release.py").read_text(encoding="utf-8")
    called = set(re.findall(r'sys.executable, "-m", "(\w+)"', source))
    extras = "".join(re.findall(r"^(?:release|dev) = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL))
    assert called and {name for name in called if f'"{name}' not in extras} == set()


def test_the_tests_that_run_on_another_linux_exist() -> None:
    names = [name for name in other_linux.TESTS if "::" in name]
    assert names
    for name in names:
        path, function = name.split("::")
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), name
