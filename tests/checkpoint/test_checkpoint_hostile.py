"""Damaged and malicious folders raise a CheckpointError that names the file and tensor; none loads a wrong model."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import soma_native
from soma_native.checkpoint import load_config
from soma_native.checkpoint.weights import CHECKSUMS, WEIGHTS
from soma_native.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid saved model."""
    tok = soma_native.Tokenizer.train(["the cat sat on the mat"], kind="word")
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=8, n_layers=2, n_heads=2, d_ff=12, max_seq_len=10
    )
    soma_native.save(tmp_path / "model", soma_native.Model(config, seed=0), tok)
    return tmp_path / "model"


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = split(folder / WEIGHTS)
    change(header)
    join(folder / WEIGHTS, header, data)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Saves changed tensors with the safetensors package, that is without our checksums."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "DELETE"}))


def refused(folder: Path, *wanted: str, verify: bool = True) -> None:
    with pytest.raises(CheckpointError) as caught:
        soma_native.load(folder, verify=verify)
    for text in wanted:
        assert text in str(caught.value)


# weights -------------------------------------------------------------------------------------------------------------


def test_cut_short_anywhere(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    chance = random.Random(0)
    lengths = {0, 1, 7, 8, 9, len(content) - 1, *(chance.randrange(len(content)) for _ in range(200))}
    for length in lengths:
        (folder / WEIGHTS).write_bytes(content[:length])
        refused(folder, WEIGHTS, "cut short" if length < 8 or length > 8 + 100 else "")


def test_one_byte_too_many(folder: Path) -> None:
    with open(folder / WEIGHTS, "ab") as file:
        file.write(b"\0")
    refused(folder, WEIGHTS, "1 bytes after its last tensor")


def test_any_flipped_bit_is_found_or_harmless(folder: Path) -> None:
    sound = {name: array.copy() for name, array in soma_native.load(folder)[0].parameters().items()}
    content = (folder / WEIGHTS).read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    header, _ = split(folder / WEIGHTS)
    del header["__metadata__"]
    chance = random.Random(1)
    places = [chance.randrange(header_end, len(content)) for _ in range(200)]
    places += [*range(8), *(chance.randrange(8, header_end) for _ in range(600))]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        (folder / WEIGHTS).write_bytes(flipped)
        if place >= header_end:
            at = place - header_end
            name = next(n for n, e in header.items() if e["data_offsets"][0] <= at < e["data_offsets"][1])
            refused(folder, WEIGHTS, f"tensor {name!r}")
            continue
        try:
            found = soma_native.load(folder)[0].parameters()
        except CheckpointError as error:
            assert str(folder) in str(error)  # names the weights, or a file that no longer has its checksum
        else:  # a space, or the value of "format": without a meaning
            assert all(np.array_equal(found[name], array) for name, array in sound.items())


@pytest.mark.parametrize("of", [CHECKSUMS, "config.json", "tokenizer.json"])
def test_checksums_are_not_lost_with_their_name(folder: Path, of: str) -> None:
    content, name = (folder / WEIGHTS).read_bytes(), of.encode()
    for place in range(content.index(name) - 1, content.index(name) + len(name) + 1):  # with its quotation marks
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (folder / WEIGHTS).write_bytes(flipped)
            refused(folder, f"{WEIGHTS}: is " if of == CHECKSUMS else WEIGHTS)


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, (16 << 20) + 1, 1 << 24, 0])
def test_absurd_header_lengths(folder: Path, length: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])
    refused(folder, WEIGHTS)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"wte": 1}',
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": []}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}',
        b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
    ],
    ids=lambda header: header[:30].decode("latin-1"),
)
def test_headers_that_are_none(folder: Path, header: bytes) -> None:
    join(folder / WEIGHTS, header, split(folder / WEIGHTS)[1])
    refused(folder, WEIGHTS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda e: e.update(dtype="F33"), "unknown type 'F33'"),
        (lambda e: e.update(dtype=None), "unknown type"),
        (lambda e: e.update(dtype="F64"), "needs"),
        (lambda e: e.update(shape=[8, -8]), "impossible shape"),
        (lambda e: e.update(shape=[True, 64]), "impossible shape"),
        (lambda e: e.update(shape=[1 << 62, 1 << 62]), "impossible shape"),
        (lambda e: e.update(shape="8"), "impossible shape"),
        (lambda e: e.update(shape=[]), "needs 4 bytes"),
        (lambda e: e.update(data_offsets=[0]), "impossible data_offsets"),
        (lambda e: e.update(data_offsets=[-4, 4]), "impossible data_offsets"),
        (lambda e: e.update(data_offsets=[e["data_offsets"][0] + 4, e["data_offsets"][1] + 4]), ""),
        (lambda e: e.update(extra=1), "is not described by"),
        (lambda e: e.pop("shape"), "is not described by"),
    ],
)
def test_entries_that_lie(folder: Path, change: Callable[[dict[str, Any]], object], problem: str) -> None:
    edit_header(folder, lambda header: change(header["h.1.attn.w_proj"]))
    refused(folder, WEIGHTS, problem, "tensor 'h." if problem == "" else "tensor 'h.1.attn.w_proj'")


