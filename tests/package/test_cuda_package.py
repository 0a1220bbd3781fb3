"""The distribution for GPUs has the version of the library, and says to it where its own library lies."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import soma_native as soma
from soma_native.system import CUDA_PACKAGE

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cuda13"


def test_both_have_one_version_and_name_each_other() -> None:
    text = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    version = re.escape(soma.__version__)
    for line in (f'name = "{CUDA_PACKAGE}"', f'version = "{version}"', rf'dependencies = \["soma-native=={version}"\]'):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    extra = rf'^cuda13 = \["{CUDA_PACKAGE}=={version}"\]$'
    assert re.search(extra, (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_entry_point_gives_the_library_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^\[project\.entry-points\."(soma_native\.backends)"\]\ncuda = "(.*)"$', text, re.MULTILINE)
    assert found is not None
    monkeypatch.syspath_prepend(PACKAGE)
    library = EntryPoint("cuda", found[2], found[1]).load()()
    del sys.modules["soma_native_cuda13"]
    assert library == PACKAGE / "soma_native_cuda13" / "libsoma_cuda.so"
