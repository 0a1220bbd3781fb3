"""A rank that is killed, stops or fails: all ranks end, with a line that names it, and the run goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

import soma_native as soma
from helpers.child import run_child
from helpers.mpi import end_of, start_ranks
from helpers.training import SENTENCES, WORDS, make_model
from soma_native.errors import AllInterrupted, RankError
from soma_native.parallel.threads import run_ranks
from soma_native.parallel.watch import AFTER, Watch
from soma_native.training.trainer import Trainer

# A run that saves after each step and has no end of its own. Rank 0 says the processes, and each step.
_RUN = """
import json, os, sys
from mpi4py import MPI
import soma_native as soma
from soma_native.parallel.mpi import MpiComm

texts, shape = json.loads(sys.argv[1])
comm = MpiComm(MPI.COMM_WORLD, silence=2.0)
processes = MPI.COMM_WORLD.gather(os.getpid())
tokenizer = soma.Tokenizer.load("words.json")
model = soma.Model(soma.ModelConfig.from_dict(shape), seed=0)
config = soma.TrainConfig(steps=100000, batch_size=7, eval_every=100000, checkpoint_dir="run", checkpoint_every=1)
if comm.rank == 0:
    print(json.dumps(processes), flush=True)

def told(event):
    if event.kind == "checkpoint" and event.step < 4:
        print(event.step, flush=True)

soma.Trainer(model, tokenizer, config, comm=comm).fit(texts, callbacks=told)
"""


@pytest.fixture
def ranks(tmp_path: Path) -> subprocess.Popen[str]:
    WORDS.save(tmp_path / "words.json")
    given = json.dumps([SENTENCES, make_model().config.to_dict()])
    return start_ranks(3, "-c", _RUN, given, cwd=tmp_path)


def processes_after(ranks: subprocess.Popen[str], saves: int) -> list[int]:
    """The processes of the ranks, when so many steps are saved."""
    assert ranks.stdout is not None
    line = ranks.stdout.readline()
    if not line:
        pytest.fail(end_of(ranks)[2])
    for _ in range(saves):
        ranks.stdout.readline()
    return [int(process) for process in json.loads(line)]


def resume(folder: Path, sizes: tuple[int, ...] = (1, 2, 4)) -> None:
    """Two more steps with each of these numbers of ranks."""
    for size in sizes:
        before = soma.Trainer.resume(folder).config.steps
        assert before is not None

        def work(comm: object) -> list[int]:
            trainer = Trainer.resume(folder, comm=comm)  # type: ignore[arg-type]
            steps: list[int] = []

            def told(event: soma.Event) -> None:
                steps.append(event.step)
                if event.kind == "step" and len(steps) > 3:
                    trainer.stop()

            trainer.fit(SENTENCES, callbacks=told)
            return steps

        steps = run_ranks(size, work)[0]
        assert steps[0] >= 2
        assert steps[-1] > steps[0]


@pytest.mark.parametrize(("number", "rank"), [("SIGKILL", 1), ("SIGKILL", 0), ("SIGSTOP", 2), ("SIGSTOP", 0)])
def test_a_rank_that_is_gone_ends_all_and_the_run_goes_on(
    ranks: subprocess.Popen[str], tmp_path: Path, number: str, rank: int
) -> None:
    processes = processes_after(ranks, saves=2)
    os.kill(processes[rank], getattr(signal, number))
    status, _, err = end_of(ranks)
    assert status != 0
    if number == "SIGSTOP":  # a killed rank is named by the mpiexec itself
        assert f"rank {rank}: has given no sign for 2 s: it hangs, or is gone; all ranks were ended" in err
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    resume(tmp_path / "run")


def test_a_rank_that_fails_alone_ends_all(tmp_path: Path) -> None:
    code = """
from mpi4py import MPI
import numpy as np
from soma_native.parallel.mpi import MpiComm
comm = MpiComm(MPI.COMM_WORLD)
with comm.watched():
    if comm.rank == 1:
        raise ValueError("no such\\nthing")
    comm.allreduce(np.zeros(3))
"""
    status, _, err = end_of(start_ranks(2, "-c", code, cwd=tmp_path))
    assert status != 0
    assert "rank 1: no such thing; all ranks were ended" in err


def test_a_rank_that_keeps_the_others_waiting_is_named(tmp_path: Path) -> None:
    code = """
