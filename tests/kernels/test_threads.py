"""How many threads a call starts: as many as it is told, on machines with fewer cores too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.child import output_of
from helpers.numerics import normal
from soma_native._core import _ops as ops

THREADS = [1, 2, 3, 5]

pytestmark = pytest.mark.usefixtures("settings_restored")


@pytest.mark.parametrize("job", ["loop", "crew", "team"])
@pytest.mark.parametrize("threads", THREADS)
def test_so_many_threads_take_part(job: str, threads: int, tmp_path: Path) -> None:
    """Each waits for all others, so that a missing one would end the child by its time limit."""
    code = f"from soma_native._core import _ops; print(*_ops.threads_at_work({job!r}), _ops.widest_job())"
    assert output_of(code, tmp_path, SOMA_NUM_THREADS=str(threads)) == f"{threads} {threads} {threads}"


def test_a_job_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="job must be 'loop', 'crew' or 'team', got 'gang'"):
        ops.threads_at_work("gang")


def large(*shape: int) -> Any:
    return normal(np.random.default_rng(0), *shape)


def ids(high: int, *shape: int) -> Any:
    return np.random.default_rng(1).integers(0, high, shape).astype(np.int32)


ADAMW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.5, "step": 7}
COLUMN = np.ones(512, np.float32)
OPS: dict[str, Callable[[], Any]] = {
    "matmul": lambda: ops.matmul(large(512, 512), large(512, 512)),
    "matmul in bfloat16": lambda: ops.matmul(large(512, 512), large(512, 512), precision="bfloat16"),
    "weight_gradients": lambda: ops.weight_gradients([(large(512, 512), large(512, 512))], [(large(512, 512), COLUMN)]),
    "norm": lambda: ops.norm(large(512, 512), eps=1e-5),
    "norm_backward": lambda: ops.norm_backward(large(512, 512), large(512, 512), COLUMN),
    "norm_grad": lambda: ops.norm_grad(large(512, 512), large(512, 512), COLUMN, COLUMN, COLUMN, COLUMN),
    "gelu": lambda: ops.gelu(large(1024, 1024)),
    "relu_backward": lambda: ops.relu_backward(large(1024, 1024), large(1024, 1024)),
    "attention": lambda: ops.attention(large(2, 128, 3 * 5 * 16), 5),
    "attention_backward": lambda: ops.attention_backward(
        large(2, 128, 5 * 16), large(2, 128, 3 * 5 * 16), large(2, 5, 128)
    ),
    "embed": lambda: ops.embed(ids(99, 4, 512), large(99, 256), large(512, 256)),
    "embed_backward": lambda: ops.embed_backward(large(4, 512, 256), ids(99, 4, 512), large(99, 256), large(512, 256)),
    "cross_entropy": lambda: ops.cross_entropy(large(512, 512), ids(512, 512), 0.5),
    "sum_squares": lambda: ops.sum_squares(large(1 << 20)),
    "adamw": lambda: ops.adamw(*(np.abs(large(1 << 20)) for _ in range(4)), **ADAMW),
    "decode_linear": lambda: ops.decode_linear(large(4, 512), large(512, 512)),
    "decode_attention": lambda: ops.decode_attention(
        large(4, 3 * 5 * 16), large(4, 512, 5 * 16), large(4, 512, 5 * 16), ids(500, 4), 5
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_a_large_op_is_cut_among_all_of_them(name: str) -> None:
    for threads in THREADS:
        soma.set_num_threads(threads)
        ops.widest_job()
        OPS[name]()
        assert ops.widest_job() == threads
