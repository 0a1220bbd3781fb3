"""Settings of a tokenizer.json for truncation and padding: read, never applied, and written again."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

from soma_native.errors import CheckpointError
from soma_native.tokenizer.tokenizer import Tokenizer

TEXT = "the quick brown fox " * 9
Theirs = tokenizers.Tokenizer
CHANGES: dict[str, Callable[[Theirs], None]] = {
    "truncation": lambda t: t.enable_truncation(3, stride=1, strategy="only_first", direction="left"),
    "padding": lambda t: t.enable_padding(direction="left", pad_id=1, pad_type_id=1, pad_token="[PAD]", length=500),
    "padding to a multiple": lambda t: t.enable_padding(pad_to_multiple_of=64),
    "both": lambda t: (t.enable_truncation(5), t.enable_padding()),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_truncation_and_padding_change_no_id_and_are_kept(kind: str, change: str, tmp_path: Path) -> None:
    own = Tokenizer.train([TEXT], kind=kind, special_tokens=["<UNK>", "[PAD]"])
    theirs = Theirs.from_file(str(own.save(tmp_path / "own.json")))
    CHANGES[change](theirs)
    theirs.save(str(tmp_path / "theirs.json"))
    tok = Tokenizer.load(tmp_path / "theirs.json")
    assert tok.encode(TEXT) == own.encode(TEXT) != theirs.encode(TEXT).ids
    for number, one in enumerate((tok, copy.deepcopy(tok), pickle.loads(pickle.dumps(tok)))):
        saved = one.save(tmp_path / f"{number}.json")
        assert json.loads(Theirs.from_file(str(saved)).to_str()) == json.loads(theirs.to_str())
        assert one.encode(TEXT) == own.encode(TEXT)


def test_settings_that_transformers_saved_are_kept(tmp_path: Path) -> None:
    own = Tokenizer.train([TEXT], kind="bpe", special_tokens=["<|endoftext|>", "[PAD]"])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(own.save(tmp_path)), pad_token="[PAD]")
    fast([TEXT, "the"], padding=True, truncation=True, max_length=4)
    fast.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())
    assert written["truncation"] and written["padding"]
    tok = Tokenizer.load(tmp_path / "saved")
    assert tok.encode(TEXT) == own.encode(TEXT)
    again = json.loads(tok.save(tmp_path / "again").read_text())
    assert (again["truncation"], again["padding"]) == (written["truncation"], written["padding"])


@pytest.mark.parametrize("setting", ["truncation", "padding"])
@pytest.mark.parametrize("value", [512, True, [], "BatchLongest"])
def test_a_setting_of_wrong_type_or_too_deep_is_refused(setting: str, value: Any, tmp_path: Path) -> None:
    path = Tokenizer.train([TEXT], kind="bpe").save(tmp_path)
    document = json.loads(path.read_text())
    for bad in (value, json.loads('{"a":' * 99 + "1" + "}" * 99)):  # too deep: not every JSON library can write it
        path.write_text(json.dumps({**document, setting: bad}))
        with pytest.raises(CheckpointError, match=f"has the {setting} .* where null or an object of at most 32 levels"):
            Tokenizer.load(path)
