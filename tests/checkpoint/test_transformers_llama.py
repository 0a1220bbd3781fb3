"""Llama and Qwen3 folders and Hugging Face transformers: what either saves, the other loads, with the same logits."""

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
from soma_native.checkpoint import load_config, load_model
from soma_native.errors import CheckpointError
from soma_native.files.safetensors_io import TensorFile

TOLERANCE = 1e-4  # the promise; logits here are of size 1 to 10
SIZES = {"vocab_size": 61, "d_model": 24, "n_layers": 3, "n_heads": 4, "d_ff": 56, "max_seq_len": 300}
IDS = np.random.default_rng(0).integers(0, 61, (2, 230))
KINDS = {"llama": transformers.LlamaForCausalLM, "qwen3": transformers.Qwen3ForCausalLM}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ours(kind: str, **options: Any) -> soma_native.Model:
    config = soma_native.ModelConfig(**SIZES, block="llama", qk_norm=kind == "qwen3", **options)
    model = soma_native.Model(config, seed=0)
    rng = np.random.default_rng(2)
    for name, array in model.parameters().items():
        model.write(name, array + rng.normal(0, 0.2, array.shape).astype(np.float32))
    return model


def theirs(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56,
        "max_position_embeddings": 300, "num_key_value_heads": 2, "head_dim": 6, "initializer_range": 0.2,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, "LlamaConfig" if kind == "llama" else "Qwen3Config")(**{**settings, **changes})
    model = KINDS[kind](config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("norm.weight"):
                tensor += 0.2 * torch.randn_like(tensor)
    return model


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(IDS)).logits.float().numpy())


def same(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"n_kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-5}, {"n_kv_heads": 1, "head_dim": 10}],
    ids=str,
)
def test_transformers_loads_what_we_save(tmp_path: Path, kind: str, tied: bool, options: dict[str, Any]) -> None:
    model = ours(kind, tied_head=tied, **options)
    tok = soma_native.Tokenizer.train(["some words of a text"], kind="word")
    soma_native.save(tmp_path, model, tok)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert isinstance(loaded, KINDS[kind])
    assert loaded.dtype == torch.float32 and loaded.config.tie_word_embeddings == tied
    assert sum(p.numel() for p in loaded.parameters()) == model.num_parameters
    same(model.forward(IDS), their_logits(loaded.eval()))
    back = soma_native.load(tmp_path)[0]
    assert back.config == model.config
    for name, array in model.parameters().items():
        assert back.parameters()[name].tobytes() == array.tobytes(), name


