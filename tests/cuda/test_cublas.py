"""Large products by cuBLASLt: a fake one, which refuses what the real one would refuse, against the own kernels."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from helpers.child import run_script
from helpers.cuda import I64, DeviceMatrix, Dropout, Epilogue, Numbers, empty, lib
from helpers.numerics import chain_tolerance, normal, relative_error
from oracles.ops import Array, round_bfloat16
from soma_native import system

fake = ctypes.CDLL(os.environ["SOMA_CUBLAS"])
lib.soma_matmul_large.restype = ctypes.c_char_p
ASKED = ("compute", "type", "transposed_a", "transposed_b", "m", "n", "k")
ASKED += ("reductions", "beta", "products", "choices", "held")
PRECISIONS = ["float32", "bfloat16"]
FLOAT32, BFLOAT16, SUMS_IN_FLOAT32, WITHOUT_TF32 = 0, 14, 68, 69


def asked() -> dict[str, int]:
    """What the fake was asked for last."""
    numbers = (I64 * len(ASKED))()
    fake.soma_fake_asked(numbers)
    return dict(zip(ASKED, numbers, strict=True))


def product(name: str, c: DeviceMatrix, a: DeviceMatrix, b: DeviceMatrix, precision: str, **terms: Any) -> Array:
    """C = a b by `name`; raises what went wrong."""
    plain = {k: v if isinstance(v, bool | Dropout) else _address(v) for k, v in terms.items()}
    why = getattr(lib, name)(
        c.out, a.operand, b.operand, ctypes.byref(Epilogue(**plain)), ctypes.c_bool(precision == "bfloat16")
    )
    if name == "soma_matmul_large" and why:
        raise RuntimeError(why.decode())
    return c.read()


def _address(owner: Any) -> Any:
    return owner.memory.address if isinstance(owner, Numbers) else ctypes.addressof(owner._obj)


def operands(rng: Any, m: int, n: int, k: int, layout: str, pairs: bool) -> tuple[Array, Array, list[DeviceMatrix]]:
    a, b = normal(rng, m, k), normal(rng, k, n)
    stored = [np.ascontiguousarray(x.T) if t == "t" else x for x, t in zip((a, b), layout, strict=True)]
    return a, b, [DeviceMatrix(x, pairs, transposed=t == "t") for x, t in zip(stored, layout, strict=True)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_every_layout_is_asked_for_as_it_is_stored(precision: str, layout: str) -> None:
    """Sums are never split or in TF32; a leading dimension is that of the memory, also where rows have a rest."""
    rng = np.random.default_rng(0)
    for m, n, k in [(1, 1, 1), (3, 5, 7), (33, 9, 65), (20, 34, 70)]:
        for pairs in {False, precision == "bfloat16"}:
            a, b, stored = operands(rng, m, n, k, layout, pairs)
            got = product("soma_matmul_large", empty((m, n)), *stored, precision)
            wide = precision == "bfloat16"
            want = (round_bfloat16(a) if wide else a).astype(float) @ (round_bfloat16(b) if wide else b)
            assert relative_error(got, want) <= chain_tolerance(k)
            if not wide:  # both add in the order of k
                assert np.array_equal(got, product("soma_matmul", empty((m, n)), *stored, precision))
            made = asked()
            assert (made["m"], made["n"], made["k"]) == (n, m, k)
            assert (made["transposed_a"], made["transposed_b"]) == (layout[1] == "t", layout[0] == "t")
            assert (made["type"], made["compute"]) == ((BFLOAT16, SUMS_IN_FLOAT32) if wide else (FLOAT32, WITHOUT_TF32))
            assert (made["reductions"], made["beta"]) == (0, 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gradient_is_added_to_what_is_there(precision: str) -> None:
    rng = np.random.default_rng(1)
    x, dy, onto, sums = normal(rng, 45, 20), normal(rng, 45, 33), normal(rng, 20, 33), normal(rng, 33)
    results = []
    for name in ("soma_matmul_large", "soma_matmul"):
        added, left = Numbers(sums), DeviceMatrix(x, transposed=True)
        dw = product(name, DeviceMatrix(onto), left, DeviceMatrix(dy), precision, accumulate=True, column_sums=added)
        results.append((dw, added.read()))
    assert asked()["beta"] == 1
    assert relative_error(results[0][0], results[1][0]) <= 2 * chain_tolerance(45, 1)
    assert np.array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pairs", [True, False])
def test_an_epilogue_comes_after_the_product(precision: str, pairs: bool) -> None:
    """Bias, dropout and residual into floats or pairs, and GELU beside."""
    rng = np.random.default_rng(2)
    m, n, k = 19, 37, 50
    a, b, bias, residual = normal(rng, m, k), normal(rng, k, n), normal(rng, n), normal(rng, m, n)
    results = []
    for name in ("soma_matmul_large", "soma_matmul"):
        y, before = empty((m, n), pairs), asked()["products"]
        terms = {"bias": Numbers(bias), "residual": Numbers(residual), "dropout": Dropout(0.3, 7, 2), "gelu": y.out}
        c = product(name, empty((m, n), pairs), DeviceMatrix(a), DeviceMatrix(b), precision, **terms)
        assert asked()["products"] == before + (name == "soma_matmul_large")
        results.append((c, y.read()))
    for got, want in zip(*results, strict=True):
        assert relative_error(got, want) <= 2 * chain_tolerance(k, 1, 1) + pairs * 2.0**-8


def test_a_shape_is_chosen_for_once() -> None:
    rng = np.random.default_rng(3)
    _, _, stored = operands(rng, 6, 10, 14, "nn", False)
    first = product("soma_matmul_large", empty((6, 10)), *stored, "float32")
    choices = asked()["choices"]
    assert np.array_equal(product("soma_matmul_large", empty((6, 10)), *stored, "float32"), first)
    assert asked()["choices"] == choices


def test_what_is_kept_of_shapes_has_a_limit() -> None:
    """Each has a descriptor and three layouts. A prompt of another length is another shape."""
    rng = np.random.default_rng(8)
    held = []
    for m in range(1, 600):
        _, _, stored = operands(rng, m, 1, 1, "nn", False)
        product("soma_matmul_large", empty((m, 1)), *stored, "float32")
        held.append(asked()["held"])
    assert max(held) <= 4 * 512 and min(held[400:]) < held[400]


def test_own_kernels_make_what_it_cannot_and_symmetric_products() -> None:
    rng = np.random.default_rng(4)
    _, _, stored = operands(rng, 11, 13, 17, "nn", False)
    want = product("soma_matmul", empty((11, 13)), *stored, "float32")
    before = asked()["products"]
    fake.soma_fake_fail(b"cublasLtMatmulAlgoGetHeuristic", 15, 0)  # CUBLAS_STATUS_NOT_SUPPORTED
    assert np.array_equal(product("soma_matmul_large", empty((11, 13)), *stored, "float32"), want)
    x = normal(rng, 9, 12)
    gram = product(
        "soma_matmul_large", empty((9, 9)), DeviceMatrix(x), DeviceMatrix(x, transposed=True), "float32", symmetric=True
    )
    assert np.array_equal(gram, gram.T)
    assert asked()["products"] == before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", ["nn", "tt"])
def test_own_kernels_make_the_last_rows_for_which_it_has_no_algorithm(precision: str, layout: str) -> None:
    """Rows wait for their epilogue 128 at a time here."""
    rng = np.random.default_rng(6)
    m, n, k = 128 + 27, 13, 21
    _, _, stored = operands(rng, m, n, k, layout, False)
    bias, before = Numbers(normal(rng, n)), asked()
    fake.soma_fake_fail(b"cublasLtMatmulAlgoGetHeuristic", 15, 1)
    got = product("soma_matmul_large", empty((m, n)), *stored, precision, bias=bias)
    assert [asked()[name] - before[name] for name in ("choices", "products")] == [2, 1]
    want = product("soma_matmul", empty((m, n)), *stored, precision, bias=bias)
    assert relative_error(got, want) <= 2 * chain_tolerance(k, 1)
    assert np.array_equal(got[128:], want[128:])


@pytest.mark.parametrize("function", ["cublasLtMatmul", "cublasLtMatmulDescCreate", "cublasLtMatrixLayoutCreate"])
def test_a_status_is_an_error_that_names_the_function(function: str) -> None:
    rng = np.random.default_rng(5)
    _, _, stored = operands(rng, 4, 4, 100 + len(function), "nn", False)
    fake.soma_fake_fail(function.encode(), 13, 0)
    said = rf"the GPU failed: {function}: CUBLAS_STATUS_EXECUTION_FAILED \(13; SOMA_CUBLAS=none does without"
    with pytest.raises(RuntimeError, match=said):
        product("soma_matmul_large", empty((4, 4)), *stored, "float32")


TRAINS = """
import numpy as np, soma_native as soma
config = soma.ModelConfig(vocab_size=12, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
model, ids = soma.Model(config, seed=1, device="cuda", precision="{}"), np.arange(24).reshape(2, 12) % 12
optimizer = soma.AdamW(model)
for _ in range(2):
    loss = model.loss_and_grad(ids, ids)
    optimizer.step(lr=0.01)
print(loss)
"""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_trains_through_it(precision: str) -> None:
    """With every product of a step: the loss is that of the own kernels, within the order of sums."""
    own, large = (run_script(TRAINS.format(precision), SOMA_CUBLAS_LEAST=least) for least in ("1000000000", "0"))
    assert large.returncode == 0, large.stderr
    assert np.isclose(float(own.stdout), float(large.stdout), rtol=1e-2 if precision == "bfloat16" else 1e-5)


def test_products_are_told() -> None:
    assert system.cuda_products() == "cuBLASLt 13.0.2"


SAYS = "from soma_native import system; print(system.cuda_products())"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SOMA_FAKE_CUBLAS_VERSION": "120804"}, "it is of version 12: 13 is needed"),
        ({"SOMA_CUBLAS": "/nowhere/libcublasLt.so.13"}, "/nowhere/libcublasLt.so.13: cannot open shared object file"),
        ({"SOMA_CUBLAS": os.environ["SOMA_CUDA_LIBRARY"]}, "it lacks cublasLtGetVersion"),
    ],
)
def test_a_library_that_was_named_and_cannot_be_used_is_an_error(environment: dict[str, str], said: str) -> None:
    for script in (SAYS, TRAINS.format("float32")):
        done = run_script(script, **environment)
        assert done.returncode == 1
        assert re.search(rf"cannot be used: SOMA_CUBLAS: \S+ cannot be used: .*{re.escape(said)}", done.stderr)


@pytest.mark.parametrize("least", ["many", "", "-1", "5e3"])
def test_a_size_that_is_no_number_is_an_error(least: str) -> None:
    done = run_script(TRAINS.format("float32"), SOMA_CUBLAS_LEAST=least)
    assert done.returncode == 1
    assert f"SOMA_CUBLAS_LEAST must be an integer of 0 or more, got '{least}'" in done.stderr


def test_own_kernels_do_without_it() -> None:
    none = run_script(SAYS, SOMA_CUBLAS="none")
    assert none.stdout == "own kernels alone: SOMA_CUBLAS is none\n", none.stderr
    missing = {k: v for k, v in os.environ.items() if k != "SOMA_CUBLAS"}
    done = subprocess.run([sys.executable, "-c", SAYS], env=missing, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(("own kernels alone: libcublasLt.so.13 cannot be used: ", "cuBLASLt 13."))
