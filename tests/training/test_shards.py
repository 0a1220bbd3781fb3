"""The optimizer on several ranks: who updates what, the memory of each, and a state that any number of ranks reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, make_model, weights
from soma_native.optim.optimizer import Optimizer
from soma_native.parallel.threads import ThreadComm, run_ranks
from soma_native.parallel.world import World
from soma_native.training.config import TrainConfig
from soma_native.training.optimize import make_optimizer
from soma_native.training.shards import share_out, share_parameters, whole_state
from soma_native.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_has_its_part_of_the_state(optimizer: str, size: int) -> None:
    model = soma.Model(soma.ModelConfig.preset("showcase", vocab_size=60))
    kind = {"adamw": soma.AdamW, "muon": soma.Muon}[optimizer]
    whole = kind(model).state()
    shards = share_out(whole, size)
    parts = [
        kind.part([name for name, rank in shards.parameters.items() if rank == number], model).state()
        for number in range(size)
    ]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    total = sum(array.size for array in whole.values())
    for rank, part in enumerate(parts):
        assert sum(array.size for array in part.values()) <= 1.1 * total / size
        assert part.keys() == {name for name, (_, owner) in shards.state.items() if owner == rank}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_ranks_make_the_step_of_one_process(optimizer: str) -> None:
    """With the same gradients, bit for bit, where a state of a step is there already."""
    config = TrainConfig(optimizer=optimizer, lr=1e-2, max_grad_norm=0.5)  # type: ignore[arg-type]
    ids = np.arange(2 * 8).reshape(2, 8) % WORDS.vocab_size

    def steps(comm: ThreadComm | None) -> tuple[list[float], dict[str, bytes], dict[str, bytes]]:
        world, model = World(comm), make_model(block="gpt2")
        one, shards = make_optimizer(model, config, world)
        norms = []
        for _ in range(3):
            model.loss_and_grad(ids[:, :-1], ids[:, 1:])
            norms.append(one.step())
            share_parameters(world, model, shards)
            assert not any(array.any() for array in model.gradients().values())
        found = whole_state(world, one, shards)
        return norms, weights(model), {name: array.tobytes() for name, array in found.items()}

    norms, expected, state = steps(None)
    for rank, found in enumerate(run_ranks(3, steps)):
        assert found[:2] == (norms, expected)
        assert found[2] == (state if rank == 0 else {})


def test_a_part_of_an_optimizer_refuses_what_it_has_not() -> None:
    model = make_model()
    part: Optimizer = soma.AdamW.part(["wte"], model)
    assert part.state().keys() == {"first_moment.wte", "second_moment.wte"}
    other = next(name for name in model.parameters() if name != "wte")
    with pytest.raises(ValueError, match=f"this optimizer has no first_moment of '{other}'"):
        part.write(f"first_moment.{other}", model.parameters()[other])


def test_the_file_of_a_run_is_that_of_one_process(tmp_path: Path) -> None:
    def train(comm: ThreadComm | None, name: str) -> None:
        config = TrainConfig(steps=3, batch_size=8, lr=1e-2, ema=0.9, checkpoint_dir=tmp_path / name)
        Trainer(make_model(), WORDS, config, comm=comm).fit(SENTENCES)

    train(None, "one")
    run_ranks(3, lambda comm: train(comm, "three"))
    from soma_native.files.safetensors_io import TensorFile

    files = [TensorFile(tmp_path / name / "training_state.safetensors") for name in ("one", "three")]
    with files[0] as one, files[1] as three:
        assert one.entries.keys() == three.entries.keys()
        assert [e.shape for e in one.entries.values()] == [three.entries[n].shape for n in one.entries]
