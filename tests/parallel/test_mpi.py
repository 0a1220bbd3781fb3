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
from soma_native.parallel.comm import as_comm
comm = as_comm(MPI.COMM_WORLD)
found = []
for length in (1, 257, 70001):  # short, and above the size where each rank sums a part
    buffer = np.random.default_rng([length, comm.rank]).normal(size=length).astype(np.float32)
    comm.allreduce(buffer)
    found.append(buffer.tobytes().hex())
shared = np.full(3, comm.rank + 1.5)
comm.broadcast(shared)
say([comm.rank, comm.size, shared.tolist(), found])
"""
    found = json.loads(run_ranks_of_mpi(size, code, tmp_path))
    assert [each[:3] for each in found] == [[rank, size, [1.5] * 3] for rank in range(size)]
    for i, length in enumerate((1, 257, 70001)):
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
say([[r["train_loss"], r["val_loss"]] for r in history.records] + [history.checkpoint is None])
"""
    first, second = json.loads(run_ranks_of_mpi(2, code, tmp_path))
    assert (first.pop(), second.pop()) == (False, True)
    assert first == second
    wanted = [[r["train_loss"], r["val_loss"]] for r in expected.records]
    np.testing.assert_allclose(first, wanted, rtol=1e-4 if model.precision == "float32" else 2**-7)
    assert (tmp_path / "run" / "model.safetensors").is_file()
