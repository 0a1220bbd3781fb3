"""The saves of a training run: when one is due, what goes into the folder, and what a Ctrl-C leaves there."""

from __future__ import annotations

import logging
import weakref
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from soma_native.checkpoint import load_model, save
from soma_native.checkpoint.folder import model_files
from soma_native.core import _core
from soma_native.errors import CheckpointError
from soma_native.files.atomic_folder import replace_files
from soma_native.model.model import Model
from soma_native.optim.average import WeightAverage
from soma_native.optim.optimizer import Optimizer
from soma_native.parallel.world import World
from soma_native.training.callbacks import EventKind
from soma_native.training.config import TrainConfig
from soma_native.training.history import History
from soma_native.training.layout import Layout
from soma_native.training.pace import Clock, Pace
from soma_native.training.phase import FINISHED, STUDENT, Phase
from soma_native.training.ranks import Ranks
from soma_native.training.snapshot import Snapshot
from soma_native.training.state import STATE_FILE, TrainingState, read_arrays, state_arrays, write_state

logger = logging.getLogger("soma_native")

_INTERRUPTED = {"interrupted": True}  # marks a log record, so that the command can print words of its own instead


class SavedRun(Protocol):
    """What of a `TrainingRun` its saves look at."""

    config: TrainConfig
    layout: Layout
    history: History
    model: Model
    student: Model | None
    average: WeightAverage | None
    world: World
    ranks: Ranks
    phase: Phase
    pace: Pace | None
    clock: Clock
    step: int
    loss_sum: float
    pairs: int
    step_seconds: float

    @property
    def optimizer(self) -> Optimizer:
        """Of all parameters, or of this rank's part."""

    @property
    def seconds(self) -> float:
        """Of the run so far."""

    @property
    def so_far(self) -> str:
        """The steps, in words."""

    def averaged(self) -> AbstractContextManager[Model]:
        """The model with the weights that are validated and saved."""

    def not_finite(self, what: str, step: int | None = None) -> FloatingPointError:
        """The error of a run that found such a number."""

    def emit(self, kind: EventKind, message: str = "") -> None:
        """Send an event."""


