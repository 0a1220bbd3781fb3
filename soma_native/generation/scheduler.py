"""Many sequences on the rows of one decoder: which join, whose prompts are read next, and which leave."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np

from soma_native.core import _core
from soma_native.generation.prefix import LEAST_PIECE, kept_length, shared_length
from soma_native.generation.sequence import STEPS, Score, Sequence

Reason = Literal["stop", "length", "cancelled"]


class Job:
    """A sequence of an engine, and what its caller hears of it. The engine's thread writes, any thread reads."""

    def __init__(self, sequence: Sequence, make_sampler: Callable[[], _core.Sampler], top: int) -> None:
        self.sequence = sequence
        self.make_sampler = make_sampler
        self.top = top  # likeliest tokens to give for each place; -1: no log-probabilities either
        self.sampler: _core.Sampler | None = None  # while it has a row: it is as large as the vocabulary
        self.row: Row | None = None
        self.reused = 0
        self.pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None is the end
        self.listener: Callable[[], object] | None = None  # called after each of them
        self.text: list[str] = []
        self.cancelled = False
        self.finish_reason: Reason | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self.submitted = time.monotonic()
        self.first: float | None = None  # the time of the first token
        self.end: float | None = None

    def take(self, tokens: list[int], scores: list[Score]) -> None:
        """Add tokens that were drawn, as `Sequence.take`."""
        if self.first is None:
            self.first = time.monotonic()
        if piece := self.sequence.take(tokens, scores):
            self.text.append(piece)
            self._put(piece)

    def finish(self, reason: Reason | None = None, error: BaseException | None = None) -> None:
        """Tell the caller that no more will come."""
        self.sampler = None
        self.finish_reason, self.error = reason, error
        self.end = time.monotonic()
        self.ended.set()
        self._put(None)

    def _put(self, piece: str | None) -> None:
        self.pieces.put(piece)
        if (listener := self.listener) is not None:
            with contextlib.suppress(RuntimeError):  # the loop of a caller in asyncio is closed
                listener()


