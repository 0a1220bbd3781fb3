"""Memory of a GPU, in the emulation: what is predicted before the first step, and what is compared with it."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.cuda import I64, lib
from helpers.training import WORDS
from soma_native.optim.average import WeightAverage
from soma_native.planning.plan import choose, survey
from soma_native.training.memory import free_memory, training_memory

lib.soma_taken_memory.restype = I64
SIZES: dict[str, Any] = {"n_heads": 4, "max_seq_len": 32, "vocab_size": 301}
SHAPES = {
    "many tokens": ({"d_model": 64, "n_layers": 2, "d_ff": 128, "block": "llama"}, 10),
    "many parameters": ({"d_model": 96, "n_layers": 4, "d_ff": 192, "block": "gpt2"}, 1),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_predicted_is_what_is_taken(shape: str, optimizer: str, precision: str) -> None:
    sizes, batch = SHAPES[shape]
    config, ids = soma.ModelConfig(**SIZES, **sizes), np.arange(batch * 32).reshape(batch, 32) % 301
    gc.collect()
    free, before = free_memory(device="cuda"), lib.soma_taken_memory()
    assert free is not None and free > 0
    model = soma.Model(config, precision=precision, device="cuda")
    average = WeightAverage(model)
    steps = soma.Muon(model) if optimizer == "muon" else soma.AdamW(model)
    model.loss_and_grad(ids, ids)
    steps.step(lr=0.01)
    average.update()
    taken = lib.soma_taken_memory() - before
    predicted = training_memory(config, batch, 32, precision, optimizer, True, device="cuda")
    assert taken <= predicted <= 1.25 * taken, (taken, predicted)
    assert free_memory(device="cuda") == free - taken


def test_training_and_plan_compare_with_the_memory_of_the_gpu() -> None:
    model = soma.Model(soma.ModelConfig(**{**SIZES, "vocab_size": WORDS.vocab_size}, d_model=16, n_layers=1, d_ff=32))
    on_gpu = soma.Model(model.config, device="cuda")
    lib.soma_set_memory(I64(lib.soma_taken_memory() + 50_000))
    try:
        free = free_memory(device="cuda")
        with pytest.raises(ValueError, match=r"^training needs .* of memory, and 5\d kB are free"):
            soma.Trainer(on_gpu, WORDS, soma.TrainConfig(steps=1, batch_size=64)).fit(["the cat sat"] * 90)
        with pytest.raises(ValueError, match=r"^training needs at least .* of memory"):
            choose(survey(["the cat sat"] * 90), None, fixed={"steps": 1}, free=free, device="cuda")
    finally:
        lib.soma_set_memory(I64(4 << 30))
    soma.Trainer(model, WORDS, soma.TrainConfig(steps=1, batch_size=2)).fit(["the cat sat"] * 90)
