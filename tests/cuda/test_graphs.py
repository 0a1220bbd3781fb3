"""Calls that are replayed as CUDA graphs: the same bits as without, whatever differs from step to step."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from helpers.child import run_script
from helpers.cuda import I64, lib
from soma_native import _core

CONFIG = soma.ModelConfig(vocab_size=12, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=24)
STEPS = 6
lib.soma_repeat.restype = ctypes.c_float
lib.soma_taken_memory.restype = lib.soma_graphs_held.restype = I64


def counts() -> np.ndarray:
    """How many graphs were made and launched so far."""
    made, launched = I64(), I64()
    lib.soma_graph_counts(ctypes.byref(made), ctypes.byref(launched))
    return np.array([made.value, launched.value])


def test_what_varies_is_replayed() -> None:
    """A call is launched as it is for the first time, then captured, then replayed."""
    before = counts()
    assert lib.soma_repeat(STEPS, ctypes.c_bool(True)) == sum(range(1, STEPS + 1))
    assert (counts() - before).tolist() == [1, STEPS - 1]


def test_a_number_that_nobody_made_varying_is_never_frozen() -> None:
    """The mistake that graphs invite. Such launches are other launches: they are right, and not replayed."""
    before = counts()
    assert lib.soma_repeat(STEPS, ctypes.c_bool(False)) == sum(range(1, STEPS + 1))
    assert (counts() - before).tolist() == [0, 0]


# Every number that may differ does: ids, targets that count, noise, learning rate, momentum, clipping, positions.
SCRIPT = """
import ctypes, hashlib, os, sys
import numpy as np
import soma_native as soma
from soma_native import _core

block, precision, made = sys.argv[1], sys.argv[2], sys.argv[3]
config = soma.ModelConfig(vocab_size=12, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=24, block=block)
model = soma.Model(config, seed=1, device="cuda", precision=precision)
rng = np.random.default_rng(0)
for optimizer in (soma.AdamW(model, max_grad_norm=0.5), soma.Muon(model, max_grad_norm=0.5)):
    for step in range(6):
        ids, targets = rng.integers(0, 12, (2, 2, 12)).astype(np.int32)
        targets[0, :step] = -100
        loss = model._core.loss_and_grad(ids, targets, noise=_core.Noise(0.2, 0.1, [1, step]))
        if isinstance(optimizer, soma.Muon):
            optimizer.momentum = 0.9 + 0.01 * step
        print(loss, optimizer.step(lr=0.01 * (step + 1)))
decoder = _core.Decoder(model._core, 2)
for row in range(2):
    decoder.prefill(row, np.arange(3 + row, dtype=np.int32))
for step in range(6):
    decoder.step(np.array([0, 1], np.int32), np.array([step, 5], np.int32))
    print(decoder.logits().tobytes().hex())
