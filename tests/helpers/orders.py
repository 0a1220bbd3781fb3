"""Orders of the threads of CUDA kernels, in which results must have the same bits. A GPU has orders of its own: there,
as many repetitions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np

FORWARD, BACKWARD, SHUFFLED = range(3)
ORDERS = [(FORWARD, 1), (BACKWARD, 1), (SHUFFLED, 1), (SHUFFLED, 2)]


def set_order(order: int = FORWARD, seed: int = 1) -> None:
    """The order from now on, in the emulation."""
    if not os.environ.get("SOMA_CUDA_EMULATED"):
        return
    from helpers.cuda import lib

    lib.soma_set_order(order, ctypes.c_uint64(seed))


def in_every_order(compute: Callable[[], Any]) -> Any:
    """What `compute` returns, with the same bits in whatever order threads and blocks run."""
    results = []
    for order in ORDERS:
        set_order(*order)
        results.append(compute())
    set_order()
    first = results[0] if isinstance(results[0], tuple) else (results[0],)
    for other in results[1:]:
        for a, b in zip(first, other if isinstance(other, tuple) else (other,), strict=True):
            assert np.array_equal(a, b, equal_nan=True), "the order of the threads changes the result"
    return results[0]
