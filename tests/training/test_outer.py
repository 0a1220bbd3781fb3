"""Local steps on ranks with outer steps between them: the equation, when ranks agree, saves, what a link carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, at_step, interrupt, make_model, weights
from soma_native.parallel.slow import SlowComm
from soma_native.parallel.threads import ThreadComm, run_ranks
from soma_native.parallel.world import World
from soma_native.training.outer import OuterStep

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk", "settings_restored")

RUN: dict[str, Any] = {"steps": 12, "batch_size": 8, "val_fraction": 0.2, "eval_every": 6, "lr": 1e-2, "sync_every": 4}


def trainer_of(comm: Any, **settings: Any) -> soma.Trainer:
    return soma.Trainer(make_model(), WORDS, soma.TrainConfig(**{**RUN, **settings}), comm=comm)


@pytest.mark.parametrize("size", [1, 3])
def test_the_outer_step_is_the_equation(size: int) -> None:
    moved = np.random.default_rng(0).normal(size=(2, size, 10_000)) * 0.01

    def work(comm: ThreadComm) -> dict[str, bytes]:
        model = make_model()
        outer = OuterStep(World(comm), model, rate=0.7, momentum=0.9)
        for moves in moved:
            for name, array in model.parameters().items():
                model.write(name, array + np.resize(moves[comm.rank], array.shape))
            outer.step()
        return weights(model)

    expected = {name: array.astype(np.float64) for name, array in make_model().parameters().items()}
    momentum = {name: np.zeros_like(array) for name, array in expected.items()}
    for moves in moved:
        for name, array in expected.items():
            way = -np.mean([np.resize(move, array.shape) for move in moves], axis=0)
            momentum[name] = 0.9 * momentum[name] + way
            expected[name] = array - 0.7 * (way + 0.9 * momentum[name])
    found = run_ranks(size, work)
    assert all(each == found[0] for each in found)
    for name, array in expected.items():
        np.testing.assert_allclose(
            np.frombuffer(found[0][name], np.float32).reshape(array.shape), array, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon", "ema": 0.9, "dropout": 0.1}], ids=["adamw", "muon"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_agree_at_records_and_learn(size: int, settings: dict[str, Any]) -> None:
    def work(comm: ThreadComm) -> tuple[list[Any], dict[str, bytes]]:
        trainer = trainer_of(comm, steps=40, eval_every=10, **settings)
        return trainer.fit(SENTENCES).records, weights(trainer.model)

    found = run_ranks(size, work)
    assert all(each == found[0] for each in found)
    assert run_ranks(size, work)[0][1] == found[0][1], "the same bits each time"
    losses = [record["train_loss"] for record in found[0][0]]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_records_have_all_pairs_of_all_ranks() -> None:
    """The first local step has the weights of one process, so that its loss is the mean over all windows."""
    one = trainer_of(None, steps=1, sync_every=None, eval_every=1).fit(SENTENCES).records[0]
    ranks = run_ranks(3, lambda comm: trainer_of(comm, steps=1, eval_every=1).fit(SENTENCES).records[0])
    np.testing.assert_allclose(ranks[0]["train_loss"], one["train_loss"], rtol=2**-7)


def test_a_save_waits_for_an_outer_step_and_any_number_of_ranks_resumes(tmp_path: Path) -> None:
    saved: list[int] = []

    def told(event: soma.Event) -> None:
        if event.kind == "checkpoint":
            saved.append(event.step)

    def interrupted(comm: ThreadComm) -> None:
        trainer = trainer_of(comm, checkpoint_dir=tmp_path, checkpoint_every=1)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(SENTENCES, callbacks=[told, at_step(7, interrupt)])

    run_ranks(2, interrupted)
    assert saved == [4, 6, 8], "6 has a record; Ctrl-C after step 7 waited"
    state = (tmp_path / "training_state.safetensors").read_bytes()
    for size in (1, 2, 4):
        (tmp_path / "training_state.safetensors").write_bytes(state)
        histories = run_ranks(size, lambda comm: soma.Trainer.resume(tmp_path, comm=comm).fit(SENTENCES))
        assert [record["step"] for record in histories[0].records] == [6, 12]
        assert histories[0].stop_reason == "finished"


def test_one_process_keeps_the_outer_momentum(tmp_path: Path) -> None:
    """Its moments are their own mean, so that it resumes bit for bit."""
    whole = trainer_of(None)
    whole.fit(SENTENCES)
    first = trainer_of(None, checkpoint_dir=tmp_path)
    first.fit(SENTENCES, callbacks=at_step(3, first.stop))
    assert first.history.stop_reason == "stopped"
    again = soma.Trainer.resume(tmp_path)
    again.fit(SENTENCES)
    assert weights(again.model) == weights(whole.model)


def test_a_slow_link_carries_less() -> None:
    def cost(every: int | None) -> tuple[float, float]:
        def work(comm: ThreadComm) -> SlowComm:
            link = SlowComm(comm, delay=0.02, rate=100e6 / 8, sleep=lambda seconds: None)
            trainer_of(link, sync_every=every, steps=80, eval_every=40).fit(SENTENCES)
            return link

        link = run_ranks(2, work)[0]
        return link.seconds, link.bytes

    (every_step, all_bytes), (local, bytes_of_local) = cost(None), cost(20)
    assert local < every_step / 4
    assert bytes_of_local < all_bytes / 4


def test_a_slow_comm_waits_as_long_as_a_ring() -> None:
    waited: list[float] = []

    def work(comm: ThreadComm) -> np.ndarray[Any, Any]:
        link = SlowComm(comm, delay=0.5, rate=1000, sleep=waited.append if comm.rank == 0 else lambda _: None)
        buffer = np.ones(1000, np.float32)
        link.allreduce(buffer)
        link.broadcast(buffer)
        assert (link.seconds, link.bytes) == (sum([6 * (0.5 + 1), 0.5 + 4]), 6 * 1000 + 4000)
        link.gather(np.ones(1000, np.float32), [0, 1000, 1000, 1000, 1000])
        assert link.bytes == 6 * 1000 + 4000 + 3 * 1000
        return buffer

    assert run_ranks(4, work)[3][0] == 4
    assert waited == [6 * (0.5 + 1), 0.5 + 4, 3 * (0.5 + 1)]


def test_the_clock_decides_before_many_local_steps() -> None:
    """Until it has, each step is an outer one, so that a run is not longer than its minutes for want of a decision."""

    def work(comm: ThreadComm) -> list[Any]:
        ticks = iter(range(10**6))
        settings = soma.TrainConfig(minutes=1, batch_size=8, sync_every=10_000)
        trainer = soma.Trainer(make_model(), WORDS, settings, clock=lambda: next(ticks) / 4, comm=comm)
        history = trainer.fit(SENTENCES)
        return [history.decisions, history.records[-1]["step"], weights(trainer.model)]

    first, second = run_ranks(2, work)
    assert first == second
    assert first[0][0]["step"] <= 3
    assert first[1] == first[0][-1]["total_steps"] < 240
