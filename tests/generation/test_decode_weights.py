"""Generation with a copy of the weights in another format: equal to a model with exactly these weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.numerics import model_tolerance, relative_error, rounding_tolerance
from helpers.shapes import options_of
from oracles import reference as ref
from soma_native import _core

FORMATS = ["float32", "bfloat16", "int8"]
MATRIX_ROWS = 16  # prompts of at least this many tokens are rounded to bfloat16 for bfloat16 and int8 weights
SIZES = {"vocab_size": 301, "d_model": 128, "n_layers": 2, "n_heads": 4, "d_ff": 100, "max_seq_len": 300}

pytestmark = pytest.mark.usefixtures("settings_restored")


def make(block: str, **fields: Any) -> tuple[soma.Model, ref.Config]:
    options = {**options_of(block, 4, 32, qk_norm=True), **fields}
    model = soma.Model(soma.ModelConfig(**SIZES, **options, block=block), precision="float32")
    oracle = ref.Config(**model.config.to_dict())
    params = ref.random_parameters(oracle, seed=1)
    for name in model.parameters():
        model.write(name, params[name])
    return model, oracle


def with_kept_weights(model: soma.Model, form: str) -> soma.Model:
    """A float32 model with the values that the format `form` keeps of the weights."""
    other = soma.Model(model.config, precision="float32")
    for name, value in model.parameters().items():
        if value.ndim == 2 and "wpe" not in name:
            by_output = any(table in name for table in ("wte", "embed_tokens", "lm_head"))
            w = value.T if by_output else value
            kept = w if form == "float32" else ref.round_bfloat16(w) if form == "bfloat16" else None
            if kept is None:
                weights, scales = ref.quantize_int8(w)
                kept = weights * scales
            value = kept.T if by_output else kept
        other.write(name, value)
    return other


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("prompt", [1, 6, 290])
def test_decoding_is_the_forward_of_the_kept_weights(block: str, form: str, prompt: int) -> None:
    check_decoding(*make(block), form, prompt)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", ["live", *FORMATS])
@pytest.mark.parametrize("other", ref.OTHER_GPT2)
def test_so_it_is_with_other_mathematics(other: str, form: str) -> None:
    for prompt in (6, 40):
        check_decoding(*make("gpt2", **ref.OTHER_GPT2[other]), form, prompt)


def check_decoding(model: soma.Model, oracle: ref.Config, form: str, prompt: int) -> None:
    ids = np.random.default_rng(2).integers(0, 301, prompt + 9).astype(np.int32)
    want = with_kept_weights(model, "float32" if form == "live" else form).forward(ids)
    tolerance = model_tolerance(oracle, len(ids))
    if form in ("bfloat16", "int8") and prompt >= MATRIX_ROWS:
        larger = oracle.attention_scale(0) * float(np.sqrt(oracle.d_model / oracle.n_heads))  # scores, and their errors
        tolerance += rounding_tolerance(4 * oracle.n_layers) * larger
    weights = None if form == "live" else _core.DecodeWeights(model._core, form)
    decoder = _core.Decoder(model._core, 1, weights)
    decoder.prefill(0, ids[:prompt])
    for position in range(prompt, len(ids)):
        assert relative_error(decoder.logits()[0], want[position - 1]) < tolerance, position
        decoder.step(np.array([0], np.int32), ids[position : position + 1])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", ["live", "float32"])
def test_a_float32_prompt_is_its_tokens_one_by_one(block: str, form: str, threads: int) -> None:
    """Bit for bit: a prompt is a matrix product of many rows, and single tokens read weights row by row.

    A sum over d_ff = 500 is longer than the depth of a tile.
    """
    config = soma.ModelConfig(**{**SIZES, "d_ff": 500}, **options_of(block, 4, 32, qk_norm=True), block=block)
    model = soma.Model(config, seed=4, precision="float32")
    weights = None if form == "live" else _core.DecodeWeights(model._core, form)
    ids = np.random.default_rng(threads).integers(0, 301, 270).astype(np.int32)
    whole, single = _core.Decoder(model._core, 1, weights), _core.Decoder(model._core, 1, weights)
    single.prefill(0, ids[:1])
    for i in range(1, len(ids)):
        single.step(np.array([0], np.int32), ids[i : i + 1])
        if i + 1 in (MATRIX_ROWS, 61, len(ids)):
            whole.prefill(0, ids[: i + 1])
            assert whole.logits().tobytes() == single.logits().tobytes(), i


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("form", ["live", *FORMATS])
def test_bits_depend_neither_on_threads_nor_on_the_rows_beside(block: str, form: str) -> None:
    model, _ = make(block)
    weights = None if form == "live" else _core.DecodeWeights(model._core, form)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 301, n).astype(np.int32) for n in (1, 30, 7, 12, 2, 3)]
    seen: dict[int, bytes] = {}
    for threads, batch in [(1, False), (2, True), (2, False), (3, True), (3, False)]:
        soma.set_num_threads(threads)
        if batch:
            decoder = _core.Decoder(model._core, len(prompts), weights)
            for row, prompt in enumerate(prompts):
                decoder.prefill(row, prompt)
            rows = np.array([4, 0, 5, 1, 3, 2], np.int32)
            decoder.step(rows, rows)
            found = [decoder.logits()[row].tobytes() for row in range(len(prompts))]
        else:
            found = []
            for row, prompt in enumerate(prompts):
                decoder = _core.Decoder(model._core, 1, weights)
                decoder.prefill(0, prompt)
                decoder.step(np.array([0], np.int32), np.array([row], np.int32))
                found.append(decoder.logits()[0].tobytes())
        for row, bits in enumerate(found):
            assert seen.setdefault(row, bits) == bits, (threads, batch, row)


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_stays_what_it_was(block: str, form: str) -> None:
    model, _ = make(block)
    weights = _core.DecodeWeights(model._core, form)
    ids = np.arange(9, dtype=np.int32)
    before = _core.Decoder(model._core, 1, weights)
    before.prefill(0, ids)
    for view in model.parameters().values():
        view[...] = np.nan
    after = _core.Decoder(model._core, 1, weights)
    after.prefill(0, ids)
    assert after.logits().tobytes() == before.logits().tobytes()
    live = _core.Decoder(model._core, 1)
    live.prefill(0, ids)
    assert np.isnan(live.logits()).all()


@pytest.mark.parametrize("form", FORMATS)
def test_a_broken_weight_shows_in_what_is_decoded(form: str) -> None:
    model, _ = make("soma")
    model.parameters()["h.0.mlp.w_fc"][3, 5] = np.nan
    decoder = _core.Decoder(model._core, 1, _core.DecodeWeights(model._core, form))
    decoder.prefill(0, np.array([1, 2, 3], np.int32))
    assert np.isnan(decoder.logits()).all()


def test_bytes_per_token_are_those_of_the_format() -> None:
    model, _ = make("gpt2")
    padded = {"qkv": 384, "proj": 128, "fc": 128, "out": 128}  # outputs, in whole panels of 64
    layer = 128 * (padded["qkv"] + padded["proj"] + padded["fc"]) + 100 * padded["out"]
    weights = SIZES["n_layers"] * layer + 128 * 320
    for form, size in [("float32", 4), ("bfloat16", 2), ("int8", 1)]:
        assert _core.DecodeWeights(model._core, form).bytes_per_token == size * weights


def test_weights_of_another_model_are_refused() -> None:
    (model, _), (other, _) = make("soma"), make("soma")
    with pytest.raises(ValueError, match="weights must be made of the model"):
        _core.Decoder(model._core, 1, _core.DecodeWeights(other._core, "int8"))
    with pytest.raises(ValueError, match="'int4'"):
        _core.DecodeWeights(model._core, "int4")


# generator ------------------------------------------------------------------------------------------------------


def make_generator(**options: str) -> tuple[soma.Generator, soma.Model, soma.Tokenizer]:
    tok = soma.Tokenizer.train(
        ["The cat sat on the mat.", "A dog ate the cat's food, and the cat said: no!"], kind="word"
    )
    config = soma.ModelConfig(vocab_size=tok.vocab_size, d_model=64, n_layers=2, n_heads=2, d_ff=96, max_seq_len=16)
    model = soma.Model(config, seed=3)
    for name, array in model.parameters().items():
        model.write(name, 20 * array)
    return soma.Generator(model, tok, **options), model, tok


@pytest.mark.parametrize("form", FORMATS)
def test_a_generator_keeps_its_copy(form: str) -> None:
    generator, model, tok = make_generator(weights=form)
    text = generator.generate("the cat", max_tokens=30, seed=1)
    assert generator.generate_batch(["a", "the cat"], max_tokens=30, seed=1)[1] == text
    for array in model.parameters().values():
        array[...] = 0
    assert generator.generate("the cat", max_tokens=30, seed=1) == text
    assert soma.Generator(model, tok, weights=form).generate("the cat", max_tokens=30, seed=1) != text


def test_a_float32_copy_says_what_the_model_says() -> None:
    generator, model, tok = make_generator()
    text = generator.generate("the cat", max_tokens=30, temperature=0)
    assert soma.Generator(model, tok, weights="float32").generate("the cat", max_tokens=30, temperature=0) == text


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ValueError, match=r"weights must be one of auto, float32, bfloat16, int8, got 'int4'"):
        make_generator(weights="int4")
