"""Settings in a model's folder: those for the end of a text are obeyed, and all are kept when the model is saved."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import soma_native
from soma_native.checkpoint import load_model

SPECIAL = ["<s>", "</s>", "<pad>"]
CONFIG: dict[str, Any] = {
    "model_type": "gpt2", "architectures": ["GPT2Model"], "vocab_size": 259, "n_positions": 32, "n_embd": 16,
    "n_layer": 1, "n_head": 2, "n_inner": None, "activation_function": "gelu_pytorch_tanh", "bos_token_id": 256,
    "eos_token_id": 257, "pad_token_id": 258, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
    "initializer_range": 0.5, "my_project": {"notes": ["ü", None, 1e-7, {"deep": [[]]}]}, "_name_or_path": "me/my-gpt2",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "use_cache": True,
}  # fmt: skip
GENERATION: dict[str, Any] = {"temperature": 0.3, "top_k": 7, "eos_token_id": 257, "mine": None}
BESIDE: dict[str, Any] = {
    "tokenizer_config.json": {
        "tokenizer_class": "GPT2TokenizerFast", "pad_token": "<pad>", "padding_side": "left",
        "chat_template": "{% for m in messages %}{{ m }}{% endfor %}", "model_max_length": 10**30,
    },
    "special_tokens_map.json": {"eos_token": {"content": "</s>"}, "additional_special_tokens": ["<s>"]},
    "added_tokens.json": {"<s>": 256},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GPT-2 folder whose next token is always `</s>`."""
    tok = soma_native.Tokenizer.train(["a b c d"], kind="bpe", vocab_size=259, special_tokens=SPECIAL)
    tok.save(tmp_path)
    config = soma_native.ModelConfig(259, 16, 1, 2, 64, 32, block="gpt2")
    parameters = {name: np.array(array) for name, array in soma_native.Model(config).parameters().items()}
    parameters["transformer.ln_f.weight"][...] = 0
    parameters["transformer.ln_f.bias"][...] = 1
    parameters["transformer.wte.weight"][...] = 0
    parameters["transformer.wte.weight"][257] = 1
    parameters["transformer.wte.weight"][100] = 0.5
    safetensors.numpy.save_file(parameters, tmp_path / "model.safetensors", {"format": "pt"})
    for name, content in {"config.json": CONFIG, "generation_config.json": GENERATION, **BESIDE}.items():
        write(tmp_path, name, content)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }} ü\n")
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("way", ["in place", "another folder", "twice", "copied", "without a tokenizer"])
def test_what_others_wrote_is_there_after_saving(folder: Path, way: str, tmp_path: Path) -> None:
    model, tok = soma_native.load(folder)
    target = folder if way == "in place" else tmp_path / "another"
    if way == "copied":
        tok = pickle.loads(pickle.dumps(copy.deepcopy(tok)))
    if way == "without a tokenizer":
        soma_native.save(target, load_model(folder), None)
    else:
        soma_native.save(target, model, tok)
        if way == "twice":
            soma_native.save(target, *soma_native.load(target))
        for name, content in BESIDE.items():
            assert read(target, name) == content
        assert (target / "chat_template.jinja").read_text() == "{{ messages }} ü\n"
    assert read(target, "generation_config.json") == GENERATION
    written = read(target, "config.json")
    ours = {"architectures": ["GPT2LMHeadModel"], "n_inner": 64}
    assert {key: written[key] for key in CONFIG} == {**CONFIG, **ours}
    assert transformers.AutoModelForCausalLM.from_pretrained(target).config.eos_token_id == 257


def test_what_was_said_of_other_weights_is_not_kept(folder: Path, tmp_path: Path) -> None:
    stale = {"torch_dtype": "float16", "dtype": "float16", "quantization_config": {"bits": 4}, "compression_config": {}}
    write(folder, "config.json", {**CONFIG, **stale, "tie_word_embeddings": True})
    model, tok = soma_native.load(folder)
    soma_native.save(tmp_path / "saved", model, tok)
    written = read(tmp_path / "saved", "config.json")
    assert written["torch_dtype"] == "float32"
    assert written.keys().isdisjoint({"dtype", "quantization_config", "compression_config"})
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == torch.float32


def test_a_tokenizer_beside_another_model(folder: Path, tmp_path: Path) -> None:
    tok = soma_native.load(folder)[1]
    model = soma_native.Model(soma_native.ModelConfig(300, 8, 1, 2, 16, 12, block="gpt2"))
    soma_native.save(tmp_path / "saved", model, tok)
    config = read(tmp_path / "saved", "tokenizer_config.json")
    assert config == {**BESIDE["tokenizer_config.json"], "model_max_length": 12}
    assert read(tmp_path / "saved", "config.json")["vocab_size"] == 300
    assert "my_project" not in read(tmp_path / "saved", "config.json")