def test_tensors_that_share_bytes(folder: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        header["h.1.attn.w_proj"]["data_offsets"] = header["h.0.attn.w_proj"]["data_offsets"]

    edit_header(folder, overlap)
    refused(folder, WEIGHTS, "tensor 'h.")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda t: t.pop("wpe"), "tensor 'wpe' is missing"),
        (lambda t: t.pop("h.1.mlp.b_fc"), "tensor 'h.1.mlp.b_fc' is missing"),
        (lambda t: t.update(more=t["wpe"]), "tensor 'more' is not one of a 'soma' model's"),
        (lambda t: t.update({"h.2.mlp.b_fc": t["h.1.mlp.b_fc"]}), "tensor 'h.2.mlp.b_fc' is not one"),
        (lambda t: t.update(wte=t["wte"].T.copy()), "tensor 'wte' has the shape"),
        (lambda t: t.update(wte=t["wte"][:-1].copy()), "tensor 'wte' has the shape"),
        (lambda t: t.update(wte=t["wte"] * np.float64(1e300)), "tensor 'wte' holds NaN or infinity"),
        (lambda t: t.update(wte=t["wte"].view(np.int32) * np.int64(1)), "tensor 'wte' has the type I64; F64, F32, F16"),
        (lambda t: t.update(wte=t["wte"].view(np.int32)), "tensor 'wte' has the type I32"),
        (lambda t: t["lm_head"].__setitem__((3, 2), np.nan), "tensor 'lm_head' holds NaN"),
        (lambda t: t["lm_head"].__setitem__((3, 2), np.inf), "tensor 'lm_head' holds NaN or infinity"),
        (lambda t: t.update(wte=t["wte"].astype(np.float16) * np.float16(65504)), "tensor 'wte'"),
        (lambda t: t.clear(), "holds only 0 tensors"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: Callable[[dict[str, Any]], object], wanted: str) -> None:
    def both(tensors: dict[str, Any]) -> None:
        change(tensors)
        if "wte" in tensors and tensors["wte"].dtype == np.float16:
            tensors["wte"][0, 0] = np.inf

    rewrite(folder, both)
    refused(folder, WEIGHTS, wanted)


def test_weights_of_another_save(folder: Path, tmp_path: Path) -> None:
    tok = soma_native.Tokenizer.train(["hat bat on rat the"], kind="word")
    model, _ = soma_native.load(folder)
    soma_native.save(tmp_path / "other", model, tok)
    os.replace(tmp_path / "other" / "tokenizer.json", folder / "tokenizer.json")
    refused(folder, "tokenizer.json: is not the file that was saved with model.safetensors")


def test_half_precision_is_converted(folder: Path) -> None:
    before = safetensors.numpy.load_file(folder / WEIGHTS)
    rewrite(folder, lambda t: t.update({name: array.astype(np.float16) for name, array in t.items()}))
    model, _ = soma_native.load(folder)
    for name, array in before.items():
        assert np.array_equal(model.parameters()[name], array.astype(np.float16).astype(np.float32)), name


# configuration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_any_flipped_bit_of_the_other_files_is_found(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    chance = random.Random(2)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(flipped)
        refused(folder, name)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"{}", "model_type None"),
        (b'{"model_type": "soma"}', "vocab_size is missing"),
        (b'{"model_type": "opt"}', "model_type 'opt'; 'soma', 'gpt2', 'llama', 'qwen3' can be loaded"),
        (b'{"model_type": ["soma"]}', "model_type"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', "larger than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_configurations_that_are_none(folder: Path, content: bytes, problem: str) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json", problem, verify=False)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"d_model": "DELETE"}, "config.json: describes no usable model: d_model is missing"),
        ({"d_model": "8"}, "d_model must be a whole number"),
        ({"d_model": 8.0}, "d_model must be a whole number"),
        ({"d_model": True}, "d_model must be a whole number"),
        ({"d_model": None}, "d_model must be a whole number"),
        ({"d_model": 0}, "d_model must be a whole number"),
        ({"d_model": -8}, "d_model must be a whole number"),
        ({"d_model": 10**30}, "d_model must be a whole number"),
        ({"d_model": 2**30}, "config.json: describes no usable model: d_model"),
        ({"d_model": 10}, "tensor 'wte' has the shape"),
        ({"vocab_size": 2**20}, "config.json asks for [1048576, 8]"),
        ({"vocab_size": 5}, "tokenizer.json"),
        ({"n_layers": 1000}, "too few for the 1000 layers"),
        ({"n_layers": 3}, "tensor 'h.2.attn.w_qkv' is missing"),
        ({"n_layers": 1}, "tensor 'h.1."),
        ({"n_heads": 3}, "config.json: describes no usable model"),
        ({"max_seq_len": 2**15}, "tensor 'wpe' has the shape"),
        ({"d_ff": 2**17}, "tensor 'h.0.mlp.w_fc' has the shape"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"tie_word_embeddings": True}, "tensor 'lm_head' differs from the embedding"),
        ({"model_type": "gpt2"}, "n_embd is missing"),
    ],
)
def test_configurations_that_do_not_fit(folder: Path, changes: dict[str, Any], problem: str) -> None:
    edit_config(folder, **changes)
    refused(folder, problem, verify=False)


