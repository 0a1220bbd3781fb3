"""Compares a GPU with the emulation of CUDA, bit for bit: what models compute in float32, without tensor cores and with
products that are too small for cuBLASLt.

Usage: python tools/gpu_bits.py [--write]. gpu_bits.json beside it has what the emulation computed. --write makes it
anew, after `make test-cuda`, with SOMA_CUDA_LIBRARY=build/cuda-emulated/libsoma_cuda_emulated.so.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import soma_native as soma
from soma_native import _core
from soma_native.optim.average import WeightAverage

EXPECTED = Path(__file__).with_suffix(".json")
BLOCKS: dict[str, dict[str, Any]] = {
    "soma": {},
    "gpt2": {},
    "llama": {"n_kv_heads": 1, "qk_norm": True, "rope_theta": 100.0},
}
# Fewer numbers than a tile, odd rests, and several tiles: of rows, of a head, and of cached positions.
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"vocab_size": 19, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 24},
    "odd": {"vocab_size": 37, "d_model": 18, "n_layers": 1, "n_heads": 3, "d_ff": 35, "max_seq_len": 24},
    "tiles": {"vocab_size": 131, "d_model": 66, "n_layers": 1, "n_heads": 1, "d_ff": 130, "max_seq_len": 260},
}
BATCHES = {"small": (2, 12), "odd": (3, 13), "tiles": (2, 66)}
STEPS = {"small": 4, "odd": 1, "tiles": 1}  # four: the last ones as CUDA graphs
CASES = [*(f"{block} {shape}" for block in BLOCKS for shape in ("small", "odd")), "soma tiles"]


def results(case: str, device: str = "cuda") -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays, in the order in which each follows from those before."""
    block, shape = case.split()
    sizes = SHAPES[shape]
    model = soma.Model(soma.ModelConfig(**sizes, **BLOCKS[block], block=block), 1, "float32", device)
    core = model._core
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, sizes["vocab_size"], (2, *BATCHES[shape])).astype(np.int32)
    targets[0, :3] = -100
    yield "hidden states", model.hidden(ids)
    yield "logits", model.forward(ids)
    yield from ((f"scores {i}", part) for i, part in enumerate(core.score(ids, targets, 3)))
    names = list(model.parameters())
    for make in (soma.AdamW, soma.Muon) if shape == "small" else (soma.AdamW,):
        optimizer, kind = make(model, max_grad_norm=0.5), make.__name__
        for step in range(STEPS[shape]):
            noise = _core.Noise(0.2, 0.1, [1, step]) if step else None
            yield f"{kind}: loss {step}", np.array(core.loss_and_grad(ids, targets, noise=noise))
            if kind == "AdamW" and step < 2:
                yield from ((f"{kind}: gradient {step} of {name}", model.gradients()[name]) for name in reversed(names))
            yield f"{kind}: norm {step}", np.array(optimizer.step(lr=0.01))
            yield f"{kind}: parameters {step}", everything(model)
    if shape != "tiles":
        average = WeightAverage(model)
        teacher = soma.Model(soma.ModelConfig(**{**sizes, "n_layers": 1}), 2, "float32", device)
        yield "lesson", np.array(core.loss_and_grad(ids, targets, teachers=[teacher._core], distill=0.4))
        yield "gradients of the lesson", np.concatenate([model.gradients()[name].ravel() for name in names])
        soma.AdamW(model).step(lr=0.01)
        average.update()
        with average.applied():
            yield "average", everything(model)
    for form in ("live", "bfloat16", "int8"):
        decoder = _core.Decoder(core, 2, None if form == "live" else _core.DecodeWeights(core, form))
        # A prompt beyond the 256 positions of a part; with rounded weights one without tensor cores.
        count = sizes["max_seq_len"] - 2 if (form, shape) == ("live", "tiles") else 9
        for row in range(2):
            decoder.prefill(row, (np.arange(count if row == 0 else 2) % 17).astype(np.int32))
        yield f"{form}: prompts", decoder.logits().copy()
        for step in range(STEPS[shape]):
            decoder.step(np.array([0, 1], np.int32), np.array([step, 5], np.int32))
            yield f"{form}: step {step}", decoder.logits().copy()


def everything(model: soma.Model) -> np.ndarray:
    """All parameters in a row."""
    return np.concatenate([array.ravel() for array in model.parameters().values()])


def digests(case: str) -> dict[str, str]:
    """The start of the SHA-256 of each result."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:12] for name, array in results(case)}


def differences(case: str) -> list[str]:
    """The results whose bits are not those of the emulation, in their order."""
    expected, found = json.loads(EXPECTED.read_text(encoding="utf-8"))[case], digests(case)
    return [name for name in {**expected, **found} if expected.get(name) != found.get(name)]


def main(write: bool) -> int:
    """Print for each case whether its bits are right, and return 1 if not; or write what is expected."""
    if write:
        lines = [f'"{case}": {json.dumps(digests(case))}' for case in CASES]
        EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return 0
    wrong = 0
    for case in CASES:
        differing = differences(case)
        wrong |= bool(differing)
        print(f"{case}: {f'{len(differing)} differ, at first {differing[0]}' if differing else 'right'}", flush=True)
    return wrong


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit(__doc__)
    raise SystemExit(main("--write" in sys.argv))
