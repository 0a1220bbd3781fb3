"""What a GGUF cannot hold is refused by name, and a GGUF that cannot be written leaves all as it was."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.llama_cpp import LlamaCpp
from soma_native.checkpoint.folder import load, save
from soma_native.checkpoint.gguf import export_gguf
from soma_native.checkpoint.hf_config import keep_end
from soma_native.errors import CheckpointError
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat, the dog on the rug"] * 3


@pytest.fixture
def tok() -> Tokenizer:
    return Tokenizer.train(TEXTS, "bpe", 270)


def make_model(vocab_size: int = 270, **shape: Any) -> Model:
    sizes = {"vocab_size": vocab_size, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 40, "max_seq_len": 12}
    return Model(ModelConfig(**{**sizes, "block": "llama", **shape}))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"block": "soma"}, "model has the block 'soma', which llama.cpp does not compute; it computes gpt2, llama"),
        (
            {"block": "gpt2", "activation": "relu"},
            "model has activation='relu'; llama.cpp computes .*'gelu_tanh' alone",
        ),
        ({"block": "gpt2", "activation": "gelu"}, "activation='gelu'"),
        ({"block": "gpt2", "scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"block": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_mathematics_that_llama_cpp_lacks(shape: dict[str, Any], problem: str, tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        export_gguf(tmp_path / "model.gguf", make_model(**shape), tok)
    assert not os.listdir(tmp_path)


def test_tokenizers_that_llama_cpp_lacks(tmp_path: Path) -> None:
    def refused(tok: Tokenizer, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            export_gguf(tmp_path / "model.gguf", make_model(tok.vocab_size), tok)

    refused(Tokenizer.train(TEXTS, "word"), "tok is of kind 'word', which lower-cases text")
    for pattern in ("cl100k", "o200k", "starcoder", "tekken", "nanochat"):
        refused(Tokenizer.train(TEXTS, "bpe", 270, pattern=pattern), f"the pattern '{pattern}', .* not|proven")
    refused(Tokenizer.train(TEXTS, "char", special_tokens=()), "tok has no special token")
    refused(changed(tmp_path, lambda file: file["pre_tokenizer"].update(add_prefix_space=True)), "add_prefix_space")
    refused(changed(tmp_path, lambda file: file["added_tokens"][0].update(lstrip=True)), "with lstrip or rstrip")
    refused(changed(tmp_path, lambda file: file["model"].update(ignore_merges=True)), "ignore_merges.* with 'gpt2'")
    with pytest.raises(ValueError, match="tok has 270 tokens, more than the 269 of the model"):
        export_gguf(tmp_path / "model.gguf", make_model(269), Tokenizer.train(TEXTS, "bpe", 270))


def changed(folder: Path, change: Any) -> Tokenizer:
    """A tokenizer with another file."""
    path = Tokenizer.train(TEXTS, "bpe", 270).save(folder / "changed.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.load(path)


def test_another_normal_form_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export_gguf(
        tmp_path / "model.gguf", make_model(), changed(tmp_path, lambda f: f.update(normalizer={"type": "NFC"}))
    )
    assert "llama.cpp does not normalize text to NFC" in caplog.text


def test_weights_that_the_type_cannot_hold(tok: Tokenizer, tmp_path: Path) -> None:
    path, model = tmp_path / "model.gguf", make_model()
    with pytest.raises(ValueError, match=r"dtype must be f32 or f16: q8_0 needs rows of a multiple of 32, .* has 16"):
        export_gguf(path, model, tok, "q8_0")
    with pytest.raises(ValueError, match="dtype must be one of f32, f16, q8_0, got 'bf16'"):
        export_gguf(path, model, tok, "bf16")
    weights = model.parameters()["model.embed_tokens.weight"]
    weights[1, 2] = 7e4
    with pytest.raises(ValueError, match=r"dtype must be f32: model\.embed_tokens\.weight has a number too large"):
        export_gguf(path, model, tok)
    export_gguf(path, model, tok, "f32")
    before = path.read_bytes()
    weights[1, 2] = np.nan
    with pytest.raises(CheckpointError, match=r"tensor 'model\.embed_tokens\.weight' holds NaN"):
        export_gguf(path, model, tok, "f32")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.gguf"]


def test_places_that_are_no_file(tok: Tokenizer, tmp_path: Path) -> None:
    model, pipe = make_model(), tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="is a folder: name a file in it"):
        export_gguf(tmp_path, model, tok)
    with pytest.raises(CheckpointError, match=r"pipe: is not an ordinary file"):
        export_gguf(pipe, model, tok)
    with pytest.raises(CheckpointError, match=r"cannot save here|is a file"):
        export_gguf(Path(__file__) / "model.gguf", model, tok)
    with pytest.raises(ValueError, match="path must name a file"):
        export_gguf("", model, tok)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("limit", [100, 4096, 20000])
def test_a_full_disk_keeps_what_was_there(limit: int, tok: Tokenizer, tmp_path: Path) -> None:
    """The limit of a file's size ends the writing in the settings, in the vocabulary, or in the weights."""
    model, path = make_model(), tmp_path / "model.gguf"
    export_gguf(path, model, tok)
    before = path.read_bytes()
    assert len(before) > limit
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(CheckpointError, match=r"cannot save here: File too large.*before is unchanged"):
            export_gguf(path, model, tok, "f32", modelfile=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.gguf"]


def test_the_package_that_is_missing_is_named(tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"a GGUF needs the package gguf: pip install 'soma-native\[gguf\]'"):
        export_gguf(tmp_path / "model.gguf", make_model(), tok)
    assert not os.listdir(tmp_path)


def test_start_and_end_are_always_written(tok: Tokenizer, tmp_path: Path) -> None:
    """The end token of the training, else <|endoftext|>, else a token that no text has."""

    def ends(model: Model, tok: Tokenizer) -> tuple[int, int]:
        with LlamaCpp(export_gguf(tmp_path / "model.gguf", model, tok)) as there:
            return there.start, there.end

    end = tok.token_to_id("<|endoftext|>")
    assert ends(make_model(), tok) == (end, end)
    trained = make_model()
    keep_end(trained, 65)
    assert ends(trained, tok) == (end, 65)
    plain = Tokenizer.train(TEXTS, "bpe", 270, ())
    assert plain.decode_bytes([ends(make_model(), plain)[1]]) == b"\xff"
    characters = Tokenizer.train(TEXTS, "char", special_tokens=())
    assert ends(make_model(characters.vocab_size + 2), characters)[1] == characters.vocab_size


def test_the_modelfile_beside_it(tok: Tokenizer, tmp_path: Path) -> None:
    path, modelfile = tmp_path / "my model.gguf", tmp_path / "Modelfile"
    export_gguf(path, make_model(), tok, modelfile=True)
    lines = modelfile.read_text().splitlines()
    assert lines[:2] == ["FROM ./my model.gguf", 'TEMPLATE """{{ .Prompt }}"""']
    assert {"PARAMETER num_ctx 12", "PARAMETER temperature 0.7", "PARAMETER repeat_penalty 1.0"} <= set(lines)
    export_gguf(path, make_model(), tok, "f32", modelfile=True)  # its own Modelfile is no obstacle
    before = path.read_bytes()
    modelfile.write_text("FROM another")
    with pytest.raises(CheckpointError, match="Modelfile: is another one, which the export would replace"):
        export_gguf(path, make_model(), tok, modelfile=True)
    with pytest.raises(ValueError, match="path must not be named Modelfile"):
        export_gguf(modelfile, make_model(), tok, modelfile=True)
    assert modelfile.read_text() == "FROM another" and path.read_bytes() == before


def test_a_chat_template_goes_along(tok: Tokenizer, tmp_path: Path) -> None:
    import gguf

    save(tmp_path / "model", make_model(), tok)
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    path = export_gguf(tmp_path / "model.gguf", *load(tmp_path / "model"), modelfile=True)
    field = gguf.GGUFReader(path).get_field("tokenizer.chat_template")
    assert field is not None and field.contents() == "{{ messages }}"
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text()
