"""GPT-2 folders without a tokenizer.json give the ids of `transformers`, with any other files beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

import soma_native
from helpers.command import Result
from soma_native.errors import CheckpointError
from soma_native.tokenizer.tokenizer import Tokenizer

CORPUS = ["The quick brown fox don't jump over 12345 lazy dogs.\n\n  x <pad> <user> é 中文 "] * 3
PIECES = ["The", " fox", "don't", "12", "\n\n ", "  x", "é", "中", "<|endoftext|>", "<pad>", "<user>", "a<pad> b", " "]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def write_folder(folder: Path, beside: dict[str, Any], special: tuple[str, ...] = ("<|endoftext|>",)) -> Path:
    """Writes vocab.json, merges.txt and the files of `beside`."""
    folder.mkdir(exist_ok=True)
    tok = Tokenizer.train(CORPUS, kind="bpe", vocab_size=300 + len(special), special_tokens=special)
    document = json.loads(tok.save(folder).read_text())
    (folder / "tokenizer.json").unlink()
    vocab = {**document["model"]["vocab"], **{t["content"]: t["id"] for t in document["added_tokens"]}}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(document["model"]["merges"]) + "\n")
    for name, content in beside.items():
        (folder / name).write_text(json.dumps(content))
    return folder


FOLDERS: dict[str, dict[str, Any]] = {
    "two files": {},
    "config": {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}},
    "space in front": {"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}},
    "added tokens": {
        "added_tokens.json": {"<user>": 302, "<pad>": 301},
        "special_tokens_map.json": {"pad_token": "<pad>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}},
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<pad>"},
    },
    "added with flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "300": {"content": "<|endoftext|>", "special": True, "normalized": False},
                "301": {"content": "<user>", "special": False, "lstrip": True, "normalized": False},
                "302": {"content": "<pad>", "special": True, "rstrip": True, "normalized": False},
            }
        },
    },
}


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any, Path]:
    folder = write_folder(tmp_path_factory.mktemp("folder"), FOLDERS[request.param])
    return Tokenizer.load(folder), transformers.GPT2Tokenizer.from_pretrained(folder), folder


@given(TEXTS)
def test_the_ids_are_those_of_transformers(pair: tuple[Tokenizer, Any, Path], text: str) -> None:
    tok, theirs, _ = pair
    assert tok.encode(text, allowed_special="all") == theirs.encode(text, add_special_tokens=False)


def test_saved_again_it_is_a_tokenizer_json_of_the_same_ids(pair: tuple[Tokenizer, Any, Path], tmp_path: Path) -> None:
    tok, theirs, folder = pair
    assert len(theirs) == tok.vocab_size
    again = Tokenizer.load(tok.save(tmp_path))
    assert again.special_tokens == tok.special_tokens
    for text in (*CORPUS, "".join(PIECES)):
        assert again.encode(text, allowed_special="all") == theirs.encode(text)
    assert not (folder / "tokenizer.json").exists(), "reading writes nothing"


def test_a_model_in_such_a_folder(tmp_path: Path, run: Callable[..., Result]) -> None:
    folder = write_folder(tmp_path / "model", {})
    config = transformers.GPT2Config(
        vocab_size=301, bos_token_id=0, eos_token_id=0, n_embd=16, n_layer=1, n_head=2, n_positions=32
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    model, tok = soma_native.load(folder)
    assert tok.special_tokens == ("<|endoftext|>",)
    text = soma_native.Generator(model, tok).generate("The", max_tokens=4, temperature=0)
    result = run("generate", str(folder), "The", "--max-tokens", "4", "--temperature", "0")
    assert (result.status, result.out) == (0, text + "\n")
    soma_native.save(folder, model, tok)
    assert soma_native.load(folder)[1].encode(CORPUS[0]) == tok.encode(CORPUS[0])
    (folder / "tokenizer.json").unlink()  # it belongs to the weights now, and nothing takes its place
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is missing"):
        soma_native.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}, "the tokenizer_class 'Qwen2Tokenizer', whose"),
        ("tokenizer_config.json", {"tokenizer_class": 3}, "names the tokenizer_class 3"),
        ("tokenizer_config.json", {"add_prefix_space": "yes"}, "has the add_prefix_space 'yes'; true or false"),
        ("tokenizer_config.json", [], "is not a JSON object"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added tokens that are not texts with their ids"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<a>"}}}, "not texts with their ids"),
        ("added_tokens.json", {"<a>": "x"}, "not texts with their ids"),
        ("added_tokens.json", {"<a>": 7}, "gives the added token '<a>' the id 7"),
        ("added_tokens.json", "not JSON{", "is not a JSON object"),
        ("vocab.json", {"a": 0}, "has the merge"),
    ],
)
def test_files_that_contradict_or_say_another_kind(tmp_path: Path, name: str, content: Any, problem: str) -> None:
    folder = write_folder(tmp_path, {name: content})
    with pytest.raises(CheckpointError, match=problem):
        Tokenizer.load(folder)


def test_one_of_the_two_files_is_not_enough(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {})
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="there is no tokenizer at"):
        Tokenizer.load(folder)
