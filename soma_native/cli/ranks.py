"""`train` under mpiexec or srun: joins the ranks, and gives them what rank 0 has prepared."""

from __future__ import annotations

import argparse
import atexit
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import gethostname
from typing import Any

from soma_native.cli.errors import PROGRAM, CommandError, one_line
from soma_native.cli.new_run import Run
from soma_native.cli.starters import joined, time_to_join, told
from soma_native.data.documents import documents_of
from soma_native.data.token_store import TokenStore
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.parallel.comm import as_comm
from soma_native.parallel.world import World
from soma_native.system import get_num_threads
from soma_native.tokenizer.tokenizer import _tokenizer_of
from soma_native.training.config import TrainConfig
from soma_native.training.ranks import share_arrays
from soma_native.training.trainer import Trainer


def join_ranks() -> World:
    """The ranks that were started with this process.

    Raises:
        CommandError: several were started, and they cannot reach each other.
    """
    _, started, libraries = told()
    if started == 1:
        if libraries:
            print("one rank was started: it trains as a process alone does", file=sys.stderr)
        return World()
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # an MPI that does not know the starter would end the process
        from mpi4py import MPI
    except ImportError as error:
        missing = error.name == "mpi4py"
        raise CommandError(
            f"{started} ranks were started, and mpi4py "
            + ("is not installed: pip install 'soma-native[mpi]'" if missing else f"cannot be loaded: {error}")
        ) from None
    except RuntimeError as error:
        raise CommandError(f"{started} ranks were started, and mpi4py finds no MPI: {error}") from None
    library = " ".join(MPI.Get_library_version().split(",")[0].split("\n")[0].split())
    known = any(name.lower() in library.lower() for name in libraries)
    if known and not MPI.Is_initialized():
        with time_to_join():
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(MPI.Finalize)
    if not known or MPI.COMM_WORLD.size != started:
        raise CommandError(
            f"{started} ranks were started, and mpi4py has another MPI than their starter, {library}: start them with "
            "the mpiexec of that one, or install mpi4py for the other"
        )
    world = World(as_comm(MPI.COMM_WORLD))
    joined.set()
    return world


def say_where(world: World) -> None:
    """Print on rank 0 which process each rank is: messages of MPI name a process."""
    if world.alone:
        return
    found = [json.loads(text) for text in world.texts(json.dumps([gethostname(), get_num_threads(), os.getpid()]))]
    for (host, threads), group in itertools.groupby(enumerate(found), key=lambda each: each[1][:2]):
        ranks = list(group)
        named = ", ".join(f"{rank} (process {of[2]})" for rank, of in ranks)
        print(f"{host}, {threads} thread{'s' * (threads != 1)} a rank: {named}", file=sys.stderr)


def say_of_ranks(line: str) -> None:
    """Print the line that names a failed rank, from any rank."""
    print(f"{PROGRAM}: error: {one_line(line)}", file=sys.__stderr__, flush=True)


def run_of_all(world: World, make: Callable[[], Run], arguments: argparse.Namespace, files: Sequence[Path]) -> Run:
    """The run that `make` begins on rank 0, on all ranks: settings, tokenizer and weights of rank 0, own texts."""
    own = world.together(lambda: make() if world.first else None)
    facts = world.share(None if own is None or world.alone else _facts(own.trainer))
    run = world.together(lambda: _following(facts, arguments, files) if own is None else own)
    run.trainer._world = world
    model = run.trainer.model
    share_arrays(world, model.parameters(), model.write)
    return run


def _facts(trainer: Trainer) -> dict[str, Any]:
    """What a rank needs beside the texts and the weights, as JSON can hold it."""
    assert trainer.tokenizer is not None
    return {
        "model": trainer.model.config.to_dict(),
        "precisions": [trainer.model.precision, trainer.model.evaluation_precision],
        "training": trainer.config.to_dict(),
        "tokenizer": trainer.tokenizer.__reduce__()[1][0],
    }


def _following(facts: dict[str, Any], arguments: argparse.Namespace, files: Sequence[Path]) -> Run:
    tokenizer, config = _tokenizer_of(facts["tokenizer"]), TrainConfig.from_dict(facts["training"])
    precision, evaluation = facts["precisions"]
    model = Model(ModelConfig.from_dict(facts["model"]), precision=precision, device=arguments.device)
    model._evaluate_in(evaluation)
    store = TokenStore.encode(documents_of(files, arguments.split), tokenizer, config.end_of_document)
    return Run(Trainer(model, tokenizer, config), store, None)
