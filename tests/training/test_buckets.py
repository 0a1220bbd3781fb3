"""Gradients summed in buckets while the backward pass runs: the same bits as after it, and no rank left waiting."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, make_model, weights
from soma_native.core import _core
from soma_native.errors import RankError
from soma_native.parallel.threads import ThreadComm, run_ranks
from soma_native.parallel.world import World
from soma_native.training import buckets
from soma_native.training.buckets import summed


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "LEAST", 300)


def add_gradients(model: soma.Model, rank: int) -> None:
    ids = np.random.default_rng(rank).integers(0, model.config.vocab_size, (2, 9))
    model.loss_and_grad(ids[:, :-1], ids[:, 1:])


def gradient_bits(model: soma.Model) -> bytes:
    return b"".join(array.tobytes() for array in model.gradients().values())


def summing_threads() -> int:
    return sum(thread.name.startswith("sum of gradients") for thread in threading.enumerate())


@pytest.mark.parametrize("size", [1, 299, 300, 301, 10_000, 123_457])
def test_buckets_are_all_floats_the_last_first(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "LEAST", 300)
    found = buckets.buckets(size, 20)
    assert len(found) == min(20, -(-size // 300))
    assert (found[0].stop, found[-1].start) == (size, 0)
    assert [each.start for each in found[:-1]] == [each.stop for each in found[1:]]


@pytest.mark.parametrize(
    ("size", "delay", "rate", "expected"),
    [
        (buckets.LEAST, 0.01, 1e9, 1),  # one bucket at most: nothing is measured
        (16 * buckets.LEAST, 0.04, buckets.LEAST, 16),
        (16 * buckets.LEAST, 4.0, buckets.LEAST, 2),
        (16 * buckets.LEAST, 0.25, buckets.LEAST, 8),
        (2 * buckets.LEAST, 1e-3, buckets.LEAST, 16),  # `buckets` makes no more than fit
        (16 * buckets.LEAST, 1.0, math.inf, 1),
    ],
)
def test_a_link_of_long_delay_gets_few_buckets(size: int, delay: float, rate: float, expected: int) -> None:
    """`rate` is in floats a second; the clock of rank 0 counts."""

    class Timed:
        def __init__(self, comm: ThreadComm) -> None:
            self._comm, self.rank, self.size, self.now = comm, comm.rank, comm.size, 0.0

        def allreduce(self, buffer: Any) -> None:
            self._comm.allreduce(buffer)
            self.now += delay + (buffer.size / rate if self.rank == 0 else 0)

        def broadcast(self, buffer: Any) -> None:
            self._comm.broadcast(buffer)

    def work(comm: ThreadComm) -> int:
        timed = Timed(comm)
        return buckets.measured_count(World(timed), size, lambda: timed.now)

    assert run_ranks(2, work) == [expected] * 2


@pytest.mark.parametrize("windows", [True, False], ids=["all work", "a rank has no windows"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.usefixtures("small_buckets")
def test_sums_during_the_pass_have_the_bits_of_sums_after_it(block: str, tied: bool, windows: bool) -> None:
    def work(comm: ThreadComm, any_thread: bool) -> bytes:
        world, model = World(comm), make_model(block=block, n_layers=3, tied_head=tied)
        world.any_thread = any_thread
        add_gradients(model, 5)  # of an earlier micro-batch
        with summed(world, model, 1000):
            if windows or comm.rank > 0:
                add_gradients(model, comm.rank)
        return gradient_bits(model)

    after = run_ranks(3, lambda comm: work(comm, False))
    assert run_ranks(3, lambda comm: work(comm, True)) == after
    assert len(set(after)) == 1
    assert summing_threads() == 0


def test_gradients_are_final_when_they_are_said_to_be_and_some_before_the_end(block: str) -> None:
    model = make_model(block=block, n_layers=4, d_model=32, d_ff=128, tied_head=False)
    offsets = sorted(_core.parameter_offsets(model.config.core).values(), reverse=True)
    ids = np.arange(8 * 16).reshape(8, 16) % model.config.vocab_size
    early = 0
    for _ in range(200):
        model.zero_grad()
        flat, progress, ended, seen = model._core.flat(True), _core.Progress(), threading.Event(), []

        def look(flat: Any = flat, progress: Any = progress, ended: Any = ended, seen: Any = seen) -> None:
            for first in offsets:
                assert progress.wait(first)
                seen.append((ended.is_set(), first, flat[first:].tobytes()))

        thread = threading.Thread(target=look)
        thread.start()
        model._core.report_to(progress)
        model.loss_and_grad(ids[:, :-1], ids[:, 1:])
        ended.set()
        thread.join()
        assert all(bits == flat[first:].tobytes() for _, first, bits in seen)
        assert len(seen) == len(offsets)
        early += not seen[0][0]
        if early:
            return
    pytest.fail("the gradients of the last tensor were never final before the pass ended")


def test_a_pass_that_ends_early_wakes_who_waits() -> None:
    progress, found = _core.Progress(), []
    thread = threading.Thread(target=lambda: found.append(progress.wait(7)))
    thread.start()
    progress.reach(8)
    progress.end()
    thread.join()
    assert found == [False]
    assert progress.wait(8), "what was final stays final"


def test_a_rank_whose_pass_fails_leaves_nobody_waiting(small_buckets: None) -> None:
    said: list[str] = []

    def work(comm: ThreadComm) -> None:
        model = make_model()
        try:
            with summed(World(comm), model, 1000):
                if comm.rank == 1:
                    raise MemoryError("no memory for the pass")
                add_gradients(model, comm.rank)
        except RankError as error:
            said.append(str(error))
            raise
        finally:
            model.zero_grad()
            add_gradients(model, 0)  # reports to nobody any more

    with pytest.raises(MemoryError, match="no memory for the pass"):
        run_ranks(3, work)
    assert said == ["rank 1: ended before the others"] * 2
    assert summing_threads() == 0


def test_a_sum_that_fails_fails_the_step(small_buckets: None) -> None:
    class Broken:
        rank, size, any_thread = 0, 2, True

        def allreduce(self, buffer: Any) -> None:
            raise OSError("the link is gone")

        def broadcast(self, buffer: Any) -> None: ...

    model = make_model()
    with pytest.raises(OSError, match="the link is gone"), summed(World(Broken()), model):
        add_gradients(model, 0)
    assert summing_threads() == 0


def test_gradients_of_a_device_are_summed_after_the_pass() -> None:
    class Core:
        on_host, written = False, None

        def flat(self, gradient: bool = False) -> Any:
            copy = np.arange(5, dtype=np.float32)
            copy.setflags(write=False)
            return copy

        def write_flat(self, array: Any, gradient: bool = False) -> None:
            self.written = (array.tolist(), gradient)

    class Device:
        def __init__(self) -> None:
            self._core = Core()

    def work(comm: ThreadComm) -> Any:
        model: Any = Device()
        with summed(World(comm), model):
            assert model._core.written is None
        return model._core.written

    assert run_ranks(2, work) == [([0, 2, 4, 6, 8], True)] * 2


def test_one_process_asks_the_model_for_nothing() -> None:
    model: Any = type("Nothing", (), {"_core": None})
    with summed(World(), model):
        pass
    assert buckets.measured_count(World(), 10**9, pytest.fail) == 1, "nothing is measured"


@pytest.mark.usefixtures("no_waiting_for_the_disk", "settings_restored")
def test_a_run_has_the_bits_of_one_without_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(comm: ThreadComm) -> dict[str, bytes]:
        settings = soma.TrainConfig(
            steps=8, batch_size=7, grad_accumulation=2, lr=1e-2, dropout=0.1, optimizer="muon", eval_every=4
        )
        trainer = soma.Trainer(make_model(), WORDS, settings, comm=comm)
        trainer.fit(SENTENCES)
        return weights(trainer.model)

    whole = run_ranks(3, run)
    monkeypatch.setattr(buckets, "LEAST", 300)
    monkeypatch.setattr("soma_native.training.ranks.measured_count", lambda world, size: 1000)
    assert run_ranks(3, run) == whole