print(hashlib.sha256(b"".join(model.read(name).tobytes() for name in model.parameters())).hexdigest())
library = ctypes.CDLL(os.environ["SOMA_CUDA_LIBRARY"])
counts = (ctypes.c_int64 * 2)()
library.soma_graph_counts(ctypes.byref(counts), ctypes.byref(counts, 8))
open(made, "w").write(f"{counts[0]} {counts[1]}")
"""


@pytest.mark.parametrize(
    ("block", "precision"), [("gpt2", "float32"), ("llama", "bfloat16"), ("soma", "bfloat16"), ("soma", "float32")]
)
def test_a_model_has_the_bits_that_it_has_without_graphs(block: str, precision: str, tmp_path: Path) -> None:
    said = {}
    for graphs in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, block, precision, str(tmp_path / graphs)],
            env={**os.environ, "SOMA_CUDA_GRAPHS": graphs},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        said[graphs] = done.stdout
    assert said["0"] == said["1"] and len(said["0"].splitlines()) == 12 + 6 + 1
    made, launched = (int(number) for number in (tmp_path / "1").read_text().split())
    assert (tmp_path / "0").read_text() == "0 0"
    # Losses, Muon and decoding: what was allocated in a first step makes the second one new too.
    assert 3 <= made <= 5 and launched >= (12 - 3) + (6 - 3) + (6 - 3)


def test_another_shape_and_another_buffer_are_another_graph() -> None:
    model = soma.Model(CONFIG, seed=1, precision="float32", device="cuda")
    plain = soma.Model(CONFIG, seed=1, precision="float32")
    rng = np.random.default_rng(1)
    before = counts()
    for length in (12, 12, 12, 12, 7, 7, 7, 12, 24, 24, 24, 7, 12):
        ids, targets = rng.integers(0, 12, (2, 2, length))
        for each in (model, plain):
            each.zero_grad()
        assert model.loss_and_grad(ids, targets) == pytest.approx(plain.loss_and_grad(ids, targets), rel=1e-5)
        for name, gradient in plain.gradients().items():
            assert np.abs(model.gradients()[name] - gradient).max() < 1e-5, (length, name)
    made, launched = counts() - before
    assert made >= 2 and made < launched


def test_a_profile_times_each_op() -> None:
    model = soma.Model(CONFIG, seed=1, device="cuda")
    ids = np.arange(24).reshape(2, 12) % 12
    for _ in range(3):
        model.loss_and_grad(ids, ids)
    before = counts()
    model._core.profile(True)
    model.loss_and_grad(ids, ids)
    assert len(model._core.take_profile()) > 5
    model._core.profile(False)
    assert (counts() - before).tolist() == [0, 0]


def test_graphs_end_with_the_model_whose_memory_they_use() -> None:
    ids = np.arange(24).reshape(2, 12) % 12
    before = lib.soma_graphs_held()
    model = soma.Model(CONFIG, seed=1, device="cuda")
    for _ in range(3):
        model.loss_and_grad(ids, ids)
    trained = lib.soma_graphs_held()
    decoder = _core.Decoder(model._core, 1)
    decoder.prefill(0, np.arange(3, dtype=np.int32))
    for token in range(4):
        decoder.step(np.array([0], np.int32), np.array([token], np.int32))
    assert before < trained < lib.soma_graphs_held()
    del decoder
    assert lib.soma_graphs_held() == trained
    del model
    assert lib.soma_graphs_held() == before


INTERRUPTED = """
import signal
import numpy as np
import soma_native as soma
config = soma.ModelConfig(vocab_size=12, d_model=8, n_layers=2, n_heads=2, d_ff=16, max_seq_len=24)
ids, answers = np.arange(24).reshape(2, 12) % 12, []

def make():
    model = soma.Model(config, seed=1, precision="float32", device="cuda")
    return model, soma.AdamW(model)

def train(model, optimizer, seconds):
    losses = []
    for _ in range(5):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        losses.append((model.loss_and_grad(ids, ids), optimizer.step(lr=0.01)))
    return losses, [array.tobytes() for array in model.parameters().values()]

other = soma.Model(config, seed=2, precision="float32", device="cuda")
right = other.loss(ids, ids)
signal.signal(signal.SIGALRM, lambda number, frame: answers.append(other.loss(ids, ids)))
plain = train(*make(), 0)
assert not answers and train(*make(), 2e-4) == plain
assert len(answers) == 5 and set(answers) == {right}, (right, answers)
"""


def test_the_handler_of_a_signal_may_use_another_model_on_the_gpu() -> None:
    """Launches that are only looked at, or captured, would be those of the handler too."""
    done = run_script(INTERRUPTED)
    assert done.returncode == 0, done.stderr


def test_a_call_that_fails_while_it_is_looked_at_leaves_the_device_right() -> None:
    model = soma.Model(CONFIG, seed=1, precision="float32", device="cuda")
    ids = np.arange(24).reshape(2, 12) % 12
    want = [model.loss(ids, ids) for _ in range(4)]
    assert len(set(want)) == 1
    lib.soma_set_memory(I64(lib.soma_taken_memory() + 10_000))
    with pytest.raises(MemoryError):
        model.loss(np.zeros((64, 24), int), np.zeros((64, 24), int))
    lib.soma_set_memory(I64(4 << 30))
    assert model.loss(ids, ids) == want[0]


def test_a_graph_for_which_there_is_no_memory_is_left_out() -> None:
    """The launches go on one by one. With memory again, the graph is made."""
    model = soma.Model(CONFIG, seed=1, precision="float32", device="cuda")
    ids = np.arange(24).reshape(2, 12) % 12
    want = model.loss_and_grad(ids, ids)
    lib.soma_set_memory(I64(lib.soma_taken_memory() + 512))
    before = counts()
    try:
        assert [model.loss_and_grad(ids, ids) for _ in range(2)] == [want, want]
        assert (counts() - before)[1] == 0
    finally:
        lib.soma_set_memory(I64(4 << 30))
    assert model.loss_and_grad(ids, ids) == want
    assert (counts() - before)[1] == 1
