"""One run of the training loop: steps, records, checkpoints, resuming. `Trainer` is its public interface."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, Literal

from soma_native.checkpoint.hf_config import keep_end
from soma_native.core import _core
from soma_native.errors import AllInterrupted
from soma_native.model.model import Model
from soma_native.optim.muon import Muon
from soma_native.parallel.world import World
from soma_native.training.callbacks import Dispatcher, EventKind
from soma_native.training.evaluate import mean_loss
from soma_native.training.history import Decision, History, Record, bits_text
from soma_native.training.interrupt import InterruptGuard
from soma_native.training.layout import UNDECIDED, Layout
from soma_native.training.optimize import make_average
from soma_native.training.pace import Clock, Pace, cool_down
from soma_native.training.phase import FINISHED, Phase
from soma_native.training.ranks import Ranks
from soma_native.training.saves import Saves
from soma_native.training.state import warn_of_what_is_replaced

logger = logging.getLogger("soma_native")

_SAID: tuple[Literal["reason", "step", "total_steps"], ...] = ("reason", "step", "total_steps")
_LOST = "a pause, a clock that jumped, or other programs took it"


class TrainingRun:
    """One call of `Trainer.fit`, or the part of it that trains one model: data, optimizer, state.

    Args:
        layout: the plan of the run.
        history: gets the records.
        callbacks: hear of the events.
        stop: set to end the run.
        clock: gives the time in seconds.
        began: the time at which the run began, on this clock.
        resume: whether to go on from the state in the folder.
        phase: the part of a run with teachers.
        student: the model that is trained after the teachers.
        world: the ranks that train one model together. The first alone has a folder, and decides by the clock.
    """

    def __init__(
        self,
        layout: Layout,
        history: History,
        callbacks: Dispatcher,
        stop: threading.Event,
        clock: Clock,
        began: float,
        resume: bool,
        phase: Phase | None = None,
        student: Model | None = None,
        world: World | None = None,
    ) -> None:
        self.world = World() if world is None else world
        self.phase, self.student = Phase() if phase is None else phase, student
        self.layout = layout
        self.model, self.config = layout.model, layout.config
        self.history = history
        self.history.data = layout.data
        self.callbacks = callbacks
        self._stop = stop
        self.clock = clock
        self.ranks = Ranks(self.world, layout)
        self.optimizer = self.ranks.optimizer
        self.average = make_average(self.model, self.config)
        self.step = 0
        self.loss = self.lr = self.grad_norm = math.nan
        # Sums over the steps since the last record: loss times next-token pairs, next-token pairs, seconds.
        self.loss_sum = 0.0
        self.pairs = 0
        self.step_seconds = 0.0
        self.began = began
        measured = None
        self.saves = Saves(self, began + self.phase.began)
        if resume:
            measured = self._resume()
        elif self.saves.folder is not None and self.history.checkpoint is None:  # no earlier part of this run is there
            warn_of_what_is_replaced(self.saves.folder)
        self.history.averaged_from = None if self.average is None else layout.averaged_from
        if layout.store.end_id is not None:
            keep_end(self.model, layout.store.end_id)
        self.model.zero_grad()
        self.pace: Pace | None = None
        if self.config.minutes is not None:
            end = self.phase.end(60 * self.config.minutes, self.config.teachers, self.config.teacher_length)
            self.pace = Pace(layout, end, Pace.measured_of(measured), self.phase.began)

    def _resume(self) -> dict[str, float | None] | None:
        """Take the state of the run in the folder. Returns what its pace has measured."""
        state, steps = self.ranks.read(self.saves.folder, self.average)
        self.history.__dict__.update(History.from_dict(state.history).__dict__)
        for decision in self.history.decisions:
            self.layout.decide(decision)
        by_patience = state.history["stop_reason"] == "early stopping"
        if by_patience and not any(decision["reason"] == "early stopping" for decision in self.history.decisions):
            self.layout.cooling, self.layout.total_steps = True, state.step  # an older version ended at once
        if self.average is not None:
            self.average.updates = max(0, state.step - self.layout.averaged_from)
        self.optimizer.step_count = steps
        self.history.data = self.layout.data
        self.history.stop_reason = None
        self.history.checkpoint = None if self.saves.folder is None else str(self.saves.folder)
        self.step = state.step
        self.saves.resumed(state, self.began)
        self.loss_sum, self.pairs, self.step_seconds = state.loss_sum, state.pairs, state.step_seconds
        self.began -= state.seconds
        if state.isa != _core.active_isa():
            logger.warning("the run was saved on %s; on %s it rounds differently", state.isa, _core.active_isa())
        logger.info("resumed from %s after %s", self.saves.folder, self.so_far)
        return state.pace

    # --- the loop

    def loop(self, guard: InterruptGuard) -> History:
        """Train until there is a reason to end. Record, evaluate and save when due."""
        self.emit("start")
        last_epoch_end = self.step
        self._lap("start")
        while True:
            if self._record_due():
                self._record(guard)
                self._lap("validation")
            if self.step % self.layout.sampler.steps_per_epoch == 0 and self.step > last_epoch_end:
                last_epoch_end = self.step
                self.emit("epoch")
            save, stop = self._wishes(guard)
            reason = self._reason_to_end(stop)
            if reason is not None:
                break
            if save:
                self.ranks.gather()
                self.world.together(self.saves.save)
                self._lap("save")
            self._train_step(guard)
            self.emit("step")
            self._keep_pace()
            if self.config.log_every is not None and self.step % self.config.log_every == 0:
                message = "step %d: loss %.4f, lr %.3g, gradient norm %.3g"
                logger.info(message, self.step, self.loss, self.lr, self.grad_norm)
        self.history.stop_reason = reason
        self._warn_of_better_teachers()
        self.ranks.gather()
        self.world.together(self.saves.save_last)
        logger.info("training ended after %s: %s", self.so_far, reason)
        if self.layout.number is None or reason not in FINISHED:  # else the run goes on with another model
            self.emit("end", reason)
        return self.history

    def _lap(self, kind: Literal["start", "step", "validation", "save"]) -> None:
        if self.pace is not None:
            self.pace.lap(kind, self.seconds)

    def _keep_pace(self) -> None:
        if self.pace is not None:
            self._lap("step")
        if self.pace is not None and self.ranks.agreed:
            self._decide(self.world.share(self.pace.decide(self.step, self.seconds) if self.world.first else None))

    def _wishes(self, guard: InterruptGuard) -> tuple[bool, bool]:
        """Whether to save and whether to stop now: the first rank says when to save, each may stop all, or Ctrl-C."""
        if not self.ranks.agreed:
            return False, False
        wishes = self.saves.due(), self._stop.is_set(), guard.pending
        save, stop, interrupted = wishes if self.world.alone else map(bool, self.world.sum(*wishes))
        if interrupted:
            self.ranks.gather()
            raise AllInterrupted
        return save, stop

    def _decide(self, decision: Decision | None) -> None:
        if decision is not None:
            planned = self.total_steps
            self.history.decisions.append(decision)
            self.layout.decide(decision)
            if planned is not None and decision["reason"] == "clock":
                self._warn_of_lost_time(planned, decision["step"], decision["total_steps"])
            logger.info("%s: after step %d, the run has %d steps", *(decision[k] for k in _SAID))
            self.emit("plan", decision["reason"], dict(decision))

    def _train_step(self, guard: InterruptGuard) -> None:
        began = self.clock()
        loss, pairs = self.ranks.gradients(self.step)
        if not math.isfinite(loss):
            raise self.not_finite(f"the loss is {loss}")
        lr = self.layout.schedule(self.step)
        if isinstance(self.optimizer, Muon):
            self.optimizer.momentum = self.layout.momentum(self.step)
        with guard.hold():
            try:
                grad_norm = self.optimizer.step(lr, self.layout.weight_decay(self.step))
            except FloatingPointError as error:
                raise self.not_finite(str(error)) from error
            self.step += 1
            done, pairs_done = self.ranks.after_step(self.step, self._record_due(), loss, pairs, self.average)
            if self.average is not None and self.step > self.layout.averaged_from:
                self.average.update()
            self.loss, self.lr, self.grad_norm = loss, lr, grad_norm
            self.loss_sum += done
            self.pairs += pairs_done
            self.step_seconds += self.clock() - began

    def averaged(self) -> AbstractContextManager[Model]:
        """The model with the weights that are validated and saved: averaged ones, where there are any yet."""
        if self.average is None or self.average.updates == 0:
            return nullcontext(self.model)
        return self.average.applied()

    def keep_average(self) -> None:
        """Leave the model with the weights that were validated: nothing is trained any more."""
        if self.average is not None and self.average.updates > 0:
            self.average.apply()

    def not_finite(self, what: str, step: int | None = None) -> FloatingPointError:
        """The error of a number in this step that is not finite."""
        step = self.step + 1 if step is None else step
        saved = self.history.checkpoint
        kept = "" if saved is None else f"; the last good checkpoint, in {saved}, is untouched"
        return FloatingPointError(
            f"training stopped in step {step}: {what}{kept}. A lower learning rate (it is {self.config.lr:g}), a "
            "longer warm-up or a smaller limit for the norm of gradients may help"
        )

    def _record_due(self) -> bool:
        last = self.history.records[-1]["step"] if self.history.records else 0
        if self.pace is None or self.step >= self.layout.total_steps:
            due = self.step % self.layout.eval_every == 0 or self.step >= self.layout.total_steps
            return self.step > last and due
        # Decisions change the distance. A record shortly before the end would have its neighbour there.
        every = self.layout.eval_every
        return self.step - last >= every and 2 * (self.layout.total_steps - self.step) > every

    def _record(self, guard: InterruptGuard) -> None:
        val_loss = None
        if self.layout.validation is not None:
            with self.averaged() as model:
                val_loss = mean_loss(
                    model, self.layout.validation, self.config.batch_size, self.layout.max_eval_windows, self.world
                )
            if not math.isfinite(val_loss):
                raise self.not_finite(f"the validation loss is {val_loss}", self.step)
        bits = self.layout.bits_per_nat
        record: Record = {
            "epoch": self._epoch,
            "step": self.step,
            "train_loss": self.loss_sum / self.pairs,
            "val_loss": val_loss,
            "seconds": self.seconds,
            "tokens_per_second": self.pairs / max(self.step_seconds, 1e-9),
            "lr": self.lr if math.isfinite(self.lr) else self.layout.schedule(self.step - 1),
            "val_bits_per_byte": None if val_loss is None or bits is None else val_loss * bits,
        }
        record = self.world.share(record)  # with the times of the first rank
        snapshot = None if val_loss is None else self.saves.keep(val_loss)
        with guard.hold():
            self.history.records.append(record)
            self.loss_sum, self.pairs, self.step_seconds = 0.0, 0, 0.0
            self.saves.best = snapshot or self.saves.best
        validated = "" if val_loss is None else f", validation loss {val_loss:.4f}{bits_text(record)}"
        logger.info("epoch %d, step %d: loss %.4f%s", record["epoch"], self.step, record["train_loss"], validated)
        self.emit("evaluate")
        self._warn(self.history.renew_overfit_warning())

    def _warn(self, message: str | None) -> None:
        if message is not None:
            logger.warning("%s", message)
            self.emit("warning", message)

    def _warn_of_better_teachers(self) -> None:
        """A run that lost its time may leave the model too few steps."""
        if self.history.stop_reason in FINISHED and self.layout.number is None and not self.saves.is_best():
            best = f"its best teacher (validation {self.history.best_teacher:.4f})"
            self._add_warning(
                f"the model did not become better than {best}, which was saved in its place: give more minutes"
            )

    def _warn_of_lost_time(self, planned: int, step: int, total: int) -> None:
        """Say it once, if half of the steps that were left are lost, and a tenth of all."""
        lost, said = planned - total, any(_LOST in warning for warning in self.history.warnings)
        if not said and 2 * lost > planned - step and 10 * lost >= planned:
            self._add_warning(
                f"after step {step} there is time for {total - step} of the {planned - step} steps that were left: "
                f"{_LOST}; give more minutes"
            )

    def _add_warning(self, message: str) -> None:
        self.history.warnings.append(message)
        self._warn(message)

    def _reason_to_end(self, stop: bool) -> str | None:
        if self.step >= self.layout.total_steps:
            return "early stopping" if self.layout.cooling else "finished"
        patience = self.config.patience
        if (
            patience is not None
            and not self.layout.cooling
            and self.history.bad_evaluations(self.config.min_delta) >= patience
        ):
            self._decide(cool_down(self.layout, self.step))
        return "stopped" if stop else None

    # --- events

    @property
    def total_steps(self) -> int | None:
        """Steps in all; None until the clock has decided."""
        return None if self.layout.total_steps == UNDECIDED else self.layout.total_steps

    @property
    def so_far(self) -> str:
        """The steps that are done, in words."""
        total = "" if self.total_steps is None else f" of {self.total_steps}"
        return f"step {self.step}{total}" + ("" if self.layout.number is None else f" of teacher {self.layout.number}")

    @property
    def _epoch(self) -> int:
        return max(1, -(-self.step // self.layout.sampler.steps_per_epoch))

    @property
    def seconds(self) -> float:
        """Of the run so far."""
        return self.clock() - self.began

    def emit(self, kind: EventKind, message: str = "", details: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Tell the callbacks what happened."""
        if not self.callbacks.wants(kind):
            return
        total = self.total_steps
        self.callbacks.emit(
            kind,
            step=self.step,
            total_steps=total,
            epoch=self._epoch,
            epochs=None if total is None else -(-total // self.layout.sampler.steps_per_epoch),
            loss=self.loss,
            lr=self.lr,
            grad_norm=self.grad_norm,
            seconds=self.seconds,
            tokens_per_second=self.pairs / self.step_seconds if self.step_seconds else 0.0,
            record=self.history.records[-1] if self.history.records else None,
            message=message,
            details=details,
            teacher=self.layout.number,
        )
