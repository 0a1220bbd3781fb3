"""GPT-2 folders and Hugging Face transformers: each loads the folders of the other, with equal logits."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import soma_native
from soma_native.checkpoint import load_model
from soma_native.errors import CheckpointError

TOLERANCE = 1e-4  # as promised; logits here are of size 1 to 10
SHAPE = {"vocab_size": 61, "d_model": 24, "n_layers": 3, "n_heads": 4, "d_ff": 56, "max_seq_len": 17}
IDS = np.array([[5, 0, 60, 7, 7, 7, 31, 2, 9, 1, 58, 33, 12, 4, 4, 19, 21], list(range(17))])


@pytest.fixture(autouse=True)
def quiet() -> Any:
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ours(tied: bool, **fields: Any) -> soma_native.Model:
    config = soma_native.ModelConfig(**SHAPE, block="gpt2", tied_head=tied, **fields)
    model = soma_native.Model(config, seed=0)
    rng = np.random.default_rng(2)
    for name, array in model.parameters().items():
        model.write(name, array + rng.normal(0, 0.2, array.shape).astype(np.float32))
    return model


def theirs(**changes: Any) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=17, bos_token_id=0, eos_token_id=0,
        initializer_range=0.2, **changes,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(IDS)).logits.float().numpy())


def same(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_save(tmp_path: Path, tied: bool) -> None:
    model = ours(tied)
    tok = soma_native.Tokenizer.train(["some words of a text"], kind="word")
    soma_native.save(tmp_path, model, tok)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert isinstance(loaded, transformers.GPT2LMHeadModel)
    assert loaded.dtype == torch.float32
    assert loaded.config.tie_word_embeddings == tied
    assert sum(p.numel() for p in loaded.parameters()) == model.num_parameters
    assert loaded.generation_config.max_new_tokens == 100
    same(model.forward(IDS), their_logits(loaded.eval()))


@pytest.mark.parametrize("tied", [True, False])
def test_we_load_what_transformers_saves(tmp_path: Path, tied: bool) -> None:
    model = theirs(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == soma_native.ModelConfig(**{**SHAPE, "d_ff": 96}, block="gpt2", tied_head=tied)
    same(loaded.forward(IDS), their_logits(model))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is missing; .*load_model"):
        soma_native.load(tmp_path)


def test_there_and_back_again(tmp_path: Path) -> None:
    model = ours(True)
    soma_native.save(tmp_path / "a", model, None)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    back = load_model(tmp_path / "b")
    assert back.config == model.config
    for name, array in model.parameters().items():
        assert np.array_equal(back.parameters()[name], array), name


ACTIVATIONS = {  # our name by theirs
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh",
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu",
}  # fmt: skip
OTHER_GPT2: list[dict[str, Any]] = [
    *({"activation_function": name} for name in ACTIVATIONS),
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False},
    {"activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
]


def in_our_words(changes: dict[str, Any]) -> dict[str, Any]:
    """Fields of a ModelConfig for settings of theirs."""
    fields = {key: value for key, value in changes.items() if key != "activation_function"}
    name = changes.get("activation_function")
    return fields if name is None else {**fields, "activation": ACTIVATIONS[name]}


@pytest.mark.parametrize("changes", OTHER_GPT2, ids=str)
def test_other_mathematics_of_gpt2_there_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = theirs(**changes)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.config == soma_native.ModelConfig(**{**SHAPE, "d_ff": 96}, block="gpt2", **in_our_words(changes))
    same(loaded.forward(IDS), their_logits(model))
    soma_native.save(tmp_path / "ours", loaded, None)
    assert load_model(tmp_path / "ours").config == loaded.config
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert {key: getattr(again.config, key) for key in changes} == changes
    same(their_logits(again), their_logits(model))


@pytest.mark.parametrize("changes", OTHER_GPT2, ids=str)
def test_other_mathematics_of_ours_reaches_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each setting changes the logits, so none of them can be lost on the way."""
    usual, model = ours(True), ours(True, **in_our_words(changes))
    logits = model.forward(IDS)
    if model.config != usual.config:
        assert np.abs(logits - usual.forward(IDS)).max() > TOLERANCE, "too little to tell"
    soma_native.save(tmp_path, model, None)
    same(logits, their_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()))
    assert np.array_equal(load_model(tmp_path).forward(IDS), logits)


@pytest.mark.parametrize("name", ["silu", "gelu_10", "quick_gelu", "mish", "relu2", "tanh", "GELU", None, ["gelu"]])
def test_other_activations_are_refused_by_name(tmp_path: Path, name: object) -> None:
    soma_native.save(tmp_path, ours(True), None)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation_function": name}))
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path, verify=False)
    known = " or ".join(map(repr, ACTIVATIONS))
    assert f"activation_function is {name!r}; our gpt2 block computes {known}" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model = theirs().to(dtype)
    model.save_pretrained(tmp_path)
    assert safetensors.torch.load_file(tmp_path / "model.safetensors")["transformer.wpe.weight"].dtype == dtype
    loaded = load_model(tmp_path)
    assert all(array.dtype == np.float32 for array in loaded.parameters().values())
    same(loaded.forward(IDS), their_logits(model.float()))


def test_shards(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    same(load_model(tmp_path).forward(IDS), their_logits(model))


def test_files_of_the_original_gpt2(tmp_path: Path) -> None:
    """They have no prefix, and causal masks as buffers. Some repeat the tied head."""
    model = theirs()
    model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 17, 17, dtype=torch.bool)
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    safetensors.torch.save_file(old, tmp_path / "model.safetensors")
    same(load_model(tmp_path).forward(IDS), their_logits(model))
    old["lm_head.weight"] += 1
    safetensors.torch.save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head.weight' differs from the embedding"):
        load_model(tmp_path)
    old["lm_head.weight"] -= 1
    old["transformer.wte.weight"] = old["wte.weight"].clone()
    safetensors.torch.save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"which is there already"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_weights": "no"}, "scale_attn_weights is 'no'; our gpt2 block computes True or False"),
        ({"scale_attn_by_inverse_layer_idx": None}, "scale_attn_by_inverse_layer_idx is None"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
    ],
)
def test_models_that_compute_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=problem):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_auto_tokenizer_gives_our_ids(tmp_path: Path, kind: str) -> None:
    tok = soma_native.Tokenizer.train(["some words of a text", "GRÜSSE 世界"], kind=kind)
    model = soma_native.Model(soma_native.ModelConfig(**{**SHAPE, "vocab_size": tok.vocab_size}, block="gpt2"))
    soma_native.save(tmp_path, model, tok)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("some text", "words of a text of", "世界 a"):
        assert loaded(text)["input_ids"] == tok.encode(text)
    assert loaded.pad_token == ("<PAD>" if kind == "word" else None)


def test_their_byte_level_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    """The file has a ByteLevel pre_tokenizer but no ByteLevel decoder."""
    import tokenizers

    theirs().save_pretrained(tmp_path)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    bpe.train_from_iterator(["some text"], tokenizers.trainers.BpeTrainer(vocab_size=60, show_progress=False))
    bpe.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: has no decoder of type 'ByteLevel'"):
        soma_native.load(tmp_path)