def test_nothing_large_is_allocated_before_the_sizes_are_checked(folder: Path) -> None:
    import tracemalloc

    edit_config(folder, d_model=2**14, d_ff=2**17, vocab_size=2**23)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="has the shape"):
        soma_native.load_model(folder, verify=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


# the folder ----------------------------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        soma_native.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "file: is not the folder of a saved model")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "broken", "broken")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_a_file_that_is_missing_or_none(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, name, "is missing")
    (folder / name).symlink_to(folder / "nowhere")
    refused(folder, name, "link to a file that does not exist")
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)
    refused(folder, name)
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name, "is a folder")
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    refused(folder, name, "not an ordinary file")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder, name, "not an ordinary file")


def test_saving_over_something_else(folder: Path, tmp_path: Path) -> None:
    model, tok = soma_native.load(folder)
    (tmp_path / "file").write_text("text")
    with pytest.raises(CheckpointError, match="file: is a file where a folder is expected"):
        soma_native.save(tmp_path / "file", model, tok)
    assert (tmp_path / "file").read_text() == "text"
    with pytest.raises(CheckpointError, match="cannot save here: Not a directory"):
        soma_native.save(tmp_path / "file" / "below", model, tok)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="broken: is a broken link"):
        soma_native.save(tmp_path / "broken", model, tok)
    (tmp_path / "taken" / "config.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"config\.json: is a folder where the saved file must go"):
        soma_native.save(tmp_path / "taken", model, tok)
    assert os.listdir(tmp_path / "taken") == ["config.json"]


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: is a pickle", "save_pretrained", verify=False)


@pytest.mark.parametrize(
    "manifest",
    [
        b"{",
        b"[]",
        b'{"files": [], "removed": ["../precious"]}',
        b'{"files": ["../precious"], "removed": []}',
        b'{"files": ["/etc/passwd"], "removed": []}',
        b'{"files": [1], "removed": []}',
        b'{"files": {}, "removed": []}',
    ],
)
def test_a_planted_pending_change_reaches_nothing_outside(folder: Path, manifest: bytes) -> None:
    (folder.parent / "precious").write_text("mine")
    (folder / ".soma-pending").mkdir()
    (folder / ".soma-pending" / ".soma-manifest.json").write_bytes(manifest)
    refused(folder, ".soma-manifest.json")
    tok = soma_native.Tokenizer.train(["the cat sat on the mat"], kind="word")
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=12, max_seq_len=10
    )
    with pytest.raises(CheckpointError, match=r"\.soma-manifest\.json"):
        soma_native.save(folder, soma_native.Model(config, seed=0), tok)
    assert (folder.parent / "precious").read_text() == "mine"


def test_loading_writes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    opened = []
    active = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open" and str(folder) in str(arguments[0]):
            opened.append(arguments[1])

    sys.addaudithook(hook)
    soma_native.load(folder)
    active = False
    assert opened and all(mode in {"r", "rb", None} for mode in opened)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


# sharded folders -----------------------------------------------------------------------------------------------------


def shard(folder: Path) -> dict[str, Any]:
    """Cuts the weights into two files and an index, as transformers does with large models."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, members in parts.items():
        safetensors.numpy.save_file({name: tensors[name] for name in members}, folder / file)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_sharded_weights(folder: Path) -> None:
    sound = soma_native.load(folder)[0].parameters()
    index = shard(folder)
    found = soma_native.load(folder)[0].parameters()
    assert all(np.array_equal(found[name], array) for name, array in sound.items())
    path = folder / "model.safetensors.index.json"
    bad = ("../x.safetensors", "config.json", "a\0.safetensors", "a" * 999 + ".safetensors", 5)
    for changes, wanted in (
        *(({"wte": name}, "not a safetensors file of this folder") for name in bad),
        ({"wte": "none.safetensors"}, "none.safetensors: is missing"),
        ({"nothing": index["weight_map"]["wte"]}, "tensor 'nothing' is missing"),
    ):
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], **changes}}))
        refused(folder, wanted)
    path.write_text("{}")
    refused(folder, "has no weight_map")
    path.write_text(json.dumps(index))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "model-00002-of-00002.safetensors: is missing")


def test_config_of_a_folder_without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert load_config(folder).d_model == 8
