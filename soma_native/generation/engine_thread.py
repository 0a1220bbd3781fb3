"""The thread of an engine, with a bounded queue in front of a scheduler. It lives while there is work."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque

from soma_native.errors import EngineClosedError, EngineFullError
from soma_native.generation.scheduler import Job, Scheduler

_LINGER = 0.05  # seconds that an idle thread waits for more work: a new one has to start its helpers again


class EngineThread:
    """Runs a scheduler as long as there are jobs. It knows nothing of the engine, whose end it must not delay.

    Args:
        scheduler: what the thread runs.
        rows: most jobs that the scheduler takes.
        max_queue: most jobs that wait.
    """

    def __init__(self, scheduler: Scheduler, rows: int, max_queue: int) -> None:
        self._scheduler = scheduler
        self._rows, self._max_queue = rows, max_queue
        self._process = os.getpid()
        self._work = threading.Condition()  # guards what follows
        self._queue: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._runs = False
        self.closed = False

    @property
    def unfinished(self) -> int:
        """The jobs that run or wait."""
        return len(self._queue) + self._scheduler.running

    def check_process(self) -> None:
        """Raise a RuntimeError in a process other than the one that made the engine: threads do not survive a fork."""
        if os.getpid() != self._process:
            raise RuntimeError("the engine was made in another process: make one in this process, after the fork")

    def submit(self, job: Job) -> None:
        """Queue a job. Raises as `Engine.submit`."""
        self.check_process()
        with self._work:
            if self.closed:
                raise EngineClosedError("the engine is closed: make another one")
            if job.sequence.finish_reason is not None:  # max_tokens is 0
                return job.finish(job.sequence.finish_reason)
            self._drop_cancelled()
            if self.unfinished >= self._rows + self._max_queue:
                raise EngineFullError(f"max_queue = {self._max_queue} texts wait already: submit again later")
            if not self._runs:
                if self._thread is not None:
                    self._thread.join()  # it has nothing left to do
                thread = threading.Thread(target=self._run, name="soma-engine")
                thread.start()
                self._thread, self._runs = thread, True
            self._queue.append(job)
            self._work.notify()

    def stop(self) -> None:
        """Close without waiting: the finalizer of the engine, which any thread may run at any place."""
        if os.getpid() == self._process:
            with self._work:
                self.closed = True
                self._work.notify()

    def close(self) -> None:
        """Close, and wait for the thread."""
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and os.getpid() == self._process:
            thread.join()

    def _run(self) -> None:
        while self._more():
            try:
                self._scheduler.round()
            except BaseException as error:  # the texts that run get it, and the engine goes on
                self._scheduler.fail(functools.partial(_failed, error))

    def _more(self) -> bool:
        """Give the scheduler what it can take. Returns False when the thread is to end."""
        with self._work:
            while not self.closed and threading.main_thread().is_alive():
                self._drop_cancelled()
                while self._queue and self._scheduler.running < self._rows:
                    self._scheduler.join(self._queue.popleft())
                if self._scheduler.running:
                    return True
                if not self._work.wait(_LINGER) and not self._queue:
                    self._runs = False
                    self._scheduler.rest()
                    return False
            self._runs = False
            self._scheduler.fail(_closed)
            while self._queue:
                self._queue.popleft().finish(error=_closed())
            return False

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._queue if job.cancelled]:
            self._queue.remove(job)
            job.finish("cancelled")


def _closed() -> EngineClosedError:
    return EngineClosedError("the engine was closed before this text was complete")


def _failed(cause: BaseException) -> RuntimeError:
    error = RuntimeError(f"the engine failed at this text: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error