import threading
from mpi4py import MPI
import numpy as np
from soma_native.parallel.mpi import MpiComm
comm = MpiComm(MPI.COMM_WORLD, silence=60, absence=1)
with comm.watched():
    if comm.rank == 1:
        threading.Event().wait()
    comm.allreduce(np.zeros(3))
"""
    status, _, err = end_of(start_ranks(3, "-c", code, cwd=tmp_path))
    assert status != 0
    assert "rank 1: has kept the others waiting for 1 s; all ranks were ended" in err


# A communicator between two ranks, of which the other says nothing, and whose Abort holds the GIL for ever.
_ALONE = """
import ctypes, threading, signal
from soma_native.parallel import watch

class Silent:
    def Get_rank(self): return 0
    def Get_size(self): return 2
    def isend(self, sign, dest): return self
    def Test(self): return True
    def iprobe(self, source): return False
    def Abort(self, status): ctypes.PyDLL(None).pause()

watch.GRACE = 1.0
with watch.Watch(Silent(), silence=0.1, absence=0.2, say=lambda line: print(line, flush=True)):
    threading.Event().wait()
"""


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system has no alarm")
def test_a_process_ends_where_mpi_cannot(tmp_path: Path) -> None:
    done = run_child(_ALONE, tmp_path)
    assert done.returncode == -signal.SIGALRM
    assert done.stdout.startswith("rank 1: has given no sign for 0.1 s: it hangs, or is gone; all ranks were ended")


class Peer:
    """The other of two ranks, for a watch that never looks at it by itself."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2

    def Abort(self, status: int) -> None:
        raise SystemExit(status)


def test_a_rank_whose_signs_are_old_is_not_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 knows its own calls now, and those of the other as they were: always some fewer."""
    monkeypatch.setattr(signal, "alarm", lambda seconds: None, raising=False)
    said: list[str] = []
    watch = Watch(Peer(), silence=30, absence=1800, say=said.append)
    behind: dict[int, tuple[int, float]] = {}
    for second in range(4000):
        watch._look_for_absence(second, {0: 100 * second + 50, 1: 100 * second}, behind)
    assert not said
    stuck = {0: 400_100, 1: 400_000}
    watch._look_for_absence(4000, stuck, behind)
    with pytest.raises(SystemExit):
        watch._look_for_absence(4000 + 1801, stuck, behind)
    assert said == [f"rank 1: has kept the others waiting for 1800 s; {AFTER}"]


@pytest.mark.parametrize("error", [AllInterrupted(), RankError(1, "full disk")])
def test_what_all_ranks_know_ends_none_of_them_early(error: BaseException) -> None:
    """Rank 0 may still save, or print: another that has left by such an error has not failed alone."""
    watch = Watch(Peer(), silence=30, absence=1800)
    watch._depth, watch._thread = 1, threading.Thread(target=lambda: None)
    watch._thread.start()
    watch.__exit__(type(error), error, None)
    assert watch._own.left and watch._own.problem == ""
    watch._depth = 1
    watch.__exit__(ValueError, ValueError("alone"), None)
    assert watch._own.problem == "alone"


class Left(Peer):
    """A rank that has left the block. It counts the signs that it hears of the other."""

    def __init__(self) -> None:
        self.watch = Watch(self, silence=0.1, absence=1800)
        self.signs, self.looks = [(0, 0, True, "")], 0
        self.heard = 0

    def isend(self, sign: tuple[object, ...], dest: int) -> MPIRequest:
        self.heard += 1
        if self.heard == 4:
            self.watch._leaving.set()
        return MPIRequest()

    def iprobe(self, source: int) -> bool:
        self.looks += 1
        assert self.looks < 100, "it hears no more signs"
        return bool(self.signs)

    def recv(self, source: int) -> tuple[int, int, bool, str]:
        return self.signs.pop()


class MPIRequest:
    def Test(self) -> bool:
        return True


def test_a_rank_that_has_left_still_hears_one_that_works() -> None:
    """Else it would end the other after `silence`: rank 0 may draw or print for longer when the run is over."""
    peer = Left()
    peer.watch._run()
    assert peer.heard >= 4
