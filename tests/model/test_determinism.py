"""The same seed gives the same bits, twice and on any number of threads. Also initialisation, decoding and learning."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import model_tolerance, relative_error
from helpers.shapes import options_of
from oracles import reference as ref
from soma_native import _core
from soma_native.model.config import BLOCKS

pytestmark = pytest.mark.usefixtures("settings_restored")


def shape(block: str, **overrides: int) -> soma.ModelConfig:
    sizes = {"vocab_size": 301, "d_model": 48, "n_layers": 2, "n_heads": 3, "d_ff": 100, "max_seq_len": 70}
    sizes |= overrides
    options = options_of(block, sizes["n_heads"], sizes["d_model"] // sizes["n_heads"], qk_norm=True)
    return soma.ModelConfig(**sizes, **options, block=block)


def trained_bits(block: str, rows: int = 5, length: int = 61, seed: int = 3, **overrides: int) -> str:
    """Digest of losses, gradients, moments, parameters and logits of three training steps."""
    model = soma.Model(shape(block, **overrides), seed=seed, precision="float32")
    optimizer = soma.AdamW(model, lr=1e-2)
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for _ in range(3):
        ids = rng.integers(0, 301, (rows, length + 1)).astype(np.int32)
        ids, targets = np.ascontiguousarray(ids[:, :-1]), ids[:, 1:].copy()
        targets[0, ::3] = ref.IGNORE
        digest.update(np.float64(model.loss_and_grad(ids, targets)).tobytes())
        for tensors in (model.gradients(), optimizer.first_moments(), optimizer.second_moments()):
            for name in sorted(tensors):
                digest.update(tensors[name].tobytes())
        digest.update(np.float64(optimizer.step()).tobytes())
    for name in sorted(model.parameters()):
        digest.update(model.parameters()[name].tobytes())
    digest.update(model.forward(ids).tobytes())
    digest.update(np.float64(model.loss(ids, targets)).tobytes())
    return digest.hexdigest()


@pytest.mark.usefixtures("isa")
def test_same_bits_twice_and_on_any_number_of_threads(block: str) -> None:
    soma.set_num_threads(1)
    want = trained_bits(block)
    assert trained_bits(block) == want
    for threads in (2, 3, 5):
        soma.set_num_threads(threads)
        assert trained_bits(block) == want, f"{threads} threads"


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_rows_than_threads(rows: int) -> None:
    soma.set_num_threads(1)
    want = [trained_bits(block, rows=rows, length=70) for block in BLOCKS]
    soma.set_num_threads(4)
    assert [trained_bits(block, rows=rows, length=70) for block in BLOCKS] == want


def test_same_bits_where_a_thread_has_several_parts(block: str) -> None:
    """Every op is cut into parts, which run in any order: no number of threads here divides 7 sequences."""
    sizes = {"d_model": 96, "d_ff": 384, "max_seq_len": 128}
    soma.set_num_threads(1)
    want = trained_bits(block, rows=7, length=128, **sizes)
    for threads in (2, 3, 4):
        soma.set_num_threads(threads)
        assert trained_bits(block, rows=7, length=128, **sizes) == want, f"{threads} threads"


def test_same_bits_in_another_process() -> None:
    """Nothing depends on addresses, on the hash seed or on what ran before."""
    code = "import test_determinism as t; print(*[t.trained_bits(b) for b in t.BLOCKS])"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(Path(soma.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {"SOMA_ISA": soma.active_isa(), "SOMA_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [trained_bits(block) for block in BLOCKS]


# initialisation -------------------------------------------------------------------------------------------------


def initial(block: str, seed: int) -> dict[str, ref.Array]:
    return {name: value.copy() for name, value in soma.Model(shape(block), seed=seed).parameters().items()}


def test_initialisation_is_the_same_on_every_isa_and_thread_count(block: str) -> None:
    want = initial(block, seed=5)
    for isa in soma.available_isas():
        _core.set_isa(isa)
        for threads in (1, 2, 3):
            soma.set_num_threads(threads)
            for name, value in initial(block, seed=5).items():
                assert value.tobytes() == want[name].tobytes(), (isa, threads, name)


def test_initialisation_depends_on_the_seed(block: str) -> None:
    first = initial(block, seed=5)
    for seed in (0, 6, 2**32 + 5, 2**63):
        for name, value in initial(block, seed=seed).items():
            assert value.ndim == 1 or not np.isin(value, first[name]).mean() > 0.01, (seed, name)


@pytest.mark.parametrize("seed", [0, 1337])
def test_initialisation_is_normal(block: str, seed: int) -> None:
    """Four moments within five standard errors, tensors uncorrelated, biases 0 and norm weights 1."""
    config = shape(block, d_model=96, d_ff=384)
    tensors = soma.Model(config, seed=seed).parameters()
    samples = []
    for name, value in tensors.items():
        if value.ndim == 1:
            assert np.all(value == (1.0 if name.endswith(".weight") else 0.0)), name
            continue
        residual = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))  # back into the stream
        x = value.astype(np.float64).ravel() / (0.02 / np.sqrt(2 * config.n_layers) if residual else 0.02)
        samples.append(x)
        n = x.size
        assert abs(x.mean()) < 5 / np.sqrt(n), name
        assert abs(x.var() - 1) < 5 * np.sqrt(2 / n), name
        assert abs((x**3).mean()) < 5 * np.sqrt(15 / n), name
        assert abs((x**4).mean() - 3) < 5 * np.sqrt(96 / n), name
        assert 3.0 < np.abs(x).max() < 7.0, name
        assert abs((x[1:] * x[:-1]).mean()) < 5 / np.sqrt(n), name
    for i, a in enumerate(samples):
        for b in samples[:i]:
            n = min(a.size, b.size)
            assert abs((a[:n] * b[:n]).mean()) < 5.5 / np.sqrt(n)


# decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("prompt", [1, 2, 17, 129])
def test_cached_decoding_is_the_full_forward(block: str, prompt: int) -> None:
    """At every position, after prefills of several lengths, across the borders of attention's tiles."""
    length = 130
    config = shape(block, max_seq_len=length)
    oracle = ref.Config(**config.to_dict())
    model = soma.Model(config, precision="float32")
    params = ref.random_parameters(oracle, seed=1)
    for name in model.parameters():
        model.write(name, params[name])
    ids = np.random.default_rng(2).integers(0, 301, (1, length)).astype(np.int32)
    want = model.forward(ids)[0]
    tolerance = model_tolerance(oracle, length)
    decoder = _core.Decoder(model._core, 1)
    decoder.prefill(0, ids[0, :prompt])
    assert relative_error(decoder.logits()[0], want[prompt - 1]) < tolerance
    for position in range(prompt, length):
        decoder.step(np.array([0], np.int32), ids[0, position : position + 1])
        assert relative_error(decoder.logits()[0], want[position]) < tolerance, position
    assert decoder.length(0) == length
    with pytest.raises(ValueError, match=str(length)):
        decoder.step(np.array([0], np.int32), ids[0, :1])
    decoder.prefill(0, ids[0, :3])  # a row can start again
    assert relative_error(decoder.logits()[0], want[2]) < tolerance


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [4, 11])
def test_rows_of_a_batch_are_single_rows_bit_for_bit(block: str, rows: int) -> None:
    """With few rows, with enough rows for a matrix product per step, and with sums longer than a tile."""
    model = soma.Model(shape(block, d_ff=500), seed=4, precision="float32")
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 301, n).astype(np.int32) for n in (1, 30, 7, 12, 2, 3, 9, 4, 4, 1, 17)[:rows]]
    tails = [rng.integers(0, 301, n).astype(np.int32) for n in (20, 5, 20, 0, 7, 19, 8, 8, 20, 20, 3)[:rows]]
    batch = _core.Decoder(model._core, len(prompts))
    singles = [_core.Decoder(model._core, 1) for _ in prompts]
    for row in rng.permutation(rows):
        batch.prefill(row, prompts[row])
        singles[row].prefill(0, prompts[row])
    for position in range(20):
        rows = [row for row in range(len(prompts)) if position < len(tails[row])]
        batch.step(np.array(rows, np.int32), np.array([tails[row][position] for row in rows], np.int32))
        for row in rows:
            singles[row].step(np.array([0], np.int32), tails[row][position : position + 1])
        for row, single in enumerate(singles):
            assert batch.length(row) == single.length(0)
            assert batch.logits()[row].tobytes() == single.logits()[0].tobytes(), (position, row)


