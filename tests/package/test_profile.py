"""The profiler: counts and amounts against the equations, unchanged results, and the arithmetic of the ceilings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import soma_native
from soma_native import _core
from soma_native.model.presets import PRESETS
from soma_native.profiling.profile import Bandwidth, Ceilings, Op, Profile, Stepper, mean_ops, profile_steps, verdict
from soma_native.profiling.workloads import WORKLOADS, Workload

BATCH, LENGTH = 3, 7
MakeModel = Callable[..., soma_native.Model]


def batch(model: soma_native.Model) -> tuple[Any, Any]:
    text = np.random.default_rng(3).integers(0, model.config.vocab_size, (BATCH, LENGTH + 1))
    return text[:, :-1], text[:, 1:]


def profiled_step(model: soma_native.Model) -> list[_core.OpRecord]:
    optimizer = soma_native.AdamW(model)
    model._core.profile(True)
    model.loss_and_grad(*batch(model))
    optimizer.step()
    return model._core.take_profile()


# amounts -------------------------------------------------------------------------------------------------------------


def test_a_step_has_the_products_that_the_equations_say(make_tiny_model: MakeModel, block: str) -> None:
    model = make_tiny_model(block=block)
    c = model.config
    records = profiled_step(model)
    tokens, pairs = BATCH * LENGTH, BATCH * c.n_heads * LENGTH * (LENGTH + 1) // 2
    matrices = sum(p.size for name, p in model.parameters().items() if p.ndim == 2 and re.search(r"\.\d+\.", name))
    weights = matrices + c.vocab_size * c.d_model
    head_size = c.d_model // c.n_heads
    sums = Counter[str]()
    for record in records:
        sums[record.group] += int(record.products)
    # A multiply-add is 2. Each product is done forward, and backward for its operand and its weight. Attention has two
    # products forward and five backward.
    assert sums.pop("products") == 3 * 2 * weights * tokens
    assert sums.pop("attention") == c.n_layers * (2 + 5) * 2 * pairs * head_size
    assert not any(sums.values())


def test_every_op_is_called_as_often_as_the_model_calls_it(make_tiny_model: MakeModel, block: str) -> None:
    model = make_tiny_model(block=block)
    layers = model.config.n_layers
    calls = Counter[str]()
    for record in profiled_step(model):
        calls[" ".join(record.op.split()[:2]) if record.group == "products" else record.op] += record.calls
    products = 4 * layers
    # The head is (V, d_model): forward reads its transpose, the gradient of its input does not.
    assert calls["matmul nn"] == calls["matmul nt"] == products + 1
    assert calls["matmul tn"] == products + 1
    assert calls["attention"] == calls["attention_backward"] == layers
    final_norm = any(re.search(r"(ln_f|model\.norm)\.weight", name) for name in model.parameters())
    assert calls["norm_backward"] == 2 * layers + final_norm
    assert calls["embed"] == calls["embed_backward"] == calls["cross_entropy"] == calls["sum_squares"] == 1


def test_the_optimizer_is_counted_by_its_bytes(make_tiny_model: MakeModel) -> None:
    model = make_tiny_model()
    records = {record.op: record for record in profiled_step(model)}
    arena = sum(-(-p.size // 16) * 16 for p in model.parameters().values())  # each padded to a cache line
    assert records["sum_squares"].read == 4 * arena
    assert records["adamw"].read == records["adamw"].written == 4 * 4 * arena  # value, gradient and both moments


def test_products_say_layout_shape_and_what_is_done_to_them(make_tiny_model: MakeModel) -> None:
    model = make_tiny_model(block="soma")
    c = model.config
    found = {(r.op, tuple(r.shape[:3])) for r in profiled_step(model) if r.group == "products"}
    tokens = BATCH * LENGTH
    assert ("matmul nn +bias relu", (tokens, c.d_ff, c.d_model)) in found
    assert ("matmul nt relu'", (tokens, c.d_ff, c.d_model)) in found
    assert ("matmul tn += +sums", (c.d_model, c.d_ff, tokens)) in found  # with the column sums for the bias


@pytest.mark.parametrize(
    ("activation", "ends"),
    [("gelu_tanh", (" gelu", " gelu'")), ("gelu", (" gelu_erf", " gelu_erf'")), ("relu", (" relu", " relu'"))],
)
def test_products_say_and_count_their_activation(
    make_tiny_model: MakeModel, activation: str, ends: tuple[str, str]
) -> None:
    model = make_tiny_model(block="gpt2", activation=activation)
    elements = BATCH * LENGTH * model.config.d_ff * model.config.n_layers
    found = {end: r for r in profiled_step(model) for end in ends if r.op.endswith(end)}
    assert found.keys() == set(ends)
    costs = [found[end].flops / elements for end in ends]  # of an element, beside the bias
    least, most = {"relu": (1, 2), "gelu_tanh": (20, 50), "gelu": (51, 90)}[activation]
    assert all(least <= cost <= most for cost in costs)


def test_workloads_count_the_operations_that_a_step_has(make_tiny_model: MakeModel, block: str) -> None:
    model = make_tiny_model(block=block)
    records = profiled_step(model)
    w = Workload("tiny", model.config, LENGTH, BATCH)
    products = sum(r.products for r in records if r.group == "products")
    assert 6 * _core.multiplied_parameters(model.config.core) * w.tokens == products
    c = model.config  # attention is causal, forward and backward, nothing computed twice
    attention = 6 * c.n_layers * LENGTH * c.d_model
    assert w.flops_per_token * w.tokens == products + attention * w.tokens


def test_a_llama_block_is_counted_with_shared_and_wide_heads() -> None:
    config = soma_native.ModelConfig(
        29, 24, 2, 4, 40, 13, block="llama", n_kv_heads=2, head_dim=10, qk_norm=True, tied_head=True
    )
    records = profiled_step(soma_native.Model(config))
    tokens, pairs = BATCH * LENGTH, BATCH * 4 * LENGTH * (LENGTH + 1) // 2
    weights = 2 * (24 * 80 + 40 * 24 + 3 * 24 * 40) + 29 * 24
    assert sum(r.products for r in records if r.group == "products") == 6 * weights * tokens
    assert sum(r.products for r in records if r.group == "attention") == 2 * (2 + 5) * 2 * pairs * 10
    found = {(r.op, tuple(r.shape[:3])): r.calls for r in records if r.group == "products"}
    assert found["matmul nn norm rotate", (tokens, 80, 24)] == found["matmul nn swiglu", (tokens, 80, 24)] == 2
    assert found["matmul nt swiglu'", (tokens, 40, 24)] == 2
    assert sum(r.calls for r in records if r.op == "sum_rows") == 4


# what profiling must not change --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_profiling_changes_no_bit(make_tiny_model: MakeModel, block: str, threads: int, precision: str) -> None:
    results = []
    for profiled in (False, True):
        model = make_tiny_model(block=block, precision=precision)
        optimizer = soma_native.AdamW(model)
        model._core.profile(profiled)
        losses = [(model.loss_and_grad(*batch(model)), optimizer.step()) for _ in range(3)]
        decoded = model.forward(batch(model)[0])
        results.append((losses, decoded.tobytes(), [p.tobytes() for p in model.parameters().values()]))
    assert results[0] == results[1]


def test_a_profile_is_taken_once_and_only_while_on(make_tiny_model: MakeModel) -> None:
    model = make_tiny_model()
    ids, targets = batch(model)
    model.loss_and_grad(ids, targets)
    assert model._core.take_profile() == []
    model._core.profile(True)
    model._core.profile(True)
    model.loss_and_grad(ids, targets)
    assert model._core.take_profile()
    assert model._core.take_profile() == []
    model.loss_and_grad(ids, targets)
    model._core.profile(False)
    model._core.profile(False)
    assert model._core.take_profile() == []
    assert np.isfinite(model.loss_and_grad(ids, targets))


# ceilings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "operations"), [("float32", 2), ("bfloat16", 4)])
def test_the_arithmetic_that_is_timed_is_the_arithmetic_that_is_counted(
    isa: str, precision: str, operations: int
) -> None:
    """A multiply-add of ones adds one. In bfloat16 a pair has two multiply-adds, but its lower half is zero."""
    few, many = (_core._ops.multiply_add_registers(precision, rounds) for rounds in (8, 24))
    assert many[0] == 3 * few[0] > 0
    assert many[1] - few[1] == (many[0] - few[0]) / operations


def test_ceilings_are_measured(threads: int) -> None:
    ceilings = Ceilings.measure()
    assert ceilings.fma > 0 and ceilings.bf16 > 0
    sizes = [b.bytes for b in ceilings.bandwidths]
    assert sizes == sorted(set(sizes)) and sizes[-1] >= 1 << 28
    assert all(b.read > 0 and b.update > 0 for b in ceilings.bandwidths)


CEILINGS = Ceilings(100.0, 200.0, (Bandwidth(1 << 10, 64.0, 32.0), Bandwidth(1 << 20, 8.0, 4.0)))


@pytest.mark.parametrize(
    ("amounts", "precision", "least", "bound"),
    [
        ({"products": 1000.0, "read": 8.0}, "float32", 10.0, "FMA"),
        ({"products": 1000.0, "read": 8.0}, "bfloat16", 5.0, "bf16"),
        ({"products": 1000.0, "flops": 100.0, "read": 8.0}, "bfloat16", 6.0, "bf16"),
        ({"flops": 1000.0, "read": 8.0}, "bfloat16", 10.0, "FMA"),
        ({"flops": 1.0, "read": 640.0}, "float32", 10.0, "cache"),
        ({"flops": 1.0, "read": 320.0, "written": 320.0}, "float32", 20.0, "cache"),
        ({"flops": 1.0, "read": 8.0 * (1 << 20)}, "float32", float(1 << 20), "memory"),
    ],
)
def test_the_least_time_of_an_op(amounts: dict[str, float], precision: str, least: float, bound: str) -> None:
    op = Op("op", "group", (1,), calls=1, seconds=100.0, **amounts)
    op.hold_against(CEILINGS, precision)
    assert (op.least_seconds, op.bound) == (least, bound)


def test_ceilings_take_the_better_of_two_measurements() -> None:
    other = Ceilings(90.0, 300.0, (Bandwidth(1 << 10, 60.0, 40.0), Bandwidth(1 << 20, 9.0, 3.0)))
    best = Ceilings(100.0, 300.0, (Bandwidth(1 << 10, 64.0, 40.0), Bandwidth(1 << 20, 9.0, 4.0)))
    assert CEILINGS.best(other) == other.best(CEILINGS) == best


def test_the_verdict_names_the_bound_of_each_group() -> None:
    ops = [
        Op("matmul", "products", (1,), seconds=6.0, least_seconds=3.0, bound="bf16"),
        Op("matmul", "products", (2,), seconds=2.0, least_seconds=1.0, bound="memory"),
        Op("adamw", "optimizer", (), seconds=1.0, least_seconds=0.9, bound="memory"),
        Op("embed", "embedding", (1,), seconds=0.1, least_seconds=0.1, bound="cache"),
    ]
    profile = Profile(WORKLOADS["baby"], "bfloat16", "x", 1, 1, 10.0, CEILINGS, ops)
    assert verdict(profile) == (
        "80% in products at 50% of bf16; 10% in optimizer at 90% of memory bandwidth; 9% outside ops"
    )


def test_a_profiled_step_adds_up(make_tiny_model: MakeModel) -> None:
    config = soma_native.ModelConfig(29, d_model=24, n_layers=2, n_heads=3, d_ff=40, max_seq_len=13, block="gpt2")
    tiny = Workload("tiny", config, seq_len=7, batch=3)
    stepper = Stepper(tiny, "float32")
    profile = profile_steps(stepper, steps=4)
    assert profile.steps == 2
    assert sum(op.seconds for op in profile.ops) + profile.outside == pytest.approx(profile.seconds)
    assert profile.outside >= 0 and all(op.seconds > 0 for op in profile.ops)
    assert sum(group.seconds for group in profile.groups()) == pytest.approx(profile.seconds - profile.outside)
    records = profiled_step(make_tiny_model(block="gpt2"))
    assert {op.op: op.calls for op in mean_ops([records, records], CEILINGS, "float32")} == {
        op.op: op.calls for op in mean_ops([records], CEILINGS, "float32")
    }
    assert stepper.model._core.take_profile() == []


# workloads and the command -------------------------------------------------------------------------------------------


def test_workloads_are_presets() -> None:
    assert set(WORKLOADS) <= set(PRESETS)
    for name, workload in WORKLOADS.items():
        preset = soma_native.ModelConfig.preset(name)
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
        assert [getattr(workload.config, s) for s in sizes] == [getattr(preset, s) for s in sizes]
        assert workload.seq_len <= preset.max_seq_len


@pytest.fixture
def threads_are_restored() -> Iterator[None]:
    before = soma_native.get_num_threads()
    yield
    assert soma_native.get_num_threads() == before


def test_bench_times_steps(run: Any, threads_are_restored: None) -> None:
    result = run("bench", "showcase", "--steps", 2, "--threads", 1, "--precision", "bfloat16", "--json").json
    assert (result["steps"], result["threads"], result["precision"]) == (2, 1, "bfloat16")
    ms = result["ms_per_step"]
    assert 0 < ms["min"] <= ms["median"] <= ms["max"]
    assert result["tokens_per_second"] == pytest.approx(512 / (ms["median"] / 1e3))
    text = run("bench", "showcase", "--steps", 1).out
    assert text.startswith("showcase, soma block, batch 8 x 64, ") and "tokens/s" in text


def test_bench_profiles(run: Any, threads_are_restored: None) -> None:
    result = run("bench", "--profile", "showcase", "--steps", 2, "--threads", 2, "--json").json
    assert sum(op["seconds"] for op in result["ops"]) < result["seconds"]
    assert result["ceilings"]["fma"] > 0 and result["verdict"].endswith("outside ops")
    done = run("bench", "--profile", "showcase", "--steps", 1)
    lines = done.out.splitlines()
    assert done.status == 0 and lines[-1].endswith(" outside ops.") and "tokens/s" in lines[-1]
    assert {"attention_backward", "adamw", "outside ops"} <= {line.split("  ")[0] for line in lines}


def test_bench_names_what_it_knows(run: Any) -> None:
    for arguments, problem in (
        (("bench", "nano"), "gpt2-124m"),
        (("bench",), "WORKLOAD"),
        (("bench", "nano-cpu", "--steps", 0), "--steps"),
        (("bench", "nano-cpu", "--threads", 2000), "from 1 to 1024"),
        (("bench", "nano-cpu", "--precision", "float16"), "--precision"),
    ):
        result = run(*arguments)
        assert result.status == 2 and problem in result.err, result.err
