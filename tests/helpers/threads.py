"""Operations give the same bits with any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import soma_native as soma
from soma_native._core import _ops as ops


def assert_same_bits(work: Mapping[Any, Callable[[], Any]]) -> None:
    """Each call uses as many threads as it is given, 1, 2 or 3, and its result has the same bits with each."""
    seen: dict[Any, bytes] = {}
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        for name, compute in work.items():
            ops.widest_job()
            result = compute()
            assert ops.widest_job() == threads, name
            bits = b"".join(np.asarray(part).tobytes() for part in (result if isinstance(result, tuple) else (result,)))
            assert seen.setdefault(name, bits) == bits, (threads, name)
