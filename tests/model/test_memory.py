"""Memory: training steps after the first allocate nothing, and a model that only generates has no gradients."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.noise import NOISE

resource = pytest.importorskip("resource", reason="counts of page faults, which this system does not give")
pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="mallinfo2, and ru_maxrss in KB: Linux with the GNU C library"
)

STEPS = 12


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks"]
    ] + [("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def bytes_in_use() -> int:
    """Bytes handed out by malloc in this process."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
@pytest.mark.parametrize("noise", [{}, NOISE], ids=["plain", "noise"])
def test_a_step_allocates_nothing_after_the_first(block: str, optimizer: str, noise: dict[str, Any]) -> None:
    """Muon on one thread: with several, chance decides in which step each thread first needs its scratch."""
    if optimizer == "Muon":
        soma.set_num_threads(1)
    config = soma.ModelConfig(
        vocab_size=3000, d_model=128, n_layers=2, n_heads=4, d_ff=512, max_seq_len=128, block=block
    )
    model = soma.Model(config)
    step = getattr(soma, optimizer)(model).step
    ids = np.random.default_rng(0).integers(0, 3000, (8, 128)).astype(np.int32)
    for _ in range(3):
        model.loss_and_grad(ids, ids, **noise)
        step()
    faults, in_use = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, bytes_in_use()
    for _ in range(STEPS):
        model.loss_and_grad(ids, ids, **noise)
        step()
    # A buffer that each step makes and frees would fault in new pages: even the smallest activation, of (8 * 128, 128)
    # floats, has more than 64. Python's own allocations touch a few.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 64 * STEPS
    assert bytes_in_use() - in_use < 64 * 1024


def test_generating_needs_no_gradients() -> None:
    """A model with 64 MB of parameters prefills and decodes without a second copy of them."""
    code = """
import resource, numpy as np, soma_native as soma
from soma_native import _core
config = soma.ModelConfig(vocab_size=16000, d_model=512, n_layers=2, n_heads=8, d_ff=512, max_seq_len=32, block="gpt2")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = soma.Model(config)
decoder = _core.Decoder(model._core, 1)
decoder.prefill(0, np.arange(8, dtype=np.int32))
decoder.step(np.zeros(1, np.int32), np.ones(1, np.int32))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < 1.6 * model.num_parameters * 4, (grown, model.num_parameters * 4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
