"""Losses with teachers: against float64 and PyTorch, on every instruction set, with any threads; what is refused."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import bfloat16_tolerance, model_tolerance, relative_error
from helpers.shapes import of_block
from oracles import reference as ref
from soma_native.model.flops import flops_per_token

SHAPE = ref.Config(vocab_size=37, d_model=24, n_layers=2, n_heads=3, d_ff=40, max_seq_len=13)
TEACHERS = [  # of other sizes and blocks
    ref.Config(vocab_size=37, d_model=16, n_layers=1, n_heads=2, d_ff=20, max_seq_len=17, block="gpt2"),
    ref.Config(vocab_size=37, d_model=8, n_layers=2, n_heads=1, d_ff=30, max_seq_len=13, block="soma"),
]


def build(config: ref.Config, seed: int, precision: str = "float32") -> tuple[soma.Model, ref.Params]:
    params = ref.random_parameters(config, seed=seed)
    model = soma.Model(soma.ModelConfig(**config.to_dict()), precision=precision)
    for name in model.parameters():
        model.write(name, params[name])
    return model, params


def batch(rows: int = 4, length: int = 13, seed: int = 3) -> tuple[ref.Array, ref.Array]:
    ids = np.random.default_rng(seed).integers(0, 37, (rows, length + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    targets[0, ::3] = targets[1] = ref.IGNORE
    return ids[:, :-1].copy(), targets


def probabilities(teachers: list[ref.Params], ids: ref.Array) -> ref.Array:
    softmaxes = [ref.softmax(ref.forward(p, c, ids)) for p, c in zip(teachers, TEACHERS, strict=False)]
    return np.mean(softmaxes, axis=0)


def bits(model: soma.Model) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in model.gradients().items()}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2])
def test_loss_and_every_gradient(block: str, share: float, count: int) -> None:
    config = of_block(SHAPE, block, False)
    student, params = build(config, seed=1)
    made = [build(c, seed=7 + i) for i, c in enumerate(TEACHERS[:count])]
    ids, targets = batch()
    q = probabilities([p for _, p in made], ids)
    loss, grads = ref.loss_and_grad(params, config, ids, targets, taught=(q, share))
    before = {name: value.copy() for name, value in made[0][0].parameters().items()}
    assert student.loss_and_grad(ids, targets, teachers=[m for m, _ in made], distill=share) == pytest.approx(
        loss, rel=1e-5
    )
    tolerance = 4 * model_tolerance(config, ids.size)  # student, teacher, and their difference
    for name, value in student.gradients().items():
        assert relative_error(value, grads[name]) < tolerance, name
    assert all(np.array_equal(before[name], value) for name, value in made[0][0].parameters().items())


@pytest.mark.usefixtures("isa")
def test_bfloat16(block: str) -> None:
    config = of_block(SHAPE, block, False)
    student, params = build(config, 1, "bfloat16")
    teacher, of_teacher = build(TEACHERS[0], 7)  # computes in the student's precision
    ids, targets = batch()
    with ref.bfloat16_products():
        q = probabilities([of_teacher], ids)
        loss, grads = ref.loss_and_grad(params, config, ids, targets, taught=(q, 0.5))
    tolerance = bfloat16_tolerance(2 * (6 * config.n_layers + 1) + 6 * TEACHERS[0].n_layers + 1)
    assert student.loss_and_grad(ids, targets, teachers=teacher, distill=0.5) == pytest.approx(loss, rel=tolerance)
    largest = max(float(np.linalg.norm(want)) / np.sqrt(want.size) for want in grads.values())
    for name, value in student.gradients().items():
        size = max(float(np.linalg.norm(grads[name])), 0.25 * largest * float(np.sqrt(value.size)))
        assert np.linalg.norm(value - grads[name]) < tolerance * size, name


def test_torch_has_the_same_loss_and_gradient_of_the_head() -> None:
    torch = pytest.importorskip("torch")
    (student, params), (teacher, of_teacher) = build(of_block(SHAPE, "gpt2", False), 1), build(TEACHERS[0], 7)
    config = of_block(SHAPE, "gpt2", False)
    ids, targets = batch()
    logits = torch.tensor(ref.forward(params, config, ids), requires_grad=True)
    kept = torch.from_numpy(targets != ref.IGNORE)
    taught = torch.tensor(ref.forward(of_teacher, TEACHERS[0], ids)).softmax(-1)
    functional = torch.nn.functional
    wanted = functional.cross_entropy(logits[kept], torch.from_numpy(targets).long()[kept])
    divergence = functional.kl_div(logits[kept].log_softmax(-1), taught[kept], reduction="batchmean")
    loss = 0.7 * wanted + 0.3 * divergence
    loss.backward()
    assert student.loss_and_grad(ids, targets, teachers=teacher, distill=0.3) == pytest.approx(loss.item(), rel=1e-5)
    q = ref.softmax(ref.forward(of_teacher, TEACHERS[0], ids))
    assert relative_error(
        ref.distillation_backward(logits.detach().numpy(), q, targets, 0.3), logits.grad.numpy()
    ) < 1e-12  # fmt: skip


@pytest.mark.usefixtures("settings_restored")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [12, 5])  # twelve sequences are split among threads, and more than the head's rows
def test_the_same_bits_with_any_threads(block: str, precision: str, rows: int) -> None:
    ids, targets = batch(rows, 61)
    longer = {"max_seq_len": 64}
    seen: list[Any] = []
    for threads in (1, 2, 3, 4):
        soma.set_num_threads(threads)
        config = of_block(SHAPE, block, False).to_dict()
        student = soma.Model(soma.ModelConfig(**{**config, **longer}), seed=1, precision=precision)
        teachers = [soma.Model(soma.ModelConfig(**{**c.to_dict(), **longer}), seed=2) for c in TEACHERS]
        seen.append((student.loss_and_grad(ids, targets, teachers=teachers, distill=0.4), bits(student)))
        student._core.profile(True)
        student.loss_and_grad(ids, targets, teachers=teachers)
        names = {r.op for r in student._core.take_profile()}
        assert {"soft_cross_entropy", "add_softmax"} <= names and "cross_entropy" not in names
    assert all(made == seen[0] for made in seen)


def test_a_share_of_0_has_the_bits_of_no_teacher(tiny_model: soma.Model, make_tiny_model: Any) -> None:
    ids = np.arange(12).reshape(2, 6)
    loss, gradients = tiny_model.loss_and_grad(ids, ids), bits(tiny_model)
    tiny_model.zero_grad()
    assert tiny_model.loss_and_grad(ids, ids, teachers=make_tiny_model(seed=5), distill=0) == loss
    assert bits(tiny_model) == gradients


def test_losses_of_parts_add_up(tiny_model: soma.Model, make_tiny_model: Any) -> None:
    ids, teacher = np.arange(24).reshape(4, 6), make_tiny_model(seed=5)
    whole = tiny_model.loss_and_grad(ids, ids, teachers=teacher)
    parts = [tiny_model.loss_and_grad(i, i, 24, teachers=teacher) for i in (ids[:1], ids[1:])]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
    assert tiny_model.loss_and_grad(ids, np.full_like(ids, ref.IGNORE), 5, teachers=teacher) == 0


def test_two_models_that_teach_each_other_at_one_time(make_tiny_model: Any) -> None:
    """Each call holds both; it ends, and gives what it gives alone."""
    a, b = make_tiny_model(seed=1), make_tiny_model("gpt2", seed=2)
    ids = np.arange(12).reshape(2, 6)
    alone = {id(s): s.loss_and_grad(ids, ids, teachers=t) for s, t in ((a, b), (b, a))}
    found: list[tuple[int, float]] = []

    def teach(student: soma.Model, teacher: soma.Model) -> None:
        for _ in range(50):
            found.append((id(student), student.loss_and_grad(ids, ids, teachers=teacher)))

    threads = [threading.Thread(target=teach, args=pair, daemon=True) for pair in ((a, b), (b, a))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 100 and all(loss == alone[student] for student, loss in found)


def test_what_is_refused(make_tiny_model: Any) -> None:
    student, other = make_tiny_model(seed=1), make_tiny_model(seed=2)
    ids = np.arange(10).reshape(1, 10)
    for teachers, said in (
        (make_tiny_model(vocab_size=30), "teachers has a vocabulary of 30, the model of 29: give a teacher that has"),
        (make_tiny_model(max_seq_len=9), "teachers reads 9 tokens at most, and sequences have 10: give seq_len=9 or"),
        ([other, student], r"teachers\[1\] is the model that is trained: give a copy of it"),
        ([other, other], r"teachers\[1\] was given before: give each teacher once"),
        ([other, "gpt2"], r"teachers\[1\] must be a soma_native.Model, got str"),
        (3, "teachers must be a soma_native.Model or several, got int"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            student.loss_and_grad(ids, ids, teachers=teachers)
    for distill in (-0.1, 1.5, float("nan"), "half"):
        with pytest.raises((ValueError, TypeError), match="distill"):
            student.loss_and_grad(ids, ids, teachers=other, distill=distill)
    assert not any(value.any() for value in student.gradients().values())
    assert student.loss_and_grad(ids, ids, teachers=copy.deepcopy(student), distill=1) == pytest.approx(0, abs=1e-5)


def test_a_teacher_costs_a_third_of_its_own_training(make_tiny_model: Any) -> None:
    """The profiler counts the products of the teacher's forward pass, and nothing else beside the student's step."""
    student, teacher = make_tiny_model(seed=1, precision="float32"), make_tiny_model("llama", seed=2)
    ids, counted = np.arange(24).reshape(2, 12), []
    for options in ({}, {"teachers": teacher}):
        student._core.profile(True)
        student.loss_and_grad(ids, ids, **options)
        counted.append(sum(r.products for r in student._core.take_profile() if "attention" not in r.op))
    products = counted[1] - counted[0]
    c = teacher.config
    attention = 2.0 * c.n_layers * 12 * c.d_model
    assert flops_per_token(c, 12, training=False) * ids.size == products + attention * ids.size
    assert flops_per_token(c, 12) == 3 * flops_per_token(c, 12, training=False)
