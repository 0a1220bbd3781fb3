"""Ranks that are processes of an MPI: the sums of the protocol, and a run with the losses of one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.mpi import run_ranks_of_mpi
from helpers.training import SENTENCES, WORDS, make_model
from soma_native.training.config import TrainConfig
from soma_native.training.trainer import Trainer

# Rank 0 prints, on a line of its own, what every rank says.
_SAY = """
import json
from mpi4py import MPI
import numpy as np

def say(value):
    found = MPI.COMM_WORLD.gather(value)
    if found is not None:
        print(json.dumps(found))
"""


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sums_have_the_order_of_the_ranks(tmp_path: Path, size: int) -> None:
    code = f"""{_SAY}
from soma_native.parallel import mpi
from soma_native.parallel.comm import as_comm
comm = as_comm(MPI.COMM_WORLD)
found = []
for length in (1, 257, 70001, 2):  # short, and above the size where each rank sums a part, which may be empty
    if length == 2:
        mpi._SMALL = 0
    buffer = np.random.default_rng([length, comm.rank]).normal(size=length).astype(np.float32)
    comm.allreduce(buffer)
    found.append(buffer.tobytes().hex())
shared = np.full(3, comm.rank + 1.5)
comm.broadcast(shared)
say([comm.rank, comm.size, shared.tolist(), found])
"""
    found = json.loads(run_ranks_of_mpi(size, code, tmp_path))
    assert [each[:3] for each in found] == [[rank, size, [1.5] * 3] for rank in range(size)]
    for i, length in enumerate((1, 257, 70001, 2)):
        parts = [np.random.default_rng([length, rank]).normal(size=length).astype(np.float32) for rank in range(size)]
        expected = parts[0].copy()
        for part in parts[1:]:
            expected += part
        assert {each[3][i] for each in found} == {expected.tobytes().hex()}


def test_a_run_has_the_losses_of_one_process(tmp_path: Path) -> None:
    settings = {"steps": 6, "batch_size": 7, "val_fraction": 0.2, "eval_every": 2, "lr": 1e-2}
    model = make_model()
    expected = Trainer(model, WORDS, TrainConfig(**settings)).fit(SENTENCES)  # type: ignore[arg-type]
    WORDS.save(tmp_path / "words.json")
    code = f"""{_SAY}
import soma_native as soma
settings, texts, shape = json.loads({json.dumps([settings, SENTENCES, model.config.to_dict()])!r})
tokenizer = soma.Tokenizer.load("words.json")
model = soma.Model(soma.ModelConfig.from_dict(shape), seed=0)
config = soma.TrainConfig(**settings, checkpoint_dir="run")
history = soma.Trainer(model, tokenizer, config, comm=MPI.COMM_WORLD).fit(texts)
from soma_native.training import buckets, ranks
buckets.LEAST, ranks.measured_count = 300, lambda world, size: 1000  # sums then run beside the backward pass
again = soma.Model(soma.ModelConfig.from_dict(shape), seed=0)
soma.Trainer(again, tokenizer, soma.TrainConfig(**settings), comm=MPI.COMM_WORLD).fit(texts)
arrays = again.parameters()
assert all(array.tobytes() == arrays[name].tobytes() for name, array in model.parameters().items())
say([[r["train_loss"], r["val_loss"]] for r in history.records] + [history.checkpoint is None])
"""
    first, second = json.loads(run_ranks_of_mpi(2, code, tmp_path))
    assert (first.pop(), second.pop()) == (False, True)
    assert first == second
    wanted = [[r["train_loss"], r["val_loss"]] for r in expected.records]
    np.testing.assert_allclose(first, wanted, rtol=1e-4 if model.precision == "float32" else 2**-7)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_one_thread_at_a_time_is_enough_for_sums_during_a_pass(tmp_path: Path) -> None:
    """Then there is no watch. MPI may allow more than it is asked for."""
    code = f"""
import mpi4py
mpi4py.rc.thread_level = "serialized"
{_SAY}
import soma_native as soma
from soma_native.parallel.comm import as_comm
from soma_native.parallel.world import World
from soma_native.training import buckets
buckets.LEAST = 300
world = World(as_comm(MPI.COMM_WORLD))
model = soma.Model(soma.ModelConfig.from_dict({make_model().config.to_dict()!r}))
ids = (np.arange(16).reshape(2, 8) * (world.rank + 2)) % model.config.vocab_size
expected = 0
for rank in range(2):
    model.zero_grad()
    others = (np.arange(16).reshape(2, 8) * (rank + 2)) % model.config.vocab_size
    model.loss_and_grad(others[:, :-1], others[:, 1:])
    expected = expected + model._core.flat(True).copy()
model.zero_grad()
with buckets.summed(world, model, 1000):
    model.loss_and_grad(ids[:, :-1], ids[:, 1:])
say([world.any_thread, bool((model._core.flat(True) == expected).all())])
"""
    assert json.loads(run_ranks_of_mpi(2, code, tmp_path)) == [[True, True]] * 2
