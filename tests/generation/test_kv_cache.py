"""Keys and values in bfloat16: what rounding changes, and what it must not change."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import relative_error, rounding_tolerance
from helpers.shapes import options_of
from oracles import reference as ref
from soma_native import _core

SIZES = {"vocab_size": 301, "d_model": 128, "n_layers": 2, "n_heads": 4, "d_ff": 100, "max_seq_len": 120}
TEXTS = ["The cat sat on the mat.", "A dog ate the cat's food, and the cat said: no!", "Grüße, 世界 🌍!"]

pytestmark = pytest.mark.usefixtures("settings_restored")


def make(block: str) -> tuple[soma.Model, ref.Config]:
    model = soma.Model(soma.ModelConfig(**SIZES, **options_of(block, 4, 32, qk_norm=True), block=block), seed=4)
    oracle = ref.Config(**model.config.to_dict())
    for name, array in ref.random_parameters(oracle, seed=1).items():
        model.write(name, array)
    return model, oracle


def rounded(model: soma.Model, rows: int = 1, weights: Any = None) -> _core.Decoder:
    return _core.Decoder(model._core, rows, weights, "bfloat16")


def text(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 301, length).astype(np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def logits_after(decoder: _core.Decoder, ids: np.ndarray, prompt: int) -> np.ndarray:
    """Those after the prompt and after each token that follows."""
    decoder.prefill(0, ids[:prompt])
    found = [decoder.logits()[0].copy()]
    for i in range(prompt, len(ids)):
        decoder.step(ints(0), ids[i : i + 1])
        found.append(decoder.logits()[0].copy())
    return np.array(found)


@pytest.mark.usefixtures("isa")
def test_logits_are_near_the_forward_and_a_prompt_is_its_tokens(block: str, threads: int) -> None:
    """The distance from float64 is that of two rounded operands a layer. Positions cross blocks of 32."""
    model, oracle = make(block)
    ids = text(75)
    want = ref.forward(ref.random_parameters(oracle, seed=1), oracle, ids[None].astype(np.int64))[0]
    one_by_one = logits_after(rounded(model), ids, 1)
    larger = max(1.0, oracle.attention_scale(0) * float(np.sqrt(oracle.d_model / oracle.n_heads)))
    assert 1e-5 < relative_error(one_by_one, want) < rounding_tolerance(2 * oracle.n_layers) * larger
    for prompt in (15, 33, 64, 75):
        assert logits_after(rounded(model), ids[:prompt], prompt)[0].tobytes() == one_by_one[prompt - 1].tobytes()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_bits_depend_neither_on_threads_nor_on_the_rows_beside(block: str, form: str) -> None:
    model, _ = make(block)
    weights = _core.DecodeWeights(model._core, form)
    prompts = [text(n, seed=n) for n in (1, 31, 70, 2)]
    seen: dict[int, bytes] = {}
    for threads in (1, 2, 3):
        soma.set_num_threads(threads)
        batch = rounded(model, len(prompts), weights)
        batch.extend(ints(*range(4)), ints(0, 0, 0, 0), prompts)
        batch.step(ints(2, 0, 3, 1), ints(2, 0, 3, 1))
        for row, prompt in enumerate(prompts):
            alone = logits_after(rounded(model, 1, weights), np.append(prompt, ints(row)), len(prompt))[-1]
            assert batch.logits()[row].tobytes() == alone.tobytes(), (threads, row)
            assert seen.setdefault(row, alone.tobytes()) == alone.tobytes(), (threads, row)


def test_a_row_is_copied_and_cut_back_at_any_length(block: str) -> None:
    """An odd position shares its numbers' places with the even one before it."""
    model, _ = make(block)
    first, other = text(50), text(60, seed=1)
    for length in (1, 16, 31, 32, 33, 50):
        other[:length] = first[:length]
        decoder = rounded(model, 3)
        decoder.prefill(1, text(41, seed=2))  # what was there goes
        decoder.prefill(0, first)
        decoder.copy_row(0, 1, length)
        decoder.extend(ints(0, 1), ints(length, length), [other[length:], other[length:]])
        alone = logits_after(rounded(model), other, len(other))[0]
        assert decoder.logits()[0].tobytes() == decoder.logits()[1].tobytes() == alone.tobytes(), length


