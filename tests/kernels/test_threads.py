"""The number of threads of a call: as many as set, also on machines with fewer cores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.child import output_of
from helpers.noise import NOISE, core_noise
from helpers.numerics import normal
from soma_native._core import _ops as ops

THREADS = [1, 2, 3, 5]
ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "c++")

pytestmark = pytest.mark.usefixtures("settings_restored")


@pytest.mark.parametrize("job", ["loop", "pool", "region"])
@pytest.mark.parametrize("threads", THREADS)
def test_so_many_threads_take_part(job: str, threads: int, tmp_path: Path) -> None:
    """Each thread waits for all others. If one is missing, the child runs into its time limit."""
    code = f"from soma_native._core import _ops; print(*_ops.threads_at_work({job!r}), _ops.widest_job())"
    assert output_of(code, tmp_path, SOMA_NUM_THREADS=str(threads)) == f"{threads} {threads} {threads}"


def test_a_job_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="job must be 'loop', 'pool' or 'region', got 'gang'"):
        ops.threads_at_work("gang")


@pytest.mark.skipif(os.name == "nt", reason="fork, and GCC's flags")
@pytest.mark.parametrize("flag", ["-fopenmp", "-pthread"])
def test_threads_of_openmp_and_of_the_standard_library_do_the_same(flag: str, tmp_path: Path) -> None:
    """Nested jobs, barriers, exceptions, Ctrl-C, several callers, ends of threads, a forked child that ends itself."""
    program, base = tmp_path / "check", ROOT / "src/cpp/base"
    sources = [base / f"{name}.cpp" for name in ("parallel", "workers", "fork", "spare_threads", "interrupt")]
    command = [COMPILER, "-std=c++20", "-O1", flag, f"-I{ROOT / 'src/cpp'}", *sources]
    built = subprocess.run(
        [*command, ROOT / "tests/cpp/threads_check.cpp", "-o", program], capture_output=True, text=True
    )
    if built.returncode != 0 and flag == "-fopenmp" and sys.platform == "darwin":
        pytest.skip("Apple's compiler has no OpenMP")
    assert built.returncode == 0, built.stderr
    settings = {**os.environ, "GOMP_SPINCOUNT": "10000"}
    done = subprocess.run([program], capture_output=True, text=True, env=settings, timeout=120)
    assert (done.returncode, done.stdout) == (0, "threads checked\n"), done.stdout + done.stderr


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
    "decode_swiglu": lambda: ops.decode_swiglu(large(4, 512), large(512, 1024)),
    "column_sum": lambda: ops.column_sum(large(1024, 1024), large(1024)),
    "sum_rows": lambda: ops.sum_rows(large(1024, 1024), large(1024)),
    "rms_norm_grad": lambda: ops.rms_norm_grad(large(512, 512), large(512, 512), COLUMN, COLUMN),
    "rotated_product": lambda: ops.rotated_product(large(1, 512, 512), large(512, 3 * 5 * 16), large(512, 16), 5),
    "swiglu_product": lambda: ops.swiglu_product(large(512, 512), large(512, 512)),
    "swiglu_gradient_product": lambda: ops.swiglu_gradient_product(large(512, 512), large(512, 512), large(512, 1024)),
    "gelu_backward": lambda: ops.gelu_backward(large(1024, 1024), large(1024, 1024)),
    "dropout": lambda: ops.dropout(large(1024, 1024), core_noise(**NOISE), site="mlp"),
    "matmul_dropout": lambda: ops.matmul_dropout(large(512, 512), large(512, 512), core_noise(**NOISE)),
    "soft_cross_entropy": lambda: ops.soft_cross_entropy(
        large(512, 512), np.full((512, 512), 1 / 512, np.float32), ids(512, 512), 0.5, 1.0
    ),
    "add_softmax": lambda: ops.add_softmax(large(512, 512), 0.5),
    "score": lambda: ops.score(large(512, 512), ids(512, 512), 3),
    "symmetric_product": lambda: ops.symmetric_product(large(512, 512)),
    "muon_momentum": lambda: ops.muon_momentum(large(1024, 1024), large(1024, 1024), momentum=0.9, scale=1.0),
    "muon": lambda: ops.muon(large(1024, 1024), large(1024, 1024), lr=0.1, scale=1.0, weight_decay=0.1),
    "scale": lambda: ops.scale(large(1024, 1024), 2.0),
    "average": lambda: ops.average(large(1 << 20), large(1 << 20), 0.5),
}
# Functions that start no threads, or that the table has under another name.
OTHERS = {"masked_tokens", "peek", "matmul_through", "multiply_add_registers", "threads_at_work", "widest_job"}


def test_every_op_is_in_the_table() -> None:
    assert {name for name in dir(ops) if not name.startswith("_")} == {name.split()[0] for name in OPS} | OTHERS


@pytest.mark.parametrize("name", OPS)
def test_a_large_op_is_cut_among_all_of_them(name: str) -> None:
    for threads in THREADS:
        soma.set_num_threads(threads)
        ops.widest_job()
        OPS[name]()
        assert ops.widest_job() == threads


# No process runs as the user of this number. Without the right to become this user, the limit leaves no further thread.
REFUSE = """
import logging, resource
logging.basicConfig(format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
before = train(small_model()), soma.Tokenizer.train(["a text"], kind="byte").encode_batch(["a text"] * 999)
def refuse(limit):
    if os.geteuid() == 0:
        os.setuid(2**31 - 12345)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
"""
COMPUTE = """
model, other = small_model(), small_model()
print(model.loss(*batch()) == other.loss(*batch()))
print(soma.get_num_threads())
print((train(model), soma.Tokenizer.train(["a text"], kind="byte").encode_batch(["a text"] * 999)) == before)
print(*_ops.threads_at_work("loop"), *_ops.threads_at_work("pool"), *_ops.threads_at_work("region"))
"""
needs_limits = pytest.mark.skipif(not hasattr(os, "setuid"), reason="the system has no limit of processes")


@needs_limits
@pytest.mark.parametrize("wanted", [2, 5])
@pytest.mark.parametrize("limit", [1, 3])
def test_fewer_threads_and_a_warning_where_the_system_refuses_them(limit: int, wanted: int, tmp_path: Path) -> None:
    granted = min(wanted, limit if os.geteuid() == 0 else 1)
    code = f"{REFUSE}from soma_native._core import _ops\nrefuse({limit})\nsoma.set_num_threads({wanted}){COMPUTE}"
    lines = output_of(code, tmp_path, SOMA_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1").splitlines()
    if granted < wanted:
        warning = lines.pop(0)
        assert warning.startswith(f"WARNING soma_native the system refused to start {wanted} threads: computing with ")
        assert f"with {granted} from now on" in warning and f"set_num_threads({wanted})" in warning
    assert lines == ["True", str(granted), "True", " ".join([str(granted)] * 6)]


@needs_limits
def test_a_pool_that_exists_is_kept_and_not_grown(tmp_path: Path) -> None:
    """The first Python thread has a pool of two threads before the limit; the second one has no pool."""
    code = f"""{REFUSE}
import threading
from soma_native._core import _ops
refused, results = threading.Event(), []
def work():
    refused.wait()
    results.append(_ops.widest_job() and train(small_model()))
thread = threading.Thread(target=work)
thread.start()
made = _ops.threads_at_work("region")
refuse(1)
soma.set_num_threads(4)
same = [train(small_model()) == before[0]]
kept = _ops.threads_at_work("region")
refused.set()
thread.join()
print(*made, *same, *kept, results == [before[0]], soma.get_num_threads())
"""
    last = output_of(code, tmp_path, SOMA_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1").splitlines()[-1]
    assert last == "2 2 True 2 2 True 1"