class Saves:
    """Saves a run into its folder, on the first rank.

    Args:
        run: the run.
        at: the time from which the minutes to the first save count.

    Attributes:
        folder: of the run; None where there is none, and on all ranks but the first.
        step, at: of the last save.
        best: the weights of the lowest validation loss, until they are saved.
    """

    def __init__(self, run: SavedRun, at: float) -> None:
        directory = run.config.checkpoint_dir
        self._run: SavedRun = weakref.proxy(run)  # no circle, so that a run gives back its memory at its end
        self.folder = None if directory is None or not run.world.first else Path(directory)
        self.step, self.at = 0, at
        self.best: Snapshot | None = None

    def resumed(self, state: TrainingState, at: float) -> None:
        """Go on after the save that is read again."""
        self.step, self.at = state.step, at
        if state.best and self.folder is not None:
            names = list(self._run.model.parameters())
            arrays = read_arrays(self.folder, [f"best.{name}" for name in names])
            self.best = Snapshot(self._run.model, dict(zip(names, arrays, strict=True)))

    def keep(self, val_loss: float) -> Snapshot | None:
        """A copy of the weights, if they are to be saved for this validation loss: it is the lowest."""
        run, lowest = self._run, self._run.history.best
        if run.config.checkpoint_dir is None or not run.config.keep_best:
            return None
        self.require_finite()
        lower = lowest is None or lowest["val_loss"] is None or val_loss < lowest["val_loss"]
        if not lower or self.folder is None:
            return None
        with run.averaged() as model:
            return Snapshot(model)

    def due(self) -> bool:
        """Whether it is time for a save between two steps."""
        run = self._run
        if self.folder is None or run.step == self.step:
            return False
        if run.config.checkpoint_every is not None:
            return run.step % run.config.checkpoint_every == 0
        minutes = run.config.checkpoint_minutes
        return bool(minutes) and run.clock() - self.at >= 60 * cast(float, minutes)

    def require_finite(self) -> None:
        """Raise a FloatingPointError if a weight is not finite."""
        run = self._run
        if run.model._core.all_finite():
            return
        for name, array in run.model.parameters().items():
            if not np.isfinite(array).all():
                raise run.not_finite(f"{name} has values that are not finite", run.step)

    def save(self, interrupted: bool = False) -> None:
        """Save the model, then the state. `keep_best` saves the best model, if it is not saved yet.

        After a crash between the two, a resumed run continues from the older state and makes the same model again.

        An average that still becomes better takes the place of the best when the run is interrupted. It is saved last,
        when the state has the best.
        """
        run = self._run
        if self.folder is None:
            return
        self.require_finite()
        late = interrupted and self._average_improves()
        best = self._best_weights() if late else {}
        if not run.config.keep_best or run.history.best is None:
            with run.averaged() as model:
                self._save_model(model)
        elif self.best is not None:
            self._save_model(cast(Model, self.best))
            self.best = None
        run.history.checkpoint = str(self.folder)
        state = TrainingState(
            run.step, run.layout.identity, run.config.to_dict(), _core.active_isa(), run.history.to_dict(),
            run.loss_sum, run.pairs, run.step_seconds, run.seconds,
            None if run.pace is None else run.pace.to_dict(), asdict(run.phase) if run.config.teachers else None,
            bool(best),
        )  # fmt: skip
        with replace_files(self.folder) as staging:
            whole = state_arrays(run.model, run.ranks.whole, run.average)
            whole |= {f"best.{name}": array for name, array in best.items()}
            write_state(staging.path / STATE_FILE, state, run.optimizer.step_count, whole)
            run.history.to_json(staging.path / "history.json")
            run.history.to_csv(staging.path / "history.csv")
        if late:
            with run.averaged() as model:
                self._save_model(model)
        self.step, self.at, run.ranks.whole = run.step, run.clock(), {}
        logger.info("saved a checkpoint after step %d in %s", run.step, self.folder)
        run.emit("checkpoint", str(self.folder))

    def _best_weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights of the lowest validation loss; none where the folder has lost them."""
        assert self.folder is not None
        if self.best is not None:
            return self.best.parameters()
        try:
            return load_model(self.folder).parameters()
        except (CheckpointError, FileNotFoundError):
            return {}

    def _average_improves(self) -> bool:
        """Whether the average of now should be better than the best: the last validation was the lowest so far."""
        run = self._run
        return (
            run.config.keep_best
            and run.average is not None
            and run.average.updates > 0
            and not run.config.teachers
            and run.history.best is not None
            and run.history.best is run.history.records[-1]
            and run.history.best["step"] < run.step
        )

    def save_last(self) -> None:
        """Save at the end of the run."""
        run = self._run
        if self.folder is not None and (run.step or not model_files(self.folder)):
            self.save()  # an untrained model never replaces another one

    def _save_model(self, model: Model) -> None:
        """Save the model: a teacher beside the others, and the best of all as the model of the folder."""
        run = self._run
        assert self.folder is not None
        if run.layout.number is not None:
            if run.student is not None and STUDENT not in run.phase.kept:
                run.phase.keep(self.folder, STUDENT, run.student)
            run.phase.keep(self.folder, str(run.layout.number), model)
        if self.is_best():
            save(self.folder, model, run.layout.tokenizer)

    def is_best(self) -> bool:
        """Whether no teacher before this model is better; where none is validated, whether the run is finished."""
        run = self._run
        best, teacher = run.history.best, run.history.best_teacher
        if not run.history.teachers:
            return True
        if best is None or teacher is None or not run.config.keep_best:
            return run.layout.number is None and run.history.stop_reason in FINISHED
        return cast(float, best["val_loss"]) < teacher

    def save_interrupted(self) -> None:
        """Save after a Ctrl-C, if there is a folder and the run is between two steps. Nothing is validated any more."""
        run = self._run
        run.history.stop_reason = "interrupted"
        if run.average is not None:
            run.average.apply(False)  # the signal may have come between the two ends of a validation
        if not run.world.first:
            return
        earlier = run.step == 0 and run.history.checkpoint is not None  # the state at the end of the last teacher
        if self.folder is None or (run.step == 0 and not earlier):  # no untrained model replaces the folder's
            why = "there is no checkpoint_dir" if self.folder is None else "nothing was trained yet"
            logger.warning("interrupted after step %d; %s, so nothing was saved", run.step, why, extra=_INTERRUPTED)
            return
        if run.world.alone and run.ranks.agreed:
            run.ranks.gather()
        if run.optimizer.step_count != run.step or not run.ranks.whole:  # a handler raised within the step
            logger.warning(
                "interrupted inside step %d, so nothing was saved; %s is unchanged", run.step + 1, self.folder,
                extra=_INTERRUPTED,
            )  # fmt: skip
            return
        if not earlier:
            self.save(interrupted=True)
        logger.warning(
            "interrupted after %s; saved in %s, resume=True continues from there", run.so_far, self.folder,
            extra=_INTERRUPTED,
        )  # fmt: skip
