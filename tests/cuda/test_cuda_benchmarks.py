"""What the benchmarks time with --device cuda is what they time on the processor, but for rounding."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from soma_native.profiling.profile import Ceilings

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    from common import Workload, initial_parameters, training_batches
    from native import NativeDecoder, NativeTrainer
finally:
    sys.path.remove(BENCHMARKS)

SIZES = {"vocab_size": 19, "d_model": 12, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 12}
TINY = Workload("tiny", soma.ModelConfig(**SIZES, block="gpt2"), 6, 2)
DEVICES = ("cpu", "cuda")


def test_training_steps() -> None:
    curves = []
    for device in DEVICES:
        trainer = NativeTrainer(TINY, "float32", 1e-2, initial_parameters(TINY), device)
        assert trainer.model.device == device
        curves.append([trainer.step(trainer.batch(*pair)) for pair in training_batches(TINY)[:3]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("weights", ["live", "int8"])
def test_generation(weights: str) -> None:
    ids = [1, 5, 3, 18, 0, 7]
    logits = []
    for device in DEVICES:
        decoder = NativeDecoder(TINY, weights, device)
        assert decoder.model.device == device
        decoder.sample(ids)
        logits.append(np.array(decoder.logits(ids)))
    assert np.linalg.norm(logits[0] - logits[1]) < 1e-5 * np.linalg.norm(logits[0])


def test_the_ceilings_of_a_profile_are_those_of_the_gpu() -> None:
    """In a quarter of the memory that is free, which is little here, so that the emulation is quick."""
    emulated = os.environ.get("SOMA_CUDA_EMULATED")
    if emulated:
        from helpers.cuda import lib

        lib.soma_taken_memory.restype = ctypes.c_int64
        lib.soma_set_memory(ctypes.c_int64(lib.soma_taken_memory() + (20 << 20)))
    try:
        ceilings = Ceilings.measure("cuda")
    finally:
        if emulated:
            lib.soma_set_memory(ctypes.c_int64(4 << 30))
    assert ceilings.fma > 0 and ceilings.bf16 > 0
    sizes = [bandwidth.bytes for bandwidth in ceilings.bandwidths]
    assert sizes == [1 << 20, 4 << 20] if emulated else len(sizes) == 5
    assert all(bandwidth.read == bandwidth.update > 0 for bandwidth in ceilings.bandwidths)
