"""The errors of our own that a caller may want to catch by name; everything else is a built-in exception."""

from __future__ import annotations

import os


class _Argument(Exception):
    """An argument and what is wrong with it, apart, so that the command can call the argument by its option."""

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

    The message names the file, the tensor where there is one, what is wrong, and where possible how to mend it. It is
    a `ValueError`, so a caller who only cares whether the input was good needs no import.

    Args:
        problem: what is wrong, in words that read well after the file's name.
        path: the file or folder concerned, or None.
        tensor: the tensor (or key) inside the file, or None.

    >>> error = CheckpointError("has 3 bytes too few", path="run/model.safetensors", tensor="wte")
    >>> print(error)
    run/model.safetensors: tensor 'wte' has 3 bytes too few
    >>> error.path, error.tensor
    ('run/model.safetensors', 'wte')
    """

    def __init__(self, problem: str, *, path: str | os.PathLike[str] | None = None, tensor: str | None = None) -> None:
        self.problem = problem
        self.path = None if path is None else os.fspath(path)
        self.tensor = tensor
        where = f"tensor {tensor!r} {problem}" if tensor is not None else problem
        super().__init__(where if self.path is None else f"{self.path}: {where}")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep `path` and `tensor` when the error crosses a process boundary."""
        return _rebuild, (self.problem, self.path, self.tensor)


def _rebuild(problem: str, path: str | None, tensor: str | None) -> CheckpointError:
    return CheckpointError(problem, path=path, tensor=tensor)