def test_the_names_in_a_file_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    """Separate q, k, v, gate and up, as (out, in)."""
    soma_native.save(tmp_path, ours(kind, n_kv_heads=2), None)
    with TensorFile(tmp_path / "model.safetensors") as file:
        shapes = {name: entry.shape for name, entry in file.entries.items()}
    assert shapes == {name: tuple(p.shape) for name, p in theirs(kind).named_parameters()}
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (12, 24)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["model_type"] == kind and document["num_key_value_heads"] == 2
    assert document["rope_theta"] == document["rope_parameters"]["rope_theta"] == 10000.0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"head_dim": 10, "num_key_value_heads": 4}, {"rms_norm_eps": 1e-3, "num_key_value_heads": 1}],
    ids=str,
)
def test_we_load_what_transformers_saves(tmp_path: Path, kind: str, tied: bool, changes: dict[str, Any]) -> None:
    model = theirs(kind, tie_word_embeddings=tied, **changes)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.tied_head == tied and loaded.config.qk_norm == (kind == "qwen3")
    assert loaded.config.n_kv_heads == changes.get("num_key_value_heads", 2)
    assert loaded.config.norm_eps == changes.get("rms_norm_eps", 1e-6)
    assert load_config(tmp_path) == loaded.config
    same(loaded.forward(IDS), their_logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_size_in_several_files(tmp_path: Path, kind: str, dtype: Any) -> None:
    model = theirs(kind).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and (tmp_path / "model.safetensors.index.json").exists()
    loaded = load_model(tmp_path)
    widened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    same(loaded.forward(IDS), their_logits(widened))
    soma_native.save(tmp_path, loaded, None)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    same(loaded.forward(IDS), their_logits(again))


def rewrite(folder: Path, changes: dict[str, Any]) -> None:
    """Change keys of config.json; None takes one away."""
    document = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_theta": 500.0},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 7.0},
        {"rope_parameters": {"rope_theta": 500}, "rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0},
    ],
    ids=str,
)
def test_where_the_base_of_the_angles_stands(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    model = theirs(kind, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, changes)
    loaded = load_model(tmp_path)
    assert loaded.config.rope_theta == 500.0
    same(loaded.forward(IDS), their_logits(model))


def test_what_a_config_of_llama_may_leave_out(tmp_path: Path) -> None:
    """As the files of the first Llama do; of Qwen3 the defaults are those of one of its models, so none is taken."""
    model = theirs("llama", num_key_value_heads=4)
    model.save_pretrained(tmp_path / "llama")
    left_out = ("head_dim", "num_key_value_heads", "rope_parameters", "mlp_bias", "attention_bias", "hidden_act")
    rewrite(tmp_path / "llama", {**dict.fromkeys(left_out), "rms_norm_eps": 1e-6})
    same(load_model(tmp_path / "llama").forward(IDS), their_logits(model))
    theirs("qwen3").save_pretrained(tmp_path / "qwen3")
    for key in ("head_dim", "num_key_value_heads"):
        rewrite(tmp_path / "qwen3", {key: None})
        with pytest.raises(CheckpointError, match=f"{key} is missing"):
            load_model(tmp_path / "qwen3")
        rewrite(tmp_path / "qwen3", {key: 6 if key == "head_dim" else 2})


def test_null_means_that_a_setting_is_off(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    off = (
        "attention_bias",
        "mlp_bias",
        "partial_rotary_factor",
        "sliding_window",
        "use_sliding_window",
        "rope_scaling",
    )
    (tmp_path / "config.json").write_text(json.dumps({**config, **dict.fromkeys(off)}), encoding="utf-8")
    same(load_model(tmp_path).forward(IDS), their_logits(model))


def test_old_files_with_constants_and_those_of_a_bare_model(tmp_path: Path) -> None:
    model = theirs("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tensors = {
        k.removeprefix("model."): v for k, v in safetensors.torch.load_file(tmp_path / "model.safetensors").items()
    }
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    same(load_model(tmp_path).forward(IDS), their_logits(model))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
SLIDING = ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; our llama block computes 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"layer_types": SLIDING}, "layer_types is .*; our llama block computes 'full_attention' alone"),
        ({"rope_scaling": LLAMA3}, "rope_scaling has the type 'llama3'; our llama block computes 'default'"),
        ({"rope_parameters": LLAMA3}, "rope_parameters has the type 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling has the type 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling has the type 'yarn'"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "rope_scaling has 'factor'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters has 'full_attention'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25"),
        ({"rope_parameters": {"rope_theta": "ten"}}, "rope_theta must be a number"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be from 1.0"),
        ({"rms_norm_eps": 0}, "norm_eps must be from 1e-12"),
        ({"num_key_value_heads": 3}, "n_kv_heads must divide n_heads, got 3 and 4"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"head_dim": 8}, r"has the shape \[24, 24\], config.json asks for \[32, 24\]"),
        ({"intermediate_size": 57}, r"asks for \[57, 24\]"),
    ],
    ids=str,
)
def test_models_that_compute_something_else_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], problem: str
) -> None:
    theirs(kind).save_pretrained(tmp_path)
    rewrite(tmp_path, changes)
    with pytest.raises(CheckpointError, match=problem):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"sliding_window": 64}, "sliding_window is 64; our llama block computes none"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4}, "use_sliding_window is True"),
        ("qwen3", {"layer_types": SLIDING}, "layer_types is .*; our llama block computes 'full_attention' alone"),
        ("qwen3", {"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
    ],
    indirect=["kind"],
)
def test_what_only_one_of_them_can_ask_for(tmp_path: Path, kind: str, changes: dict[str, Any], problem: str) -> None:
    theirs(kind).save_pretrained(tmp_path)
    rewrite(tmp_path, changes)
    with pytest.raises(CheckpointError, match=problem):
        load_model(tmp_path)


def test_a_tensor_too_much_or_too_few_is_named(tmp_path: Path, kind: str) -> None:
    theirs(kind).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    up = tensors.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        load_model(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"] = up
    safetensors.torch.save_file({**tensors, "model.layers.1.mlp.up_proj.bias": torch.ones(56)}, path)
    with pytest.raises(CheckpointError, match=r"up_proj\.bias' is not one of a 'llama' model's"):
        load_model(tmp_path)
    tensors["model.layers.1.mlp.up_proj.weight"] = up * torch.nan
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN"):
        load_model(tmp_path)


def test_damage_to_a_part_of_a_joined_matrix_is_found(tmp_path: Path, kind: str) -> None:
    soma_native.save(tmp_path, ours(kind), None)
    path = tmp_path / "model.safetensors"
    with TensorFile(path) as file:
        start = file._data_start + file.entries["model.layers.2.self_attn.v_proj.weight"].begin
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"v_proj\.weight' is damaged"):
        load_model(tmp_path)