class Row:
    """A row of the decoder, and what its keys and values are of."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.job: Job | None = None
        self.held: list[int] = []  # the tokens whose keys and values it has, also when no job is there
        self.rounded = 0  # how many of them were read with rounded inputs
        self.used = 0  # when it was last left: rows without a job go to others in this order


class Scheduler:
    """Gives rows to jobs, reads prompts in pieces, and lets the others grow. Used by one thread at a time.

    A prompt takes over what a row has of it: the row itself, where nobody needs more of it, else a copy.

    Args:
        decoder: as many rows as `rows`.
        piece: most tokens of prompts that are read between two calls in which the other texts grow.
        rounds: whether long prompts are read with rounded inputs, see `Generator`. Then what was read in another way
            is not taken over: its bits are not those of a call alone.
        live: whether the weights are the model's own, which may change while nobody writes.
        ends: the tokens that end a text.
    """

    def __init__(
        self, decoder: _core.Decoder, rows: int, *, piece: int, rounds: bool, live: bool, ends: list[int]
    ) -> None:
        self._decoder = decoder
        self._rows = [Row(index) for index in range(rows)]
        self._jobs: deque[Job] = deque()  # in the order in which their prompts are read
        self._piece = piece
        self._rounds = rounds
        self._live = live
        self._ends = ends
        self._turns = 0

    @property
    def running(self) -> int:
        """The number of jobs that have a row or will get one in the next round."""
        return len(self._jobs)

    def join(self, job: Job) -> None:
        """Take a job. There must be fewer jobs than rows."""
        self._jobs.append(job)

    def round(self) -> None:
        """Read one piece of the prompts that wait, then let every other text grow."""
        for job in [job for job in self._jobs if job.cancelled]:
            self._leave(job, "cancelled")
        self._read()
        self._begin()
        self._grow()

    def rest(self) -> None:
        """No job is here, and none for a while: rows keep only what no change of weights can make wrong."""
        if self._live:
            self._forget()

    def _forget(self) -> None:
        for row in self._rows:
            row.held = []

    def fail(self, error: Callable[[], BaseException]) -> None:
        """End every job with an error of its own."""
        self._forget()  # a call that failed may have written a part
        for job in list(self._jobs):
            self._leave(job, error=error())

    def _leave(self, job: Job, reason: Reason | None = None, error: BaseException | None = None) -> None:
        self._jobs.remove(job)
        if job.row is not None:
            self._turns += 1
            job.row.used, job.row.job, job.row = self._turns, None, None
        job.finish(reason, error)

    def _read(self) -> None:
        room = self._piece
        parts: list[tuple[Job, Row, list[int]]] = []
        for job in [job for job in self._jobs if _unread(job)]:
            row = job.row or self._place(job)
            if row is None:
                continue
            begin, left = len(row.held), _unread(job)
            count = min(room, left)
            if count < min(left, LEAST_PIECE):
                break
            parts.append((job, row, job.sequence.context[begin : begin + count]))
            room -= count
        if not parts:
            return
        rows = np.array([row.index for _, row, _ in parts], dtype=np.int32)
        keep = np.array([len(row.held) for _, row, _ in parts], dtype=np.int32)
        self._decoder.extend(rows, keep, [np.array(ids, dtype=np.int32) for _, _, ids in parts])
        for job, row, ids in parts:
            row.held += ids
            row.rounded = len(row.held) if self._rounds_prompt(job) else 0
            self._jobs.remove(job)  # it goes behind those that wait, so that a long prompt does not hold up others
            self._jobs.append(job)

    def _rounds_prompt(self, job: Job) -> bool:
        return self._rounds and len(job.sequence.context) >= LEAST_PIECE

    def _place(self, job: Job) -> Row | None:
        """Give the job a row with as much of its prompt as there is; None where a row will soon have more of it."""
        context, rounds = job.sequence.context[:-1], self._rounds_prompt(job)  # the last token gives the logits

        def usable(row: Row) -> int:
            if rounds or row.rounded:
                return shared_length(row.held[: row.rounded], context) if rounds else 0
            return shared_length(row.held, context)

        best = max(self._rows, key=usable)
        length = usable(best)
        others = [row.job for row in self._rows if row.job is not None and _unread(row.job)]
        for other in others:
            soon = shared_length(other.sequence.context, context) if self._rounds_prompt(other) == rounds else 0
            if soon >= length + LEAST_PIECE:
                return None
        idle = [row for row in self._rows if row.job is None]
        row = min(idle, key=lambda row: row.used)
        if best.job is None and length == len(best.held):
            row = best  # nothing of it is lost
        if row is not best and length >= LEAST_PIECE:
            self._decoder.copy_row(best.index, row.index, length)
            row.held, row.rounded = best.held[:length], min(best.rounded, length)
        else:
            row.held = row.held[: usable(row)]
            row.rounded = min(row.rounded, len(row.held))
        job.reused = len(row.held)
        job.row, row.job = row, job
        return row

    def _begin(self) -> None:
        """Make samplers for prompts that were read. One that is to be read in another way waits for its next piece."""
        logits = self._decoder.logits()
        for job in [job for job in self._jobs if job.sampler is None and not _unread(job)]:
            row = job.row
            if row is not None and not job.sequence.read(logits[row.index]):
                row.held = row.held[: kept_length(row.held, job.sequence.context, self._rounds)]
                continue
            try:
                job.sampler = job.make_sampler()
            except Exception as error:  # of this job alone
                self._leave(job, error=error)

    def _grow(self) -> None:
        growing = [(job, job.row, job.sampler) for job in self._jobs if not _unread(job)]
        ready = [(job, row, sampler) for job, row, sampler in growing if row is not None and sampler is not None]
        if not ready:
            return
        rows, samplers = [row.index for _, row, _ in ready], [sampler for _, _, sampler in ready]
        left = [job.sequence.left for job, _, _ in ready]
        tops = [job.top for job, _, _ in ready]
        steps = 1 if any(job.first is None for job, _, _ in ready) else STEPS  # the first piece comes at once
        grown = self._decoder.grow(rows, samplers, left, tops, self._ends, steps)
        for (job, row, _), (tokens, scores, error) in zip(ready, grown, strict=True):
            appended = tokens[: self._decoder.length(row.index) - len(row.held)]
            row.held += appended
            job.take(tokens, scores)
            if error:
                row.held = []
            if job.sequence.finish_reason is not None:  # perhaps by tokens before the one that failed
                self._leave(job, job.sequence.finish_reason)
            elif error:
                self._leave(job, error=ValueError(error))
            elif len(appended) < len(tokens):  # the context was full
                row.held = []


def _unread(job: Job) -> int:
    """The tokens of its context that the model has yet to read."""
    return len(job.sequence.context) - (0 if job.row is None else len(job.row.held))
