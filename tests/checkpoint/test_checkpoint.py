"""Saving and loading models: equal weights, the files of the folder, and other files beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import soma_native
from soma_native import checkpoint
from soma_native.errors import CheckpointError
from soma_native.files.safetensors_io import TensorFile, write_tensors

TEXTS = ["The cat sat on the mat.", "A dog ate the cat's food, and the cat said: no!"]


def make_model(
    tok: soma_native.Tokenizer, block: str = "soma", tied: bool | None = None, extra: int = 0
) -> soma_native.Model:
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size + extra,
        d_model=12,
        n_layers=2,
        n_heads=3,
        d_ff=20,
        max_seq_len=9,
        block=block,
        tied_head=tied,
    )
    model = soma_native.Model(config, seed=1)
    rng = np.random.default_rng(1)
    for name, array in model.parameters().items():  # also biases and norms: no two tensors are equal
        model.write(name, array + rng.normal(0, 0.1, array.shape).astype(np.float32))
    return model


@pytest.fixture
def tok() -> soma_native.Tokenizer:
    return soma_native.Tokenizer.train(TEXTS, kind="word")


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_saved_comes_back(tmp_path: Path, tok: soma_native.Tokenizer, block: str, tied: bool) -> None:
    model = make_model(tok, block, tied)
    soma_native.save(tmp_path / "new" / "folder", model, tok)
    loaded, loaded_tok = soma_native.load(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert loaded.parameters().keys() == model.parameters().keys()
    for name, array in model.parameters().items():
        assert np.array_equal(loaded.parameters()[name], array), name
    assert loaded_tok.encode(TEXTS[1]) == tok.encode(TEXTS[1])
    assert loaded_tok.kind == tok.kind
    ids = np.array([[3, 1, 4, 1, 5]])
    assert np.array_equal(loaded.forward(ids), model.forward(ids))


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_every_kind_of_tokenizer_comes_back(tmp_path: Path, kind: str) -> None:
    tok = soma_native.Tokenizer.train(TEXTS, kind=kind)
    soma_native.save(tmp_path, make_model(tok), tok)
    loaded = soma_native.load(tmp_path)[1]
    assert (loaded.kind, loaded.vocab_size, loaded.special_tokens) == (tok.kind, tok.vocab_size, tok.special_tokens)
    assert loaded.encode(TEXTS[0]) == tok.encode(TEXTS[0])


def test_the_files_of_a_folder(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    model = make_model(tok)
    soma_native.save(tmp_path, model, tok)
    assert sorted(os.listdir(tmp_path)) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "soma"
    assert (config["d_model"], config["vocab_size"], config["max_seq_len"]) == (12, tok.vocab_size, 9)
    assert config["bos_token_id"] == tok.token_to_id("<BOS>")
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.parameters().keys()
    for name, array in model.parameters().items():
        assert np.array_equal(stored[name], array), name


def test_float32_is_kept_to_the_bit(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    model = make_model(tok)
    odd = np.array([0.0, -0.0, 1e-45, -1e-40, 3.4e38, 1 / 3, -1, 1 + 2**-23, 2**-126, 7, 8, 9], np.float32)
    model.parameters()["h.0.mlp.b_proj"][...] = odd
    soma_native.save(tmp_path, model, tok)
    assert soma_native.load(tmp_path)[0].parameters()["h.0.mlp.b_proj"].tobytes() == odd.tobytes()


def test_loaded_arrays_are_the_models_own(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    soma_native.save(tmp_path, make_model(tok), tok)
    model, _ = soma_native.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # the model needs the file no more
    model.parameters()["lm_head"][...] = 0
    assert not model.forward(np.array([[1, 2]])).any()


def test_a_vocabulary_padded_in_the_model(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    soma_native.save(tmp_path, make_model(tok, extra=7), tok)
    model, loaded = soma_native.load(tmp_path)
    assert model.config.vocab_size == loaded.vocab_size + 7


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    model = make_model(soma_native.Tokenizer.train(["one two"], kind="word"))
    with pytest.raises(CheckpointError, match=f"the tokenizer has {tok.vocab_size} tokens"):
        soma_native.save(tmp_path / "model", model, tok)
    assert not (tmp_path / "model").exists()


def test_a_model_without_a_tokenizer(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    model = make_model(tok)
    soma_native.save(tmp_path, model, tok)
    soma_native.save(tmp_path, model, None)
    assert not (tmp_path / "tokenizer.json").exists(), "the earlier save's tokenizer must be removed"
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is missing; .*load_model"):
        soma_native.load(tmp_path)
    assert np.array_equal(checkpoint.load_model(tmp_path).parameters()["wte"], model.parameters()["wte"])
    assert checkpoint.load_config(tmp_path) == model.config


def test_extra_files_belong_to_their_save(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    model = make_model(tok)
    soma_native.save(tmp_path, model, tok, extra_files={"state.json": lambda path: path.write_text("1")})
    assert checkpoint.extra_file(tmp_path, "state.json").read_text() == "1"
    with pytest.raises(CheckpointError, match=r"other\.json: does not belong to the last save"):
        checkpoint.extra_file(tmp_path, "other.json")
    (tmp_path / "state.json").write_text("2")
    with pytest.raises(CheckpointError, match=r"state\.json: is not the file that was saved"):
        checkpoint.extra_file(tmp_path, "state.json")
    soma_native.save(tmp_path, model, tok)
    assert not (tmp_path / "state.json").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "a/b", "../b", "", ".", ".."])
def test_names_extra_files_cannot_have(tmp_path: Path, tok: soma_native.Tokenizer, name: str) -> None:
    with pytest.raises(ValueError, match=r"own files|not a plain file name"):
        soma_native.save(tmp_path, make_model(tok), tok, extra_files={name: lambda path: None})
    assert os.listdir(tmp_path) == []


def test_other_files_stay(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text("mine")
    (tmp_path / "history.csv").write_text("mine")
    soma_native.save(tmp_path, make_model(tok), tok)
    soma_native.save(tmp_path, make_model(tok, "gpt2"), tok)
    assert (tmp_path / "best" / "config.json").read_text() == "mine"
    assert (tmp_path / "history.csv").read_text() == "mine"


def test_a_changed_configuration_needs_verify_false(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    soma_native.save(tmp_path, make_model(tok), tok)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_heads": 2}))
    with pytest.raises(CheckpointError, match=r"config\.json: is not the file that was saved .* verify=False"):
        soma_native.load(tmp_path)
    assert soma_native.load(tmp_path, verify=False)[0].config.n_heads == 2


def test_links(tmp_path: Path, tok: soma_native.Tokenizer) -> None:
    model = make_model(tok)
    soma_native.save(tmp_path / "real", model, tok)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert soma_native.load(tmp_path / "linked")[0].config == model.config
    (tmp_path / "cache").mkdir()  # as in the Hugging Face cache: each file is a link
    for name in os.listdir(tmp_path / "real"):
        (tmp_path / "cache" / name).symlink_to(tmp_path / "real" / name)
    assert soma_native.load(tmp_path / "cache")[0].config == model.config
    before = (tmp_path / "real" / "model.safetensors").read_bytes()
    soma_native.save(tmp_path / "cache", make_model(tok, "gpt2"), tok)
    assert (tmp_path / "real" / "model.safetensors").read_bytes() == before, "a link is replaced, not followed"
    assert soma_native.load(tmp_path / "cache")[0].config.block == "gpt2"


def test_errors_cross_processes() -> None:
    import pickle  # multiprocessing pickles exceptions

    error = pickle.loads(pickle.dumps(CheckpointError("is bad", path="a/b", tensor="t")))
    assert (str(error), error.path, error.tensor) == ("a/b: tensor 't' is bad", "a/b", "t")


def test_tensor_files_and_the_safetensors_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "f32": rng.normal(size=(3, 5)).astype(np.float32),
        "f64": rng.normal(size=(2,)),
        "f16": rng.normal(size=(2, 1, 3)).astype(np.float16),
        "i64": rng.integers(-9, 9, (4,)),
        "u8": np.arange(7, dtype=np.uint8),
        "flags": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "näme": np.arange(3, dtype=np.int32),
    }
    write_tensors(tmp_path / "ours", tensors, {"who": "wir"})
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    safetensors.numpy.save_file(tensors, tmp_path / "theirs", {"who": "wir"})
    with TensorFile(tmp_path / "theirs") as file:
        ours = {name: file.read(name) for name in file.entries}
        assert file.metadata == {"who": "wir"}
    for name, array in tensors.items():
        for got in (ours[name], theirs[name]):
            assert got.dtype == array.dtype and got.shape == array.shape and np.array_equal(got, array), name


def test_saving_copies_what_is_not_contiguous(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_tensors(tmp_path / "file", {"transposed": array.T, "swapped": array.astype(">f4")})
    with TensorFile(tmp_path / "file") as file:
        assert np.array_equal(file.read("transposed"), array.T)
        assert np.array_equal(file.read("swapped"), array)


def test_the_same_tensors_give_the_same_readable_file(tmp_path: Path) -> None:
    tensors = {name: np.full(3, number, np.float32) for number, name in enumerate(("b", "a", "ü"))}
    metadata = {"who": "wir", "quote": '"\\\n\x01\x7f/é😀', "empty": "", "what": "x" * 99}
    written = set()
    for number in range(20):
        write_tensors(tmp_path / str(number), tensors, metadata)
        written.add((tmp_path / str(number)).read_bytes())
    assert len(written) == 1
    with safetensors.safe_open(tmp_path / "0", framework="numpy") as file:
        assert file.metadata() == metadata
        assert all(np.array_equal(file.get_tensor(name), array) for name, array in tensors.items())
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "0").stat().st_mode == (tmp_path / "plain").stat().st_mode, "the umask sets its permissions"


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": np.zeros(1 << 20, np.float32)})
    with TensorFile(tmp_path / "file") as file:
        os.truncate(tmp_path / "file", 1 << 12)
        with pytest.raises(CheckpointError, match=r"file: tensor 'a' of type F32 cannot be read"):
            file.read("a")


def test_bfloat16_beside_float32(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    bits = (rows.view(np.uint32) >> 16).astype(np.uint16)
    tensors = {
        name: safetensors.TensorSpec(dtype=dtype, shape=rows.shape, data_ptr=a.ctypes.data, data_len=a.nbytes)
        for name, dtype, a in (("half", "bfloat16", bits), ("full", "float32", rows))
    }
    safetensors.serialize_file(tensors, tmp_path / "file", {"who": "they"})
    with TensorFile(tmp_path / "file") as file:
        assert file.entries["half"].dtype == "BF16"
        assert np.array_equal(file.read("half"), bits) and np.array_equal(file.read("full"), rows)
