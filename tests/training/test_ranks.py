"""One run on several ranks, which are threads here: the losses of one process, and files of the first rank alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import BFLOAT16_ROUNDOFF
from helpers.training import SENTENCES, WORDS, at_step, interrupt, make_model, weights
from soma_native.errors import RankError
from soma_native.parallel.threads import ThreadComm, run_ranks

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk", "settings_restored")

RUN: dict[str, Any] = {
    "epochs": 2, "batch_size": 7, "grad_accumulation": 2, "val_fraction": 0.2, "eval_every": 4, "lr": 1e-2,
}  # fmt: skip


def trainer_of(comm: ThreadComm | None, model: soma.Model | None = None, **settings: Any) -> soma.Trainer:
    return soma.Trainer(model or make_model(), WORDS, soma.TrainConfig(**{**RUN, **settings}), comm=comm)


def on_ranks(size: int, precision: str = "auto", **settings: Any) -> list[tuple[soma.History, dict[str, bytes]]]:
    def work(comm: ThreadComm) -> tuple[soma.History, dict[str, bytes]]:
        trainer = trainer_of(comm, soma.Model(make_model().config, precision=precision), **settings)
        return trainer.fit(SENTENCES), weights(trainer.model)

    return run_ranks(size, work)


def refused(size: int, make: Callable[[ThreadComm], soma.Trainer], texts: Callable[[int], Any] | None = None) -> str:
    """What every rank says."""

    def work(comm: ThreadComm) -> str:
        with pytest.raises((ValueError, RankError)) as error:
            make(comm).fit(SENTENCES if texts is None else texts(comm.rank))
        return str(error.value)

    said = set(run_ranks(size, work))
    assert len(said) == 1, said
    return said.pop()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dropout": 0.2, "token_mask": 0.1, "ema": 0.9},
        {"optimizer": "muon", "sampling": "random", "tail_average": 0.5},
    ],
    ids=["plain", "noise", "muon"],
)
@pytest.mark.parametrize(("size", "given", "tolerance"), [(2, "float32", 1e-4), (3, "bfloat16", BFLOAT16_ROUNDOFF)])
def test_losses_are_those_of_one_process(size: int, given: str, tolerance: float, settings: dict[str, Any]) -> None:
    model = soma.Model(make_model().config, precision=given)
    whole = trainer_of(None, model, **settings).fit(SENTENCES)
    histories = [history for history, _ in on_ranks(size, given, **settings)]
    assert [r["step"] for r in histories[0].records] == [r["step"] for r in whole.records]
    for name in ("train_loss", "val_loss"):
        expected = [r[name] for r in whole.records]
        np.testing.assert_allclose([r[name] for r in histories[0].records], expected, rtol=tolerance)
    assert all(history.records == histories[0].records for history in histories), "with times and rates"


def test_one_number_of_ranks_gives_the_same_bits_each_time() -> None:
    first, again = on_ranks(3), on_ranks(3)
    assert all(bits == first[0][1] for _, bits in first + again)
    assert [r["train_loss"] for r in first[0][0].records] == [r["train_loss"] for r in again[0][0].records]


def test_a_world_of_one_is_one_process() -> None:
    alone = trainer_of(None)
    alone.fit(SENTENCES)
    assert on_ranks(1)[0][1] == weights(alone.model)


def test_the_first_rank_alone_calls_back_and_writes(tmp_path: Path) -> None:
    seen: list[int] = []

    def work(comm: ThreadComm) -> None:
        trainer = trainer_of(comm, checkpoint_dir=tmp_path / "run", checkpoint_every=3)
        trainer.fit(SENTENCES, callbacks=lambda event: seen.append(comm.rank))
        assert (trainer.history.checkpoint is None) == (comm.rank > 0)

    run_ranks(2, work)
    assert set(seen) == {0}
    assert {"model.safetensors", "events.jsonl", "history.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("rank", [0, 1])
def test_any_rank_may_stop_all(rank: int) -> None:
    def work(comm: ThreadComm) -> tuple[str | None, int]:
        trainer = trainer_of(comm, eval_every=1)
        if rank == 0:
            history = trainer.fit(SENTENCES, callbacks=at_step(2, trainer.stop) if comm.rank == 0 else ())
        else:
            if comm.rank == 1:
                trainer.stop()
            history = trainer.fit(SENTENCES)
        return history.stop_reason, len(history.records)

    assert run_ranks(3, work) == [("stopped", 2 if rank == 0 else 0)] * 3


def test_ctrl_c_ends_all_at_one_step_and_any_number_of_ranks_resumes(tmp_path: Path) -> None:
    run = {"checkpoint_dir": tmp_path, "optimizer": "muon", "ema": 0.9}

    def interrupted(comm: ThreadComm) -> int:
        trainer = trainer_of(comm, **run)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(SENTENCES, callbacks=at_step(3, interrupt))
        return len(trainer.history.records)

    assert run_ranks(2, interrupted) == [0, 0]
    expected = on_ranks(2, **{**run, "checkpoint_dir": None})
    state = (tmp_path / "training_state.safetensors").read_bytes()

    def resumed(comm: ThreadComm) -> tuple[list[float], dict[str, bytes]]:
        trainer = soma.Trainer.resume(tmp_path, comm=comm)
        return [r["train_loss"] for r in trainer.fit(SENTENCES).records], weights(trainer.model)

    for size in (2, 1, 3):
        (tmp_path / "training_state.safetensors").write_bytes(state)
        results = run_ranks(size, resumed)
        if size == 2:
            assert results[0][0] == [r["train_loss"] for r in expected[0][0].records]
            assert [bits for _, bits in results] == [bits for _, bits in expected]
        np.testing.assert_allclose(
            results[-1][0], [r["train_loss"] for r in expected[0][0].records], rtol=BFLOAT16_ROUNDOFF
        )


def test_the_clock_of_the_first_rank_decides_for_all() -> None:
    def work(comm: ThreadComm) -> tuple[list[Any], list[Any], dict[str, bytes]]:
        ticks = iter(range(10**6))

        def clock() -> float:
            return next(ticks) / (100 if comm.rank == 0 else 7)

        model = make_model()
        settings = soma.TrainConfig(minutes=0.05, batch_size=8, val_fraction=0.2)
        history = soma.Trainer(model, WORDS, settings, clock=clock, comm=comm).fit(SENTENCES)
        return history.decisions, history.records, weights(model)

    first, *others = run_ranks(3, work)
    assert first[0]
    assert all(other == first for other in others)


# --- what is refused, on every rank


def test_ranks_that_differ_are_named() -> None:
    def of(**by_rank: Any) -> Callable[[ThreadComm], soma.Trainer]:
        return lambda comm: trainer_of(comm, **{name: values[comm.rank] for name, values in by_rank.items()})

    assert "differ in seed (0 on rank 0, 1 on rank 1)" in refused(2, of(seed=[0, 1]))
    assert "checkpoint_dir (none on rank 0, /b on rank 1)" in refused(2, of(checkpoint_dir=[None, "/b"]))
    assert "weights of the model (" in refused(2, lambda comm: trainer_of(comm, make_model(seed=comm.rank)))

    def other_precision(comm: ThreadComm) -> soma.Trainer:
        model = soma.Model(make_model().config, precision=["float32", "bfloat16"][comm.rank])
        return trainer_of(comm, model)

    assert "precision (float32 on rank 0, bfloat16 on rank 1)" in refused(2, other_precision)
    assert "training texts (" in refused(2, trainer_of, lambda rank: SENTENCES[rank:])


def test_more_ranks_than_windows_and_teachers_are_refused(tmp_path: Path) -> None:
    said = refused(3, lambda comm: trainer_of(comm, batch_size=2))
    assert said == "comm has 3 ranks, and a micro-batch has 2 windows: take fewer ranks, or a larger batch"
    taught = refused(2, lambda comm: trainer_of(comm, teachers=1, checkpoint_dir=tmp_path / "taught"))
    assert taught == "teachers must be 0 on several ranks, got 1"


def test_a_save_that_fails_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("soma_native.training.saves.save", full)

    def work(comm: ThreadComm) -> str:
        with pytest.raises((OSError, RankError)) as error:
            trainer_of(comm, checkpoint_dir=tmp_path, checkpoint_every=2).fit(SENTENCES)
        return str(error.value)

    assert run_ranks(2, work) == ["the disk is full", "rank 0: the disk is full"]


def test_texts_that_one_rank_cannot_read_end_all(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text("\n".join(SENTENCES))

    def work(comm: ThreadComm) -> str:
        with pytest.raises((OSError, RankError)) as error:
            trainer_of(comm).fit([tmp_path / f"{comm.rank}.txt"])
        return str(error.value)

    said = run_ranks(2, work)
    assert said[0].startswith("rank 1: ") and said[0].removeprefix("rank 1: ") == said[1]
