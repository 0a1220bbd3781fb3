"""The instruction set in use, and the number of threads."""

from __future__ import annotations

from typing import SupportsIndex

from soma_native._checks import integer
from soma_native.core import _core

__all__ = ["active_isa", "available_isas", "get_num_threads", "set_num_threads"]

active_isa, available_isas, get_num_threads = _core.active_isa, _core.available_isas, _core.get_num_threads


def set_num_threads(n: SupportsIndex) -> None:
    """Set the number of threads that compute, 1 to 1024, for all models of this process.

    Raises:
        TypeError: `n` is not an integer.
        ValueError: `n` is out of range.
        RuntimeError: `n` is above 1, and this process was forked from one that had computed in parallel.
    """
    _core.set_num_threads(integer("n", n, 1, 1024))
