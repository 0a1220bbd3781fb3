"""Generation with device="cuda", in the emulation or on a GPU: against the processor's forward and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_decode_weights import FORMATS, MATRIX_ROWS, with_kept_weights

import soma_native as soma
from helpers.numerics import model_tolerance, relative_error, rounding_tolerance
from helpers.orders import in_every_order
from helpers.shapes import options_of
from oracles import reference as ref
from soma_native import _core
from soma_native.cli.main import main

BLOCKS = ["soma", "gpt2", "llama"]
# Rows of odd lengths, and of more than the 128 numbers that a warp takes at a time.
SIZES = {"vocab_size": 37, "d_model": 42, "n_layers": 1, "n_heads": 3, "d_ff": 141, "max_seq_len": 300}
SMALL = {**SIZES, "d_model": 12, "n_heads": 2, "d_ff": 9}
LIVE_AND_COPIES = ["live", *FORMATS]


def make(block: str, sizes: dict[str, int], **fields: Any) -> tuple[soma.Model, ref.Config]:
    heads = sizes["n_heads"]
    options = {**options_of(block, heads, sizes["d_model"] // heads, qk_norm=True), **fields}
    model = soma.Model(soma.ModelConfig(**sizes, **options, block=block), precision="float32", device="cuda")
    oracle = ref.Config(**model.config.to_dict())
    params = ref.random_parameters(oracle, seed=1)
    for name in model.parameters():
        model.write(name, params[name])
    return model, oracle


def decoder_of(model: soma.Model, form: str, rows: int = 1) -> _core.Decoder:
    return _core.Decoder(model._core, rows, None if form == "live" else _core.DecodeWeights(model._core, form))


def draw(count: int, seed: int = 2) -> ref.Array:
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], count).astype(np.int32)


def decode(model: soma.Model, form: str, ids: ref.Array, prompt: int) -> ref.Array:
    """The logits after the prompt, and after each token that follows."""
    decoder = decoder_of(model, form)
    decoder.prefill(0, ids[:prompt])
    logits = [decoder.logits()[0].copy()]
    for i in range(prompt, len(ids)):
        decoder.step(np.array([0], np.int32), ids[i : i + 1])
        logits.append(decoder.logits()[0].copy())
    return np.array(logits)


def check_decoding(model: soma.Model, oracle: ref.Config, form: str, prompt: int, repeat: Any = in_every_order) -> None:
    ids = draw(prompt + 3)
    want = with_kept_weights(model, "float32" if form == "live" else form).forward(ids)[prompt - 1 :]
    tolerance = model_tolerance(oracle, len(ids))
    if form in ("bfloat16", "int8") and prompt >= MATRIX_ROWS:
        larger = oracle.attention_scale(0) * float(np.sqrt(oracle.d_model / oracle.n_heads))  # scores, and their errors
        tolerance += rounding_tolerance(4 * oracle.n_layers) * larger
    for got, row in zip(repeat(lambda: decode(model, form, ids, prompt)), want, strict=True):
        assert relative_error(got, row) < tolerance


@pytest.mark.parametrize("form", LIVE_AND_COPIES)
@pytest.mark.parametrize("block", BLOCKS)
def test_prompts_and_steps_are_the_forward_of_the_kept_weights(block: str, form: str) -> None:
    model, oracle = make(block, SIZES)
    for prompt in (5, 21):
        check_decoding(model, oracle, form, prompt)


@pytest.mark.parametrize("form", LIVE_AND_COPIES)
@pytest.mark.parametrize("other", ref.OTHER_GPT2)
def test_so_it_is_with_other_mathematics(other: str, form: str) -> None:
    model, oracle = make("gpt2", SMALL, **ref.OTHER_GPT2[other])
    for prompt in (3, 18):
        check_decoding(model, oracle, form, prompt)


@pytest.mark.parametrize("size", [1, 134])
@pytest.mark.parametrize("block", ["gpt2", "llama"])
def test_heads_of_any_size(block: str, size: int) -> None:
    """134 columns are more than a block takes at a time. A rotated head has an even size."""
    wide = {**SMALL, "n_heads": 2, "d_model": 2 * size}
    check_decoding(*make(block, wide), "live", 4)


def test_positions_beyond_a_part_of_attention() -> None:
    """A block of the kernel has 256 positions. Rows of one part and of two are joined in one launch."""
    model, oracle = make("llama", {**SMALL, "d_model": 4})
    check_decoding(model, oracle, "live", 254, repeat=lambda compute: compute())
    batch, prompts = decoder_of(model, "live", 2), [draw(270, 3), draw(5, 4)]
    token = np.array([7], np.int32)
    for row, prompt in enumerate(prompts):
        batch.prefill(row, prompt)
    batch.step(np.array([0, 1], np.int32), np.repeat(token, 2))
    for row, prompt in enumerate(prompts):
        alone = decode(model, "live", np.concatenate([prompt, token]), len(prompt))[-1]
        assert batch.logits()[row].tobytes() == alone.tobytes()


@pytest.mark.parametrize("block", BLOCKS)
def test_rounded_keys_and_values_are_those_of_the_processor(block: str) -> None:
    """Alone, and beside a row of two parts of attention; copied and cut back. Texts have blocks of 32 and odd ends."""
    model, oracle = make(block, SMALL)
    host = soma.Model(model.config, precision="float32")
    for name in host.parameters():
        host.write(name, model.read(name))
    prompts, first, last = [draw(270, 3), draw(33, 4)], np.array([0, 1], np.int32), np.array([7, 5], np.int32)

    def decode_both(of: soma.Model) -> ref.Array:
        decoder = _core.Decoder(of._core, 3, None, "bfloat16")
        decoder.extend(first, np.zeros(2, np.int32), prompts)
        decoder.step(first, last)
        decoder.copy_row(1, 2, 31)
        decoder.extend(np.array([2], np.int32), np.array([31], np.int32), [np.array([1, 2], np.int32)])
        return decoder.logits().copy()

    got, want = decode_both(model), decode_both(host)
    exact = host.forward(np.append(prompts[0], 7))[-1]
    assert relative_error(want[0], exact) > 1e-5, "something is rounded"
    # A number that the two round to different neighbours is off by 2**-8; few are.
    assert relative_error(got, want) < rounding_tolerance(2 * oracle.n_layers) / 2
    alone = _core.Decoder(model._core, 1, None, "bfloat16")
    alone.prefill(0, np.append(prompts[1], 5).astype(np.int32))
    assert alone.logits()[0].tobytes() == got[1].tobytes()


@pytest.mark.parametrize("block", BLOCKS)
def test_float32_has_the_same_bits_in_a_prompt_one_by_one_and_from_a_copy(block: str) -> None:
    model, _ = make(block, SIZES)
    ids = draw(MATRIX_ROWS + 8)
    seen = decode(model, "live", ids, 1)
    assert decode(model, "float32", ids, 1).tobytes() == seen.tobytes()
    for form in ("live", "float32"):
        for prompt in (2, 9, len(ids)):
            assert decode(model, form, ids[:prompt], prompt)[0].tobytes() == seen[prompt - 1].tobytes()


@pytest.mark.parametrize("form", LIVE_AND_COPIES)
@pytest.mark.parametrize("block", BLOCKS)
def test_bits_do_not_depend_on_the_rows_beside(block: str, form: str) -> None:
    """70 rows are more than one launch takes; their rows are not in order."""
    model, _ = make(block, SMALL)
    lengths = [1 + row % 5 for row in range(70)]
    batch = decoder_of(model, form, len(lengths))
    for row, length in enumerate(lengths):
        batch.prefill(row, draw(length, seed=row))
    order = np.random.default_rng(0).permutation(len(lengths)).astype(np.int32)
    batch.step(order, order % SIZES["vocab_size"])
    for row in (0, 33, 64, 69):
        ids = np.concatenate([draw(lengths[row], seed=row), np.array([row % SIZES["vocab_size"]], np.int32)])
        assert batch.logits()[row].tobytes() == decode(model, form, ids, lengths[row])[-1].tobytes()


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_stays_what_it_was_and_live_weights_are_the_models(form: str) -> None:
    model, _ = make("soma", SMALL)
    copy, ids = _core.DecodeWeights(model._core, form), draw(4)
    logits = []
    for _ in range(2):
        decoder = _core.Decoder(model._core, 1, copy)
        decoder.prefill(0, ids)
        logits.append(decoder.logits().tobytes())
        for name, value in model.parameters().items():
            model.write(name, np.full_like(value, np.nan))
    assert logits[0] == logits[1]
    assert np.isnan(decode(model, "live", ids, len(ids))).all()


@pytest.mark.parametrize("form", LIVE_AND_COPIES)
def test_a_broken_weight_shows_in_what_is_decoded(form: str) -> None:
    model, _ = make("soma", SMALL)
    weights = model.read("h.0.mlp.w_fc")
    weights[3, 5] = np.nan
    model.write("h.0.mlp.w_fc", weights)
    assert np.isnan(decode(model, form, draw(3), 3)).all()


TEXT = ["the cat sat on the mat and the dog sat on the log."]


def generators(weights: str) -> list[soma.Generator]:
    """Of the same model on the processor and on the GPU."""
    tok = soma.Tokenizer.train(TEXT, kind="char")
    sizes = {**SMALL, "vocab_size": tok.vocab_size, "max_seq_len": 24}
    models = [soma.Model(soma.ModelConfig(**sizes), seed=3, device=device) for device in ("cpu", "cuda")]
    return [soma.Generator(model, tok, end_token=None, weights=weights) for model in models]


@pytest.mark.parametrize("weights", ["auto", *FORMATS])
def test_texts_are_those_of_the_processor(weights: str) -> None:
    """The context is full on the way. Prompts are too short for rounding, which may part the two."""
    texts = []
    for generator in generators(weights):
        batch = generator.generate_batch(["the cat", "a", ""], max_tokens=30, seed=5, top_k=0)
        assert batch[0] == generator.generate("the cat", max_tokens=30, seed=5, top_k=0)
        texts.append(batch)
    assert texts[0] == texts[1] and len(texts[0][1]) == 31


def test_the_command_generates_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = generators("auto")[0]
    soma.save(tmp_path, generator._model, generator._tok)
    said: dict[str, list[str]] = {"cpu": [], "cuda": []}
    for device, texts in said.items():
        for seed in "123":
            options = ["--max-tokens", "12", "--seed", seed, "--device", device]
            assert main(["generate", str(tmp_path), "the ", *options]) == 0
            texts.append(capsys.readouterr().out)
    assert said["cpu"] == said["cuda"] and len(set(said["cpu"])) > 1
