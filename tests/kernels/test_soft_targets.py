"""The ops of distillation against float64: gradient and loss of soft targets, the mean of several softmaxes."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.numerics import chain_tolerance, normal
from helpers.threads import assert_same_bits
from oracles import reference as ref
from soma_native._core import _ops as ops

WIDTHS = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 65, 257, 4099]


def problem(rows: int, vocabulary: int, spread: float, seed: int = 0) -> tuple[ref.Array, ref.Array, ref.Array]:
    """(logits, q, targets); the fourth target is ignored, the first row of q is certain."""
    rng = np.random.default_rng(seed)
    logits = spread * normal(rng, rows, vocabulary)
    q = ref.softmax(spread * rng.standard_normal((rows, vocabulary))).astype(np.float32)
    q[0] = np.eye(vocabulary)[-1]
    targets = rng.integers(0, vocabulary, rows).astype(np.int32)
    if rows > 3:
        targets[3] = ref.IGNORE
    return logits, q, targets


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_soft_targets(spread: float, share: float) -> None:
    for vocabulary in WIDTHS:
        logits, q, targets = problem(7, vocabulary, spread)
        losses, gradient = ops.soft_cross_entropy(logits, q, targets, share, 0.125)
        wide, soft = logits.astype(np.float64), q.astype(np.float64)
        kept = targets != ref.IGNORE
        want = np.array(
            [
                ref.distillation(wide[r : r + 1], soft[r : r + 1], targets[r : r + 1], share, 1) if kept[r] else 0
                for r in range(len(targets))
            ]
        )
        tolerance = chain_tolerance(vocabulary, 1, 1) * (1 + spread)
        assert np.abs(losses - want).max() <= tolerance * (np.abs(want).max() + np.log(vocabulary) + 1)
        exact = ref.distillation_backward(wide, soft, targets, share, 8)
        assert np.abs(gradient - exact).max() <= tolerance * 0.125
        assert losses[3] == 0 and not gradient[3].any()


@pytest.mark.usefixtures("isa")
def test_the_student_that_knows_all_has_no_loss_and_no_gradient() -> None:
    logits, _, targets = problem(5, 1000, 3.0)
    losses, gradient = ops.soft_cross_entropy(logits, ops.add_softmax(logits, 1.0), targets, 1.0, 1.0)
    assert np.abs(losses).max() <= chain_tolerance(1000, 1, 1) * 20
    assert np.abs(gradient).max() <= chain_tolerance(1000, 1)


@pytest.mark.usefixtures("isa")
def test_soft_targets_agree_with_hard_ones_where_the_share_is_0() -> None:
    for vocabulary in WIDTHS:
        logits, q, targets = problem(5, vocabulary, 2.0)
        hard, soft = ops.cross_entropy(logits, targets, 0.37), ops.soft_cross_entropy(logits, q, targets, 0.0, 0.37)
        assert hard[0].tobytes() == soft[0].tobytes()
        assert np.array_equal(hard[1], soft[1])


@pytest.mark.usefixtures("isa")
def test_the_mean_of_softmaxes() -> None:
    rng = np.random.default_rng(1)
    for vocabulary in WIDTHS:
        first, second = (4 * normal(rng, 5, vocabulary) for _ in range(2))
        got = ops.add_softmax(second, 0.5, ops.add_softmax(first, 0.5))
        want = (ref.softmax(first.astype(np.float64)) + ref.softmax(second.astype(np.float64))) / 2
        assert np.abs(got - want).max() <= chain_tolerance(vocabulary, 1, 1)


@pytest.mark.usefixtures("isa")
def test_gradients_of_soft_targets_into_pairs() -> None:
    for vocabulary in (1, 2, 29, 33, 64, 301):
        logits, q, targets = problem(13, vocabulary, 3.0)
        losses, gradient = ops.soft_cross_entropy(logits, q, targets, 0.4, 0.37)
        got_losses, got = ops.soft_cross_entropy(logits, q, targets, 0.4, 0.37, pairs=True)
        assert got_losses.tobytes() == losses.tobytes()
        assert np.array_equal(got, ref.round_bfloat16(gradient))


@pytest.mark.usefixtures("isa")
def test_the_same_bits_with_any_threads() -> None:
    logits, q, targets = problem(512, 512, 3.0)
    assert_same_bits(
        {
            "soft_cross_entropy": lambda: ops.soft_cross_entropy(logits, q, targets, 0.5, 0.5),
            "add_softmax": lambda: ops.add_softmax(logits, 0.5, q),
        }
    )


def test_what_bindings_refuse() -> None:
    logits, q, targets = problem(3, 4, 1.0)
    with pytest.raises(ValueError, match="q"):
        ops.soft_cross_entropy(logits, q[:2], targets, 0.5, 1.0)
    with pytest.raises(ValueError, match="targets"):
        ops.soft_cross_entropy(logits, q, targets + 4, 0.5, 1.0)
    with pytest.raises(ValueError, match="onto"):
        ops.add_softmax(logits, 0.5, q[:2])
