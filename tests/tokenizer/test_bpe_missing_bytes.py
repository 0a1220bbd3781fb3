"""Byte-level BPE without tokens for all 256 bytes: texts of known bytes encode; others raise an error."""

from __future__ import annotations

import json
import pickle
import tempfile
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from soma_native.errors import CheckpointError
from soma_native.tokenizer.tokenizer import Tokenizer

CORPUS = ["the quick brown fox jumps over the lazy dog 123 don't\n\nnaïve é e\u0301 中 " * 3, "xyz <end> é  "]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
Theirs = tokenizers.Tokenizer


def make(style: str) -> Theirs:
    """A tokenizer trained as in the Hugging Face course: without an initial_alphabet."""
    made = Theirs(models.BPE(unk_token="<unk>" if style == "unk" else None, ignore_merges=style == "llama3"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=style == "rules")
    if style == "llama3":
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), bytes_only])
    if style == "rules":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<unk>"] if style == "unk" else ["<|endoftext|>"]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=140, special_tokens=special, show_progress=False))
    if style == "rules":
        made.add_tokens([AddedToken("[TOOL]", special=False, normalized=False)])
    return made


@pytest.fixture(scope="module", params=["gpt2", "unk", "llama3", "rules"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Theirs]:
    made = make(request.param)
    folder = tmp_path_factory.mktemp("missing")
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder), made


PIECES = st.sampled_from(["the ", "é", "e\u0301", "中", "\n", "  ", "'t", "123", "<end>", "<|endoftext|>", "fox"])
KNOWN = st.sampled_from(sorted(set("".join(CORPUS)))) | PIECES
TEXTS = st.lists(KNOWN, max_size=40).map("".join)


def missing(tok: Tokenizer, text: str) -> tuple[int, int] | None:
    """The index of the first character that needs a missing byte, and the byte."""
    for at, character in enumerate(text):
        for byte in character.encode():
            if not any(tok.decode_bytes([i]) == bytes([byte]) for i in range(tok.vocab_size)):
                return at, byte
    return None


@given(TEXTS)
def test_what_has_only_known_bytes_has_their_ids(pair: tuple[Tokenizer, Theirs], text: str) -> None:
    tok, theirs = pair
    if theirs.normalizer is not None:  # a mark that always composed in training has no token
        assume(missing(tok, theirs.normalizer.normalize_str(text).replace("<|endoftext|>", "")) is None)
    expected = theirs.encode(text).ids
    assert tok.encode(text, allowed_special="all") == expected
    assert tok.encode_batch([text, text], allowed_special="all") == [expected, expected]
    assert tok.encode_with_offsets(text, allowed_special="all")[0] == expected
    if theirs.normalizer is None:
        assert tok.decode(expected) == text


@given(st.text(max_size=6), st.sampled_from("QßŁ😀\x00"), TEXTS)
def test_a_byte_that_is_missing_is_named(text: str, bad: str, before: str) -> None:
    tok = plain()
    before = before.replace("<|endoftext|>", "")
    text = before + bad + text
    found = missing(tok, text)
    assert found is not None
    at, byte = found
    named = rf"character '.*' at character {at} needs the byte {byte:#04x}, which is not a token of this vocabulary"
    for call, place in (
        (lambda: tok.encode(text), ""),
        (lambda: tok.encode_array(text), ""),
        (lambda: tok.encode_with_offsets(text), ""),
        (lambda: tok.encode(text, allowed_special="all"), ""),
        (lambda: tok.encode_batch(["the", "fox é", text, "é"]), r"texts\[2\]: "),
        (lambda: tok._encode_joined(["the", text], 7), r"texts\[8\]: "),
    ):
        with pytest.raises(ValueError, match=f"^{place}{named}"):
            call()
    assert tok.decode(tok.encode(before)) == before  # an error leaves no ids in the cache or the output


_plain: list[Tokenizer] = []


def plain() -> Tokenizer:
    if not _plain:
        made = make("gpt2")
        with tempfile.TemporaryDirectory() as folder:
            made.save(f"{folder}/tokenizer.json")
            _plain.append(Tokenizer.load(folder))
    return _plain[0]


def test_a_byte_far_inside_a_long_text_and_a_long_batch() -> None:
    tok = plain()
    text = "the fox é 中 " * 100_000
    assert tok.decode(tok.encode(text)) == text
    with pytest.raises(ValueError, match="character 'Q' at character 1200000 needs the byte 0x51"):
        tok.encode(text + "Q" + text)
    with pytest.raises(ValueError, match=r"texts\[4321\]: character 'ß' at character 4 needs the byte 0x9f"):
        tok.encode_batch(["the "] * 4321 + ["fox ß", "Q"] + ["the"] * 5000)


def test_characters_of_added_tokens_need_no_byte() -> None:
    made = make("rules")
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/tokenizer.json")
        tok = Tokenizer.load(folder)
    assert tok.encode("[TOOL]") == made.encode("[TOOL]").ids
    with pytest.raises(ValueError, match="character 'Q' at character 6 needs the byte 0x51"):
        tok.encode("[TOOL]Q")


def test_saved_again_it_is_what_it_was(pair: tuple[Tokenizer, Theirs], tmp_path: Path) -> None:
    tok, theirs = pair
    saved = tok.save(tmp_path)
    assert json.loads(Theirs.from_file(str(saved)).to_str()) == json.loads(theirs.to_str())
    assert Tokenizer.load(saved).save(tmp_path / "again").read_bytes() == saved.read_bytes()
    assert pickle.loads(pickle.dumps(tok)).encode(CORPUS[0]) == tok.encode(CORPUS[0])


@given(st.data())
def test_decoding_is_as_ever(pair: tuple[Tokenizer, Theirs], data: st.DataObject) -> None:
    tok, theirs = pair
    ids = data.draw(st.lists(st.integers(0, tok.vocab_size - 1), max_size=20))
    assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_files_of_gpt2_may_lack_bytes_and_ranks_may_not(tmp_path: Path) -> None:
    made = make("gpt2")
    vocab, merges = made.model.save(str(tmp_path))
    assert Tokenizer.from_gpt2(vocab, merges).encode(CORPUS[0]) == made.encode(CORPUS[0]).ids
    (tmp_path / "ranks").write_text("dGhl 0\n")
    with pytest.raises(CheckpointError, match="has no token for the byte 0x00"):
        Tokenizer.from_tiktoken(tmp_path / "ranks", pattern="gpt2")
