"""The public Trainer: trains a model on texts, records a history, saves checkpoints and resumes from them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, cast

from soma_native._checks import choice, instance, number
from soma_native.checkpoint import load, load_model
from soma_native.checkpoint.folder import has_tokenizer
from soma_native.data.documents import Texts
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.errors import ArgumentError, CheckpointError
from soma_native.files.held_folder import hold_folder
from soma_native.model.model import Model
from soma_native.parallel.comm import Comm, as_comm
from soma_native.parallel.world import World
from soma_native.tokenizer.tokenizer import Tokenizer
from soma_native.training.callbacks import CallbackLike, Dispatcher
from soma_native.training.config import LENGTHS, TrainConfig, settings_of_older_runs
from soma_native.training.evaluate import mean_loss
from soma_native.training.events import EventLog
from soma_native.training.history import History
from soma_native.training.interrupt import InterruptGuard
from soma_native.training.layout import Layout
from soma_native.training.pace import Clock, forwards
from soma_native.training.phase import FINISHED, STUDENT, TEACHERS, Phase, forget, new_teacher
from soma_native.training.run import TrainingRun
from soma_native.training.state import phase_of, read_state


class Trainer:
    """Trains a model on texts.

    Args:
        model: the model, trained in place.
        tokenizer: encodes the texts; its vocabulary must not be larger than the model's. Without one, `fit` takes
            each `TokenStore`, and the folder of the model gets no tokenizer.
        config: the settings; None means the defaults of `TrainConfig`.
        clock: gives the time in seconds, which decides when to save, and with `minutes` when to end.
        used: seconds of `minutes` that are over before `fit`, in which the run was prepared.
        comm: connects the processes that train one model together: mpi4py's `MPI.COMM_WORLD`, or a
            `soma_native.parallel.comm.Comm`. Each has the same model, texts and settings, and computes a part of the
            windows of each batch. Rank 0 alone calls the callbacks, decides by the clock, and writes. None is this
            process alone.

    Attributes:
        history: the `History` of the last `fit`, also when an error or Ctrl-C ended it.

    Raises:
        TypeError, ValueError: an argument does not fit. The message names it.

    >>> import soma_native as soma
    >>> texts = ["the cat sat on the mat", "the dog sat on the log"]
    >>> tok = soma.Tokenizer.train(texts, kind="word", vocab_size=20)
    >>> shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_seq_len": 16}
    >>> model = soma.Model(soma.ModelConfig(vocab_size=tok.vocab_size, **shape), seed=0)
    >>> history = soma.Trainer(model, tok, soma.TrainConfig(epochs=20, lr=1e-2)).fit(texts)
    >>> history.records[-1]["step"], history.records[-1]["train_loss"] < history.records[0]["train_loss"]
    (20, True)
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        config: TrainConfig | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        used: float = 0.0,
        comm: Comm | None = None,
    ) -> None:
        config = TrainConfig() if config is None else config
        instance("config", config, TrainConfig)
        instance("model", model, Model)
        if tokenizer is not None:
            instance("tokenizer", tokenizer, Tokenizer)
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model only {model.config.vocab_size}: make "
                f"the model with vocab_size={tokenizer.vocab_size}"
            )
        longest = model.config.max_seq_len
        if config.seq_len is not None and config.seq_len > longest:
            raise ArgumentError(
                "seq_len", f"must be from 1 to {longest}, the model's max_seq_len, got {config.seq_len}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.history = History()
        self._stop = threading.Event()
        self._running: TrainingRun | None = None
        self._clock = clock
        self._used = number("used", used, least=0)
        self._world = World(None if comm is None else as_comm(comm))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a Trainer cannot be copied or pickled, because its run belongs to one process: copy trainer.model, or "
            "continue in another process with Trainer.resume(checkpoint_dir)"
        )

    def __repr__(self) -> str:
        return f"Trainer(model={self.model!r}, tokenizer={self.tokenizer!r}, history={self.history!r})"

    @classmethod
    def resume(
        cls, folder: str | os.PathLike[str], device: str = "cpu", *, comm: Comm | None = None, **changes: Any
    ) -> Trainer:
        """A trainer that continues the run in `folder`. Call `fit` with the same texts.

        Args:
            folder: the `checkpoint_dir` of that run.
            device: as for `Model`. It may be another than that of the run.
            comm: as for `Trainer`. Every rank reads the folder. Their number may be another than that of the run.
            changes: settings of `TrainConfig` to change. Only settings that do not change the weights may differ, such
                as `checkpoint_every` and `log_every`. For any other, `fit` raises and names it.

        Raises:
            FileNotFoundError: there is nothing to resume in the folder.
            CheckpointError: a file in it is damaged.
        """
        state, _ = read_state(folder)
        precision = state.identity["precision"]
        tokenizer: Tokenizer | None = None
        if has_tokenizer(folder):
            model, tokenizer = load(folder, precision=precision, device=device)
        else:
            model = load_model(folder, precision=precision, device=device)
        model._evaluate_in(state.identity.get("evaluation_precision", precision))
        given = {**settings_of_older_runs(), **state.config}
        if set(LENGTHS) & changes.keys():
            given |= dict.fromkeys(LENGTHS)  # the run may have had another of them
        config = TrainConfig.from_dict({**given, "checkpoint_dir": folder, "resume": True, **changes})
        return cls(model, tokenizer, config, comm=comm)

    def stop(self) -> None:
        """Make `fit` save a checkpoint and return after the current step. Callbacks and other threads may call this.

        If `fit` does not run, the next `fit` returns without a step.
        """
        self._stop.set()

    def fit(
        self,
        texts: Texts | TokenStore,
        validation: Texts | TokenStore | None = None,
        callbacks: Iterable[CallbackLike] | CallbackLike = (),
        teacher: Model | Iterable[Model] | None = None,
    ) -> History:
        """Train the model and return the history.

        Args:
            texts: the documents: an iterable of documents (`str`) and of UTF-8 text files with one document each
                (`os.PathLike`), the path of one such file, or a `TokenStore`. Its ids are taken as they are:
                `end_of_document` adds nothing to them.
            validation: the documents of the validation loss, in the same forms. None holds out `config.val_fraction`
                of `texts`, by default 0.
            callbacks: functions of an `Event`, or objects with the hooks of `Callback`.
            teacher: a model of the same vocabulary, or several whose probabilities are averaged. The training loss, in
                the history too, is then (1 - config.distill) cross-entropy + config.distill KL(teacher || model); see
                `Model.loss_and_grad`. Validation losses stay cross-entropies. Do not change a teacher meanwhile. A
                run that is resumed needs the same teachers. None with `config.teachers` above 0, which trains its own.

        Returns:
            The history. Early stopping and `stop` make it shorter; `stop_reason` tells them apart. The model has its
            latest weights, or their average if the settings ask for one. The weights of the lowest validation loss are
            in `checkpoint_dir`. Of a run with `config.teachers` that ended while it trained a teacher, the history is
            that teacher's, the model has not changed, and `checkpoint_dir` has the best teacher so far.

        Raises:
            TypeError: the trainer has no tokenizer, and `texts` or `validation` is no `TokenStore`.
            ValueError: there is no pair to train on, an id is not below the model's `vocab_size`, a setting does not
                fit the data, or the run to resume had other texts or settings. The message names the problem.
            FloatingPointError: a loss, gradient or weight is not finite. The message names the step. The checkpoint on
                disk stays the last good one.
            CheckpointError: a checkpoint could not be saved, the one to resume from is damaged, a teacher that it needs
                is missing or another, or another run works in `checkpoint_dir`.
            KeyboardInterrupt: Ctrl-C. A checkpoint was saved in the folder `history.checkpoint`, if it is not None.
            RankError: another rank of `comm` raised an error, which the message has. All ranks raise if the ranks
                differ in texts, settings, weights, version or instruction set (ArgumentError).
        """
        self.history = History()
        world, taught = self._world, self.config.teachers > 0
        folder = self.config.checkpoint_dir if world.first else None
        if taught and teacher is not None:
            raise ArgumentError(
                "teacher", f"and teachers={self.config.teachers}, which are trained, exclude each other"
            )
        if taught and self.config.checkpoint_dir is None:
            raise ArgumentError("teachers", "needs checkpoint_dir, the folder in which they are kept")
        log = None if folder is None else EventLog(Path(folder))
        listeners = [*([] if log is None else [log]), *(callbacks if isinstance(callbacks, Iterable) else [callbacks])]
        clock = forwards(self._clock)
        began = clock() - self._used
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(world.watched())
                dispatcher = world.together(lambda: Dispatcher(listeners if world.first else [], self))
                world.together(lambda: None if folder is None else stack.enter_context(hold_folder(Path(folder))))
                if log is not None:
                    stack.enter_context(log)
                if taught and world.alone:
                    self._fit_taught(texts, validation, listeners, clock, began)
                else:
                    layout = world.together(
                        lambda: Layout(self.model, self.tokenizer, self.config, texts, validation, teacher)
                    )
                    self._run(
                        TrainingRun(
                            layout,
                            self.history,
                            dispatcher,
                            self._stop,
                            clock,
                            began,
                            self.config.resume,
                            world=world,
                        )
                    )
                if folder is not None and self.history.stop_reason in FINISHED:
                    forget(Path(folder))
                return self.history
        finally:
            self._running = None
            self._stop.clear()

    def _fit_taught(
        self,
        texts: Texts | TokenStore,
        validation: Texts | TokenStore | None,
        listeners: list[CallbackLike],
        clock: Clock,
        began: float,
    ) -> None:
        """Train the teachers one after another, then the model; each is a phase of the run, and may be resumed."""
        config, resume = self.config, self.config.resume
        folder = Path(cast(str, config.checkpoint_dir))
        store = TokenStore.encode(texts, self.tokenizer, config.end_of_document)
        if validation is not None:
            validation = TokenStore.encode(validation, self.tokenizer, config.end_of_document)
        phase, finished = phase_of(folder) if resume else (Phase(1, clock() - began), False)
        student = None
        if phase.teacher is not None:
            models = {name: phase.load(folder, name, self.model) for name in phase.kept}  # all are whole
            student = models.get(STUDENT)
            del models
        while phase.teacher is not None:
            model = new_teacher(self.model, config.seed, phase.teacher)
            trainer = Trainer(model, self.tokenizer, config, clock=self._clock)
            trainer.history, trainer._stop = self.history, self._stop
            layout = Layout(model, self.tokenizer, config, store, validation, number=phase.teacher)
            run = TrainingRun(
                layout,
                self.history,
                Dispatcher(listeners, trainer),
                self._stop,
                clock,
                began,
                resume,
                phase,
                self.model,
            )
            self._running = run
            if trainer._run(run).stop_reason not in FINISHED:
                return
            began, resume = run.began, False
            phase = phase.following(config.teachers, clock() - began)
            self.history = self.history.following()
        if student is not None:
            for name, array in student.parameters().items():
                self.model.write(name, array)
        teachers = [] if finished else [phase.load(folder, n, self.model) for n in phase.kept if n != STUDENT]
        layout = Layout(self.model, self.tokenizer, config, store, validation, teachers or None)
        dispatcher = Dispatcher(listeners, self)
        run = TrainingRun(layout, self.history, dispatcher, self._stop, clock, began, resume, phase)
        if finished and run._reason_to_end(self._stop.is_set()) is None:
            raise CheckpointError("is gone, for the run was finished: begin a new one", path=folder / TEACHERS)
        self._run(run)

    def averaged(self) -> contextlib.AbstractContextManager[Model]:
        """In this block, inside a callback, the model has the weights that are validated and saved: averaged ones."""
        return contextlib.nullcontext(self.model) if self._running is None else self._running.averaged()

    @property
    def bits_per_nat(self) -> float | None:
        """While `fit` runs: bits per byte for each nat a token of the training loss, by the validation's bytes.

        None without them, and where the loss is more than a cross-entropy: the run learns from teachers.
        """
        layout = None if self._running is None else self._running.layout
        return None if layout is None or layout.teachers else layout.bits_per_nat

    def tell(self, kind: Literal["plan", "sample"], **details: Any) -> None:
        """Send an event to all callbacks of the run, and so to `events.jsonl`. For callbacks.

        Args:
            kind: "plan", what the run will do, or "sample", a text of the model.
            details: what the event says, as JSON can hold it; of a sample `prompt` and `text`.

        Raises:
            ValueError: the kind is another.
            RuntimeError: `fit` does not run.
        """
        choice("kind", kind, ("plan", "sample"))
        if self._running is None:
            raise RuntimeError("tell is for callbacks: no fit of this trainer runs now")
        self._running.emit(kind, details=details)

    def _run(self, run: TrainingRun) -> History:
        self._running = run
        together = not self._world.alone or self.config.sync_every is not None  # all ranks end after an outer step
        try:
            with InterruptGuard() as guard:
                try:
                    with guard.hold() if together else contextlib.nullcontext():
                        return run.loop(guard)
                except KeyboardInterrupt:
                    run.saves.save_interrupted()
                    raise
        finally:
            self._running = None
            run.keep_average()
            self.model.zero_grad()

    def evaluate(self, texts: Texts | TokenStore) -> float:
        """Mean loss of the model on `texts` in nats a token; its exponential is the perplexity.

        Raises:
            TypeError: the trainer has no tokenizer, and `texts` is no `TokenStore`.
            ValueError: there is no next-token pair in the texts, or an id is not below the model's `vocab_size`.
        """
        store = TokenStore.encode(texts, self.tokenizer, self.config.end_of_document)
        store.require_pairs("texts")
        store.require_below(self.model.config.vocab_size, "texts")
        windows = Windows(store, self.config.seq_len or self.model.config.max_seq_len)
        return mean_loss(self.model, windows, self.config.batch_size)