@pytest.mark.parametrize("name", ["generation_config.json", *BESIDE])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": NaN}', "[" * 99_999, '{"a": "' + "x" * (1 << 20) + '"}'])
def test_files_that_are_none_are_left_out_with_a_warning(
    folder: Path, name: str, content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, name, content)
    with caplog.at_level(logging.WARNING, "soma_native"):
        model, tok = soma_native.load(folder)
    assert f"neither used nor kept: {folder / name}: " in caplog.text
    soma_native.save(tmp_path / "saved", model, tok)
    assert (tmp_path / "saved" / name).exists() == (name in {"generation_config.json", "tokenizer_config.json"})
    assert soma_native.Generator(model, tok).generate("a", max_tokens=3, temperature=0) == "a"


def test_values_that_cannot_be_written_everywhere(folder: Path, tmp_path: Path) -> None:
    """Very deep nesting is left out: not every program reads it. Every text is kept, even invalid Unicode."""
    deep = json.loads('{"a":' * 200 + "1" + "}" * 200)
    write(folder, "config.json", {**CONFIG, "deep": deep, "text": "\ud800é"})
    write(folder, "generation_config.json", {**GENERATION, "deep": deep, "text": "\ud800é"})
    soma_native.save(tmp_path / "saved", *soma_native.load(folder))
    for name in ("config.json", "generation_config.json"):
        written = read(tmp_path / "saved", name)
        assert written["text"] == "\ud800é" and "deep" not in written


# the end of a text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_config", "in_generation", "ends"),
    [
        (257, None, True),
        (None, 257, True),
        ([5, 257], None, True),
        (None, [257, 256], True),
        (5, 257, True),
        (257, 5, False),  # generation_config.json decides
        (257, [5], False),
        (None, None, False),
        ([], None, False),
    ],
)
def test_a_text_ends_as_transformers_ends_it(folder: Path, in_config: Any, in_generation: Any, ends: bool) -> None:
    write(folder, "config.json", {**CONFIG, "eos_token_id": in_config})
    write(folder, "generation_config.json", {} if in_generation is None else {"eos_token_id": in_generation})
    if in_generation is None:
        (folder / "generation_config.json").unlink()
    model, tok = soma_native.load(folder)
    ids = tok.encode("a b")
    generator = soma_native.Generator(model, tok)
    found = generator.generate("a b", max_tokens=4, temperature=0)
    assert found == "a b" if ends else tok.encode(found) == [*ids, *[100] * 4]
    assert generator.generate_batch(["a b", "a"], max_tokens=4, temperature=0)[0] == found
    assert "a b" + "".join(generator.stream("a b", max_tokens=4, temperature=0)) == found
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    new = theirs.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, pad_token_id=258)[0, len(ids) :]
    assert (new.tolist() == [257]) == ends


def test_end_token_and_the_beginning(folder: Path) -> None:
    model, tok = soma_native.load(folder)
    for end_token in (None, "<s>"):
        generator = soma_native.Generator(model, tok, end_token=end_token)
        assert tok.encode(generator.generate("a", max_tokens=3, temperature=0)) == [97, 100, 100, 100]
    assert soma_native.Generator(model, tok)._start_id == 256
    write(folder, "config.json", {**CONFIG, "bos_token_id": None})
    assert soma_native.Generator(*soma_native.load(folder))._start_id == tok.encode("\n")[0]


@pytest.mark.parametrize("bad", [50256, -1, True, "</s>", 1.5, [257.0], [[257]], {"a": 1}, 10**40])
def test_ids_that_are_none_are_said_and_kept(
    folder: Path, bad: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, "generation_config.json", {"eos_token_id": bad})
    model, tok = soma_native.load(folder)
    text = soma_native.Generator(model, tok).generate("a", max_tokens=3, temperature=0)
    assert tok.encode(text) == [97, 100, 100, 100]
    assert "eos_token_id of the model's folder is " in caplog.text
    soma_native.save(tmp_path / "saved", model, tok)
    assert read(tmp_path / "saved", "generation_config.json") == {"eos_token_id": bad}


def test_training_on_keeps_it(folder: Path, tmp_path: Path) -> None:
    model, tok = soma_native.load(folder)
    config = soma_native.TrainConfig(epochs=1, batch_size=2, checkpoint_dir=tmp_path / "trained")
    soma_native.Trainer(model, tok, config).fit(["a b c d", "a b"])
    assert read(tmp_path / "trained", "config.json")["my_project"] == CONFIG["my_project"]
    assert read(tmp_path / "trained", "special_tokens_map.json") == BESIDE["special_tokens_map.json"]
