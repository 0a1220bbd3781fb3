"""Batch splits of small models, where each thread computes whole sequences: always the bits of one thread."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.shapes import options_of
from oracles.reference import IGNORE, Array

# The number of splits by (sequences, threads); one for all other pairs. A split may be an eighth longer than the mean,
# so five sequences are not split, and three only on three threads. Eight sequences on nine threads have an empty split.
TAKEN = {(12, 2): 2, (12, 3): 3, (12, 4): 4, (3, 3): 3, (8, 9): 9}
CASES = [(rows, threads) for rows in (12, 5, 3) for threads in (2, 3, 4)] + [(8, 9)]
LENGTH = 61  # twelve sequences are more rows than the head computes at once

pytestmark = [pytest.mark.usefixtures("settings_restored"), pytest.mark.processor]


def shape(block: str, tied: bool = False, **overrides: int) -> soma.ModelConfig:
    """A config with heads of 8 channels, so that queries, keys and values can be stored as bf16 pairs."""
    sizes = {"vocab_size": 53, "d_model": 24, "n_layers": 2, "n_heads": 3, "d_ff": 50, "max_seq_len": 64, **overrides}
    options = options_of(block, sizes["n_heads"], sizes["d_model"] // sizes["n_heads"], qk_norm=tied)
    return soma.ModelConfig(**sizes, **options, block=block, tied_head=tied)


def batch(config: soma.ModelConfig, rows: int, length: int = LENGTH, seed: int = 0) -> tuple[Array, Array]:
    """(ids, targets). All targets of the first sequence and some of the second are ignored."""
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1))
    targets = ids[:, 1:].copy()
    targets[0] = targets[1, ::3] = IGNORE
    return ids[:, :-1], targets


def splits(model: soma.Model) -> int:
    """Number of splits since the last call: each split calls `embed` once."""
    return sum(r.calls for r in model._core.take_profile() if r.op == "embed")


def bits(tensors: dict[str, Array]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in tensors.items()}


def trained(config: soma.ModelConfig, precision: str, rows: int, threads: int, length: int = LENGTH) -> Any:
    """All results of two training steps of two batches each, with evaluations in single precision between them."""
    soma.set_num_threads(threads)
    model = soma.Model(config, seed=1, precision=precision)
    model._evaluate_in("float32")
    model._core.profile(True)
    optimizer = soma.AdamW(model, lr=1e-2)
    expected = TAKEN.get((rows, threads), 1)
    made: list[Any] = []
    for step in range(2):
        for part in range(2):
            ids, targets = batch(config, rows, length, seed=10 * step + part)
            made.append(model.loss(ids, targets))
            made.append(model.forward(ids).tobytes())
            assert splits(model) == 2 * expected
            made.append(model.loss_and_grad(ids, targets))
            ops = model._core.take_profile()
            assert sum(r.calls for r in ops if r.op == "embed") == expected, (rows, threads)
            assert any(r.op == "weight gradients" for r in ops) == (expected > 1), (rows, threads)
        made.append(bits(model.gradients()))
        made.append(optimizer.step())
    return [*made, bits(model.parameters())]


# bits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_bits_of_one_thread(block: str, tied: bool, precision: str) -> None:
    config = shape(block, tied)
    alone = {rows: trained(config, precision, rows, threads=1) for rows, _ in CASES}
    for rows, threads in CASES:
        assert trained(config, precision, rows, threads) == alone[rows], (rows, threads)


@pytest.mark.usefixtures("isa")
def test_the_bits_of_one_thread_where_heads_are_odd(block: str) -> None:
    """Queries, keys and values are then floats, while other operands are bf16 pairs."""
    config = shape(block, d_model=33, d_ff=31)
    alone = trained(config, "bfloat16", 12, threads=1)
    for threads in (2, 3, 4):
        assert trained(config, "bfloat16", 12, threads) == alone, threads


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bits_of_one_thread_in_a_larger_model(block: str, precision: str) -> None:
    config = shape(block, vocab_size=301, d_model=64, n_heads=4, d_ff=256)
    alone = trained(config, precision, 12, threads=1, length=64)
    for threads in (2, 3, 4):
        assert trained(config, precision, 12, threads, length=64) == alone, threads


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_too_little_work_is_not_cut(block: str, precision: str) -> None:
    config = shape(block)
    model = soma.Model(config, precision=precision)
    model._core.profile(True)
    soma.set_num_threads(2)
    for length, expected in [(1, 1), (LENGTH, 2)]:
        model.loss_and_grad(*batch(config, 12, length))
        assert splits(model) == expected


# weights packed beforehand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_parameter_that_changes_between_two_calls_is_seen(block: str, tied: bool, precision: str) -> None:
    """Writes to every parameter through its view: packed weights are never older than the weights."""
    config = shape(block, tied)
    model = soma.Model(config, seed=2, precision=precision)
    model._core.profile(True)
    ids, targets = batch(config, 12)
    rng = np.random.default_rng(3)

    def results(threads: int) -> list[Any]:
        soma.set_num_threads(threads)
        model.zero_grad()
        made = [model.forward(ids).tobytes(), model.loss(ids, targets)]
        made += [model.loss_and_grad(ids, targets), bits(model.gradients())]
        assert splits(model) == 3 * threads
        return made

    before = results(2)
    for name, view in model.parameters().items():
        view += rng.normal(0, 0.1, view.shape).astype(np.float32)
        after = results(2)
        assert all(new != old for new, old in zip(after, before, strict=True)), name
        assert after == results(1), name
        before = after


# two at once ---------------------------------------------------------------------------------------------------------


def test_two_models_in_two_threads_give_the_bits_that_each_gives_alone(block: str) -> None:
    """With four threads, each of the two calls has two or four, so that every step is split."""
    configs = {"float32": shape(block), "bfloat16": shape(block, tied=True, d_model=48)}
    steps, rows = 6, 12
    start = threading.Barrier(2, timeout=60)

    def train(precision: str, together: bool) -> list[Any]:
        config = configs[precision]
        model = soma.Model(config, seed=4, precision=precision)
        model._core.profile(True)
        optimizer = soma.AdamW(model, lr=1e-2)
        made: list[Any] = []
        if together:
            start.wait()
        for step in range(steps):
            ids, targets = batch(config, rows, seed=step)
            made += [model.loss_and_grad(ids, targets), optimizer.step()]
            assert splits(model) in ((2, 4) if together else (1,))
            made.append(model.forward(ids).tobytes())
            model._core.take_profile()
        return [*made, bits(model.parameters())]

    soma.set_num_threads(1)
    alone = {precision: train(precision, together=False) for precision in configs}
    soma.set_num_threads(4)
    found: dict[str, Any] = {}
    workers = [
        threading.Thread(target=lambda p: found.__setitem__(p, train(p, together=True)), args=[precision])
        for precision in configs
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == alone


# profile -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_profile_of_splits_adds_up_to_the_work_of_one_thread(block: str, precision: str) -> None:
    """Compares floating-point operations, of products and of all else. Packing has none."""
    config = shape(block)
    sums: dict[int, Any] = {}
    for threads in (1, 2, 3, 4):
        soma.set_num_threads(threads)
        model = soma.Model(config, seed=5, precision=precision)
        optimizer = soma.AdamW(model)
        model._core.profile(True)
        model.loss_and_grad(*batch(config, 12))
        optimizer.step()
        products, others, calls = Counter[str](), Counter[str](), Counter[str]()
        for record in model._core.take_profile():
            calls[record.op] += record.calls
            products[record.group] += int(record.products)
            others[record.group] += int(record.flops)
        assert calls["embed"] == threads
        assert calls["pack weights"] == (threads > 1)
        assert calls["attention"] == threads * config.n_layers
        assert calls["weight gradients"] == (config.n_layers + 2 if threads > 1 else 0)  # 732 rows: two of the head
        assert products.pop("layout", 0) == others.pop("layout", 0) == 0
        sums[threads] = products, others
        assert sums[threads] == sums[1], threads
