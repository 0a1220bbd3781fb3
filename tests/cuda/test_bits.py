"""tools/gpu_bits.py knows the bits of the emulation, which a GPU must have too, and says where others begin."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")
sys.path.insert(0, TOOLS)
try:
    import gpu_bits
finally:
    sys.path.remove(TOOLS)


@pytest.mark.parametrize("case", gpu_bits.CASES)
def test_the_bits_are_those_that_are_stored(case: str) -> None:
    """Where a kernel has changed on purpose, python tools/gpu_bits.py --write stores the new ones."""
    assert gpu_bits.differences(case) == []


def test_the_first_difference_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit is enough."""
    found = {name: np.ones(4, np.float32) for name in ("logits", "loss", "average")}
    monkeypatch.setattr(gpu_bits, "EXPECTED", tmp_path / "bits.json")
    monkeypatch.setattr(gpu_bits, "CASES", ["soma small", "gpt2 small"])
    monkeypatch.setattr(gpu_bits, "results", lambda case: found.items())
    assert gpu_bits.main(write=True) == 0 and gpu_bits.main(write=False) == 0
    for name in ("loss", "average"):
        found[name] = np.array([1, 1, 1, np.nextafter(np.float32(1), np.float32(2))])
    monkeypatch.setattr(gpu_bits, "results", lambda case: {**found, "more": found["loss"]}.items())
    assert gpu_bits.main(write=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "soma small: right",
        "gpt2 small: right",
        "soma small: 3 differ, at first loss",
        "gpt2 small: 3 differ, at first loss",
    ]
