"""Other files in place of a model's files, as after a failed download: the error names them and the mend."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import soma_native
from soma_native.errors import CheckpointError
from soma_native.files.safetensors_io import TensorFile, write_tensors


def torch_file(**how: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"wte": torch.zeros(3)}, file, **how)
    return file.getvalue()


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("model/model.safetensors", b"x" * 100)
    else:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("model.safetensors"), io.BytesIO())
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 548105171\n"
CONTENT = b'{"a": {"dtype": "F32"}}' * 40
IMPOSTORS = {
    "git-lfs": (POINTER, "is a git-lfs pointer, not the file that it stands for: run git lfs pull there"),
    "page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is a web page, not the file: download it again"),
    "page after a blank": (b"\xef\xbb\xbf\r\n <HTML lang='en'>", "is a web page"),
    "answer of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "gzip": (gzip.compress(CONTENT), "is packed (gzip): unpack it first"),
    "xz": (lzma.compress(CONTENT), "is packed (xz)"),
    "bzip2": (bz2.compress(CONTENT), "is packed (bzip2)"),
    "zstd": (b"\x28\xb5\x2f\xfd\x24\x00\x01\x00\x00\x99\xe9\xd8\x51", "is packed (zstd)"),
    "zip": (archive("zip"), "is packed (zip)"),
    "tar": (archive("tar"), "is packed (tar)"),
    **{
        f"pickle {version}": (pickle.dumps({"wte": [1.0]}, version), "is a pickle, which can run any code")
        for version in range(2, 6)
    },
    "torch": (torch_file(), "is a pickle, which can run any code"),
    "torch before 1.6": (torch_file(_use_new_zipfile_serialization=False), "is a pickle, which can run any code"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid saved model."""
    tok = soma_native.Tokenizer.train(["the cat sat on the mat"], kind="word")
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=12, max_seq_len=10
    )
    soma_native.save(tmp_path / "model", soma_native.Model(config, seed=0), tok)
    return tmp_path / "model"


def refused(path: Path, content: bytes, problem: str, verify: bool = False) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        soma_native.load(path.parent, verify=verify)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", IMPOSTORS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_something_else(folder: Path, name: str, kind: str, verify: bool) -> None:
    refused(folder / name, *IMPOSTORS[kind], verify=verify)


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_index_and_a_shard_that_are_something_else(folder: Path, kind: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte": "model-1.safetensors"}}')
    refused(folder / "model-1.safetensors", *IMPOSTORS[kind])
    refused(folder / "model.safetensors.index.json", *IMPOSTORS[kind])


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_a_vocabulary_that_is_something_else(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(IMPOSTORS[kind][0])
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    for read in (
        lambda path: soma_native.Tokenizer.load(path),
        lambda path: soma_native.Tokenizer.from_tiktoken(path, pattern="gpt2"),
        lambda path: soma_native.Tokenizer.from_gpt2(path, path),
        lambda path: soma_native.Tokenizer.from_gpt2(tmp_path / "vocab.json", path),
    ):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path / "file")
        assert str(caught.value).startswith(f"{tmp_path / 'file'}: {IMPOSTORS[kind][1]}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model.safetensors", "is empty, a download or copy that was cut short: fetch it again"),
        ("config.json", "is empty, so it is not valid JSON: download or save it again"),
        ("tokenizer.json", "is empty, so it is not valid JSON: download or save it again"),
    ],
)
def test_an_empty_file(folder: Path, name: str, problem: str) -> None:
    refused(folder / name, b"", problem)


@pytest.mark.parametrize("text", [b"Entry not found", b'{"error":"Repository not found"}', b"Invalid username or"])
def test_a_message_in_place_of_a_file(folder: Path, text: bytes) -> None:
    found = text.decode()
    refused(folder / "model.safetensors", text, f"is a text that begins with {found!r}, no safetensors file: fetch it")
    if not found.startswith("{"):
        refused(folder / "config.json", text, "is not valid JSON: Expecting value: line 1 column 1 (char 0) (it begins")


@pytest.mark.parametrize("length", [0x88B1F, 0x280, 0x5D0280])
def test_a_tensor_file_whose_first_bytes_look_like_something_else(tmp_path: Path, length: int) -> None:
    """A file begins with the length of its header; these lengths begin like gzip and like a pickle."""
    write_tensors(tmp_path / "file", {"a": np.ones(2, np.float32)})
    content = (tmp_path / "file").read_bytes()
    header, data = content[8:-8], content[-8:]
    (tmp_path / "file").write_bytes(length.to_bytes(8, "little") + header.ljust(length) + data)
    with TensorFile(tmp_path / "file") as file:
        assert file.read("a").tolist() == [1, 1]