def test_the_bytes_of_a_row_are_half() -> None:
    model, _ = make("gpt2")
    bytes_per_row = _core.Decoder.bytes_per_row
    assert bytes_per_row(model._core) == 4 * (2 * 2 * 128 * 128 + 301)  # 120 positions in blocks of 16
    assert bytes_per_row(model._core, "bfloat16") == 2 * (2 * 2 * 128 * 128) + 4 * 301  # in blocks of 32
    with pytest.raises(ValueError, match="kv_cache must be 'float32' or 'bfloat16', got 'int8'"):
        bytes_per_row(model._core, "int8")


# who chooses ----------------------------------------------------------------------------------------------------


def small(kind: str = "byte") -> tuple[soma.Model, soma.Tokenizer]:
    """A random model with large weights, so that some tokens are much likelier than others."""
    tok = soma.Tokenizer.train(TEXTS, kind=kind)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_seq_len": 64}
    model = soma.Model(soma.ModelConfig(vocab_size=tok.vocab_size, **sizes), seed=3, precision="float32")
    for name, array in model.parameters().items():
        model.write(name, 20 * array)
    return model, tok


def test_an_engine_gives_the_texts_of_single_calls_and_says_its_memory() -> None:
    model, tok = small()
    calls = [(prompt, {"seed": seed, "max_tokens": 90}) for seed, prompt in enumerate([*TEXTS, "The cat s", TEXTS[0]])]
    single = soma.Generator(model, tok, kv_cache="bfloat16")
    with soma.Engine(model, tok, 2, kv_cache="bfloat16", prefill_piece=16) as engine:
        handles = [engine.submit(prompt, **options) for prompt, options in calls]
        for handle, (prompt, options) in zip(handles, calls, strict=True):
            assert prompt + handle.result().text == single.generate(prompt, **options)
        assert engine.memory_bytes == soma.Engine.memory_of(model, 2, kv_cache="bfloat16")
    assert soma.Engine.memory_of(model) - soma.Engine.memory_of(model, weights="int8") == 16 * 2 * (2 * 2 * 64 * 16)


def test_weights_that_are_rounded_round_keys_and_values_too() -> None:
    model, tok = small()
    for weights, kept in {"auto": "float32", "float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16"}.items():
        texts = [
            soma.Generator(model, tok, weights=weights, kv_cache=kv_cache).complete("The cat", max_tokens=40, seed=1)
            for kv_cache in ("auto", "float32", "bfloat16")
        ]
        assert texts[0] == texts[2 if kept == "bfloat16" else 1] and texts[1] != texts[2], weights


def test_log_probabilities_are_near_those_of_score() -> None:
    model, tok = small("char")
    model = soma.Model(model.config, seed=3)  # of usual weights
    found = soma.Generator(model, tok, kv_cache="bfloat16").complete(
        "The cat", max_tokens=40, seed=1, heal_prompt=False
    )
    scores = soma.Generator(model, tok).score("The cat" + found[0].text)
    assert np.allclose(found[0].logprobs, scores.logprobs[len("The cat") :], rtol=0, atol=2**-8)


def test_a_copy_of_a_generator_keeps_its_cache() -> None:
    model, tok = small()
    single = soma.Generator(model, tok, kv_cache="bfloat16")
    again = pickle.loads(pickle.dumps(single))
    assert again.complete("A dog", seed=2) == single.complete("A dog", seed=2)
    make_again, arguments = single.__reduce__()[:2]
    older = make_again(*arguments[:4])  # pickles without kv_cache: keys and values were float32
    assert older.complete("A dog", seed=2) == soma.Generator(model, tok).complete("A dog", seed=2)


def test_a_wrong_name_is_an_error_that_says_the_right_ones() -> None:
    model, tok = small()
    for make_one in (soma.Generator, soma.Engine):
        with pytest.raises(ValueError, match="kv_cache must be one of auto, float32, bfloat16, got 'int8'"):
            make_one(model, tok, kv_cache="int8")