def test_decoding_gives_the_same_bits_on_any_number_of_threads(block: str) -> None:
    model = soma.Model(shape(block), seed=4, precision="float32")
    ids = np.random.default_rng(5).integers(0, 301, 50).astype(np.int32)
    seen = set()
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        decoder = _core.Decoder(model._core, 1)
        decoder.prefill(0, ids[:37])
        bits = decoder.logits().tobytes()
        for i in range(37, 50):
            decoder.step(np.array([0], np.int32), ids[i : i + 1])
            bits += decoder.logits().tobytes()
        seen.add(bits)
    assert len(seen) == 1


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 9])
def test_a_broken_weight_shows_in_what_is_decoded(rows: int) -> None:
    """ReLU must keep a NaN for few rows too, so that the sampler refuses to choose a token."""
    model = soma.Model(shape("soma"), seed=4, precision="float32")
    decoder = _core.Decoder(model._core, rows)
    for row in range(rows):
        decoder.prefill(row, np.array([1, 2, 3], np.int32))
    options = {"vocab_size": 301, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
    samplers = [
        _core.Sampler(temperature=temperature, banned_ids=np.array([], np.int32), **options) for temperature in (0, 1)
    ]
    assert all(0 <= sampler.sample(decoder.logits()[0]) < 301 for sampler in samplers)
    model.parameters()["h.0.mlp.b_fc"][3] = np.nan
    decoder.step(np.arange(rows, dtype=np.int32), np.full(rows, 5, np.int32))
    assert np.isnan(decoder.logits()).all()
    for sampler in samplers:
        with pytest.raises(ValueError, match="not finite"):
            sampler.sample(decoder.logits()[0])
    decoder.prefill(0, np.array([1, 2, 3], np.int32))
    assert np.isnan(decoder.logits()[0]).all()


# learning -------------------------------------------------------------------------------------------------------


def repeating(rng: np.random.Generator, rows: int = 8, period: int = 4) -> tuple[ref.Array, ref.Array]:
    """Repeated random patterns. Targets before the first repetition are ignored."""
    pattern = rng.integers(0, 11, (rows, period)).astype(np.int32)
    text = np.tile(pattern, (1, 5))[:, :17]
    targets = text[:, 1:].copy()
    targets[:, : period - 1] = ref.IGNORE
    return np.ascontiguousarray(text[:, :-1]), targets


@pytest.mark.usefixtures("isa")
def test_a_toy_task_is_learned(block: str) -> None:
    """Copying the token four positions back, in unseen patterns: only attention to a position can learn it."""
    steps = 300
    soma.set_num_threads(1)  # on a busy machine the threads of tiny steps wait for each other
    config = shape(block, vocab_size=11, d_model=32, n_heads=2, d_ff=64, max_seq_len=16)
    config = replace(config, n_kv_heads=None, head_dim=None, rope_theta=None)  # one head of keys wants a lower rate
    model = soma.Model(config, seed=0, precision="float32")
    optimizer = soma.AdamW(model, lr=1e-2)
    rng = np.random.default_rng(0)
    first = 0.0
    for step in range(steps):
        value = model.loss_and_grad(*repeating(rng))
        optimizer.step(lr=1e-2 * min(1.0, (step + 1) / 20) * (1 - step / steps))
        first = first or value
    unseen = repeating(np.random.default_rng(99), rows=32)
    assert abs(first - np.log(11)) < 0.5
    assert model.loss(*unseen) < 0.01
    predicted = model.forward(unseen[0]).argmax(axis=-1)
    asked = unseen[1] != ref.IGNORE
    assert (predicted[asked] == unseen[1][asked]).all()
