"""What ranks ask of each other, with ranks that are threads: sums, shared values, errors that reach all."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from soma_native.errors import ArgumentError, ArgumentTypeError, RankError
from soma_native.parallel.comm import as_comm
from soma_native.parallel.threads import ThreadComm, run_ranks
from soma_native.parallel.world import World


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_have_the_order_of_the_ranks_on_every_rank(size: int, dtype: type) -> None:
    parts = np.random.default_rng(0).normal(size=(size, 257)).astype(dtype)

    def work(comm: ThreadComm) -> np.ndarray[Any, Any]:
        buffer = parts[comm.rank].copy()
        comm.allreduce(buffer)
        return buffer

    expected = parts[0].copy()
    for part in parts[1:]:
        expected += part
    for result in run_ranks(size, work):
        np.testing.assert_array_equal(result, expected)


def test_rank_0_gives_its_buffer_to_all() -> None:
    def work(comm: ThreadComm) -> list[float]:
        buffer = np.full(3, comm.rank + 1, np.float32)
        comm.broadcast(buffer)
        return list(buffer)

    assert run_ranks(3, work) == [[1, 1, 1]] * 3


@pytest.mark.parametrize("length", [0, 1, 1000, 1021, 1022, 1023, 5000])  # around the size of one message
def test_rank_0_gives_any_value_to_all(length: int) -> None:
    value = {"text": "é" * length, "numbers": [1, 0.1, None]}
    assert run_ranks(3, lambda comm: World(comm).share(value if comm.rank == 0 else None)) == [value] * 3


def test_every_rank_gets_the_texts_of_all() -> None:
    texts = ["", "zwei ünd", "three" * 100]
    assert run_ranks(3, lambda comm: World(comm).texts(texts[comm.rank])) == [texts] * 3


def test_one_process_is_a_world() -> None:
    world = World()
    assert (world.rank, world.size, world.alone, world.first) == (0, 1, True, True)
    assert world.sum(1.5, 2) == [1.5, 2.0]
    assert world.share({1: 2}) == {1: 2}, "nothing is written as JSON"
    assert world.together(lambda: 3) == 3


def test_an_error_of_one_rank_reaches_all() -> None:
    def work(comm: ThreadComm) -> str:
        def fail() -> None:
            if comm.rank == 1:
                raise OSError("the disk is full")

        with pytest.raises((OSError, RankError)) as error:
            World(comm).together(fail)
        return str(error.value)

    assert run_ranks(3, work) == ["rank 1: the disk is full", "the disk is full", "rank 1: the disk is full"]


def test_ranks_that_differ_are_named_on_every_rank() -> None:
    facts = [{"seed": 1, "version": "1"}, {"seed": 1, "version": "1"}, {"seed": 2, "version": "1", "new": True}]

    def work(comm: ThreadComm) -> str:
        with pytest.raises(ArgumentError) as error:
            World(comm).require_equal(facts[comm.rank])
        return str(error.value)

    said = "comm joins ranks that differ in seed (1 on rank 0, 2 on rank 2); new (none on rank 0, True on rank 2)"
    assert run_ranks(3, work) == [f"{said}: give all ranks the same"] * 3


def test_a_rank_that_ends_ends_the_others() -> None:
    ended: list[str] = []

    def work(comm: ThreadComm) -> None:
        if comm.rank == 1:
            raise KeyError("lost")
        try:
            World(comm).sum(1)
        except RankError as error:
            ended.append(str(error))
            raise

    with pytest.raises(KeyError, match="lost"):
        run_ranks(3, work)
    assert ended == ["rank 1: ended before the others"] * 2


def test_values_come_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World().by_machine(5) == [[5]]
    assert run_ranks(3, lambda comm: World(comm).by_machine(comm.rank)) == [[[0, 1, 2]]] * 3
    assert run_ranks(2, lambda comm: World(comm).by_machine(comm.rank, "cuda")) == [[[0], [1]]] * 2
    machines = {"rank 0": "first", "rank 1": "second", "rank 2": "first"}
    monkeypatch.setattr("soma_native.parallel.world._machine", lambda: machines[threading.current_thread().name])

    def work(comm: ThreadComm) -> list[list[int]]:
        threading.current_thread().name = f"rank {comm.rank}"
        return World(comm).by_machine(comm.rank)

    name = threading.current_thread().name
    try:
        assert run_ranks(3, work) == [[[0, 2], [1]]] * 3
    finally:
        threading.current_thread().name = name


def test_what_is_no_comm_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match=r"comm must be mpi4py's MPI.COMM_WORLD, or have rank, size"):
        as_comm(3)
    with pytest.raises(TypeError, match="comm must be"):
        soma.Trainer(soma.Model(soma.ModelConfig.preset("showcase")), comm="world")  # type: ignore[arg-type]
