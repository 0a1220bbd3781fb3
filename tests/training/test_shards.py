"""The optimizer on several ranks: who updates what, the memory of each, and a state that any number of ranks reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, make_model, weights
from soma_native.core import _core
from soma_native.optim.optimizer import Optimizer
from soma_native.parallel.threads import ThreadComm, run_ranks
from soma_native.parallel.world import World
from soma_native.training.config import TrainConfig
from soma_native.training.optimize import make_optimizer
from soma_native.training.shards import Part, share_out
from soma_native.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def owned_by(parts: list[Part], size: int) -> list[dict[str, tuple[int, int]]]:
    return [{part.parameter: (part.first, part.end) for part in parts if part.rank == rank} for rank in range(size)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_has_its_part_of_the_state(optimizer: str, size: int) -> None:
    model = soma.Model(soma.ModelConfig.preset("showcase", vocab_size=60))
    kind = {"adamw": soma.AdamW, "muon": soma.Muon}[optimizer]
    whole = kind(model).state()
    parts = [kind.part(owned, model).state() for owned in owned_by(share_out(whole, size), size)]
    assert set().union(*parts) == whole.keys()
    for name, array in whole.items():
        assert sum(part[name].size for part in parts if name in part) == array.size
    total = sum(array.size for array in whole.values())
    for part in parts:
        assert sum(array.size for array in part.values()) <= 1.1 * total / size


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("preset", ["gpt2-124m", "1m", "10m", "30m", "124m"])
def test_a_rank_of_four_has_a_quarter_of_the_state(preset: str, optimizer: str) -> None:
    """By count: the names come from a narrow model, the shapes from the preset."""
    config = soma.ModelConfig.preset(preset)
    narrow = dataclasses.replace(
        config, vocab_size=16, d_model=4 * config.n_heads, d_ff=16, max_seq_len=8, head_dim=None
    )
    shapes = _core.parameter_shapes(config.core)
    names = {"adamw": soma.AdamW, "muon": soma.Muon}[optimizer](soma.Model(narrow)).state()
    state = {name: np.broadcast_to(np.float32(0), shapes[name.partition(".")[2]]) for name in names}
    loads = [0] * 4
    for parameter, first, end, rank in share_out(state, 4):
        loads[rank] += sum(array[first:end].size for name, array in state.items() if name.endswith(f".{parameter}"))
    total = sum(array.size for array in state.values())
    assert sum(loads) == total
    assert max(loads) <= 0.255 * total


@pytest.mark.parametrize("size", [1, 2, 3, 5, 40])
def test_parts_are_all_rows_once(size: int) -> None:
    """More ranks than parameters too; then some have nothing."""
    arrays = {"a": (50, 3), "b": (7, 40), "c": (5,), "m": (300, 2), "n": (16, 1)}
    state = {f"first_moment.{name}": np.empty(shape) for name, shape in arrays.items() if name != "m"}
    state["momentum.m"] = np.empty(arrays["m"])
    parts = share_out(state, size)
    assert [part.rank for part in parts] == sorted(part.rank for part in parts)
    for name, shape in arrays.items():
        own = [part for part in parts if part.parameter == name]
        assert [part.first for part in own] == [0, *(part.end for part in own[:-1])]
        assert own[-1].end == shape[0]
        assert all(part.first % 16 == 0 for part in own)
        assert len(own) == 1 or name not in "cm"


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
            shards.share_parameters()
            assert not any(array.any() for array in model.gradients().values())
        found = shards.whole_state(one)
        return norms, weights(model), {name: array.tobytes() for name, array in found.items()}

    norms, expected, state = steps(None)
    for rank, found in enumerate(run_ranks(3, steps)):
        assert found[:2] == (norms, expected)
        assert found[2] == (state if rank == 0 else {})


def test_a_part_of_an_optimizer_refuses_what_it_has_not() -> None:
    model = make_model()
    shape = model.parameters()["wte"].shape
    part: Optimizer = soma.AdamW.part({"wte": (16, shape[0])}, model)
    assert {name: array.shape for name, array in part.state().items()} == dict.fromkeys(
        ["first_moment.wte", "second_moment.wte"], (shape[0] - 16, shape[1])
    )
    with pytest.raises(ValueError, match="array must have shape"):
        part.write("first_moment.wte", np.zeros(shape))
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


@pytest.mark.parametrize(
    ("kind", "name", "rows"),
    [
        (soma.AdamW, "wte.weight", (1, 17)),
        (soma.AdamW, "wte.weight", (16, 16)),
        (soma.AdamW, "wte.weight", (0, 10**6)),
        (soma.AdamW, "h.0.ln_1.weight", (0, 4)),
        (soma.Muon, "h.0.mlp.c_fc.weight", (0, 8)),
    ],
    ids=["no cache line", "empty", "too many", "part of a vector", "matrix of Muon"],
)
def test_what_cannot_be_cut_is_refused(kind: type[Optimizer], name: str, rows: tuple[int, int]) -> None:
    model = make_model(block="gpt2", d_model=12)
    with pytest.raises(ValueError, match=rf"rows {rows[0]} to {rows[1]} of transformer.{name} cannot be updated"):
        kind.part({f"transformer.{name}": rows}, model)
