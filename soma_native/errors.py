"""The exceptions that callers can catch by name; every other error is a built-in exception."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class _Argument(Exception):
    """An argument and its problem, kept apart: the command prints the name of its option instead."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument} {self.problem}"


class ArgumentError(_Argument, ValueError):
    """An argument has a value that is not allowed.

    >>> error = ArgumentError("lr", "must be above 0, got -1")
    >>> print(error)
    lr must be above 0, got -1
    """


class ArgumentTypeError(_Argument, TypeError):
    """An argument has a value of a type that is not allowed."""


class CheckpointError(ValueError):
    """A file of a saved model is missing, damaged, unsafe or of a kind that cannot be read or written.

    The message names the file, the tensor if there is one, the problem, and where possible how to mend it.

    Args:
        problem: what is wrong, in words that read well after the file's name.
        path: the file or folder concerned, or None.
        tensor: the tensor (or key) inside the file, or None.
        in_python: what a Python program can do about it. It ends the message; the command leaves it out.

    >>> error = CheckpointError("has 3 bytes too few", path="run/model.safetensors", tensor="wte")
    >>> print(error)
    run/model.safetensors: tensor 'wte' has 3 bytes too few
    >>> error.path, error.tensor
    ('run/model.safetensors', 'wte')
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        in_python: str = "",
    ) -> None:
        self.problem = problem
        self.in_python = in_python
        self.path = None if path is None else os.fspath(path)
        self.tensor = tensor
        where = f"tensor {tensor!r} {problem}" if tensor is not None else problem
        super().__init__((where if self.path is None else f"{self.path}: {where}") + in_python)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep `path` and `tensor` when the error crosses a process boundary."""
        return _rebuild, (self.problem, self.path, self.tensor, self.in_python)


def _rebuild(problem: str, path: str | None, tensor: str | None, in_python: str = "") -> CheckpointError:
    return CheckpointError(problem, path=path, tensor=tensor, in_python=in_python)


class EngineFullError(RuntimeError):
    """As many texts wait in an `Engine` as may. Submit again later; a server answers 429 or 503."""


class EngineClosedError(RuntimeError):
    """An `Engine` was closed before this text was complete, or before it was asked for."""


class RankError(RuntimeError):
    """Another process of the run has failed, so that this one ends too.

    Args:
        rank: the number of that process.
        problem: what it said.
    """

    def __init__(self, rank: int, problem: str) -> None:
        super().__init__(rank, problem)
        self.rank, self.problem = rank, problem

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.problem}"


class AllInterrupted(KeyboardInterrupt):
    """A Ctrl-C at one of several ranks, of which all know."""


class Difference(NamedTuple):
    """An argument of a run, and what the run in the folder has in its place."""

    name: str
    there: Any
    here: Any


class OtherRunError(ValueError):
    """The run in the folder was begun with other arguments than those of the call that resumes it.

    Args:
        folder: the folder of that run.
        differences: every argument that differs.
    """

    def __init__(self, folder: Path, differences: list[Difference]) -> None:
        super().__init__(folder, differences)
        self.folder, self.differences = folder, differences

    def __str__(self) -> str:
        return self.said(
            lambda name, value: name if name in _WITHOUT_VALUE else f"{name}={value!r}",
            "Trainer.resume takes what this run has; to begin a new run, give another checkpoint_dir, or resume=False "
            "to replace this one",
        )

    def said(self, call: Callable[[str, Any], str], mend: str) -> str:
        """The message: `call` says how an argument is given, `mend` what can be done."""
        parts = [f"{call(name, here)}: this run {_has(there)}" for name, there, here in self.differences]
        return f"cannot resume the run in {self.folder}: {'; '.join(parts)}. {mend}"


_WITHOUT_VALUE = {"texts", "validation", "tokenizer", "teacher"}  # arguments that are too long for a message


def _has(value: Any) -> str:
    return "was begun without it" if value is None else f"has {value}"
