"""Bad arguments, texts and files raise an error that names the fault."""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soma_native.errors import CheckpointError
from soma_native.tokenizer.tokenizer import Tokenizer

KINDS = ["word", "char", "byte"]


@pytest.fixture(scope="module")
def word() -> Tokenizer:
    return Tokenizer.train(["one two three"], kind="word")


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["BPE", "Word", "", None, 3, ["word"]])
def test_an_unknown_kind_names_the_known(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"kind must be one of word, char, byte, bpe, got "):
        Tokenizer.train(["one two"], kind=kind)


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("word", [], r"at least two different words, and have none"),
        ("word", ["", "..."], r"at least two different words, and have none"),
        ("word", ["one", "One ONE!"], r"at least two different words, and have only 'one'"),
        ("char", [], r"at least two different characters, and have none"),
        ("char", ["", "aaa"], r"at least two different characters, and have only 'a'"),
        ("byte", [], r"at least two bytes, and have none"),
        ("byte", ["a"], r"at least two bytes, and have only one"),
    ],
)
def test_a_corpus_with_nothing_to_learn(kind: str, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(texts, kind=kind)


@pytest.mark.parametrize(
    ("kind", "size", "special", "least"),
    [
        ("word", 6, None, 7),
        ("word", 0, None, 7),
        ("word", -5, None, 7),
        ("word", 1, (), 2),
        ("word", 2, ["<a>"], 3),
        ("char", 2, None, 3),
        ("byte", 255, None, 256),
        ("byte", 257, ["<a>", "<b>"], 258),
    ],
)
def test_a_vocabulary_too_small(kind: str, size: int, special: list[str] | None, least: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size must be at least {least} for kind {kind}.*got {size}$"):
        Tokenizer.train(["one two three"], kind=kind, vocab_size=size, special_tokens=special)
    assert Tokenizer.train(["one two"], kind=kind, vocab_size=least, special_tokens=special).vocab_size == least


@pytest.mark.parametrize("size", [10.0, "10", True, [10], np.float32(10)])
def test_a_vocabulary_size_that_is_no_int(size: Any) -> None:
    with pytest.raises(TypeError, match="vocab_size must be an integer"):
        Tokenizer.train(["one two"], vocab_size=size)


def test_sizes_of_any_integer_type() -> None:
    assert Tokenizer.train(["a b c"], vocab_size=np.int32(8)).vocab_size == 8
    assert Tokenizer.train(["a b c"], vocab_size=1 << 24).vocab_size == 9


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
@pytest.mark.parametrize("size", [(1 << 24) + 1, 10**30])
def test_a_vocabulary_too_large(kind: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    """The limit is that of ids in our files and of tokens in our models."""
    with pytest.raises(ValueError, match=f"vocab_size must be at most 16777216, got {size}$"):
        Tokenizer.train(["one two"], kind=kind, vocab_size=size)
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "special", "error", "message"),
    [
        ("word", "<UNK>", TypeError, "must be a list of str, got a single str"),
        ("word", [b"<a>"], TypeError, r"must be a list of str, got bytes at place 0"),
        ("char", ["<a>", 7], TypeError, "must be a list of str, got int at place 1"),
        ("word", ["<a>", ""], ValueError, "must not be empty, got '' at place 1"),
        ("byte", ["<a>", "<b>", "<a>"], ValueError, "got '<a>' twice"),
        ("word", ["<a>", "unk"], ValueError, "'unk' is also a word"),
        ("char", ["<a>", "\n"], ValueError, r"'\\n' is also a char"),
        ("byte", ["Ġ"], ValueError, "'Ġ' is also a byte"),
        ("word", ["<a\ud800>"], ValueError, r"lone surrogate U\+D800 at character 2"),
        ("byte", ["<a\ud800>"], ValueError, r"lone surrogate U\+D800 at character 2"),
    ],
)
def test_bad_special_tokens(kind: str, special: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.train(["one two"], kind=kind, special_tokens=special)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("no such file.txt", r"single str that names no file: 'no such file.txt'; pass \[text\]"),
        (b"one two", "iterable of str, or paths of UTF-8 files, got bytes"),
        (7, "iterable of str, or paths of UTF-8 files, got int"),
        (None, "iterable of str, or paths of UTF-8 files, got NoneType"),
        (["one", 2], r"texts\[1\] must be a str or an os.PathLike, got int"),
        ([b"one"], r"texts\[0\] must be a str or an os.PathLike, got bytes"),
        ([["one"]], r"texts\[0\] must be a str or an os.PathLike, got list"),
    ],
)
def test_texts_of_a_wrong_type_are_refused(texts: Any, message: str) -> None:
    for kind in KINDS:
        with pytest.raises(TypeError, match=message):
            Tokenizer.train(texts, kind=kind)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt: there is no such text file"):
        Tokenizer.train(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a folder; pass the text files in it"):
        Tokenizer.train([tmp_path])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("data", "at"), [(b"caf\xe9 noir", 3), (b"ab\xed\xa0\x80", 2)])
def test_a_file_that_is_not_utf8(kind: str, data: bytes, at: int, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"latin\.txt: not UTF-8 at byte {at} \(0x{data[at]:02x}\).*convert"):
        Tokenizer.train(["fine text", file], kind=kind)


def test_an_error_of_the_iterable_is_passed_on() -> None:
    def texts() -> Any:
        yield "one"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Tokenizer.train(texts())


# -------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff"])
def test_lone_surrogates_are_refused_with_their_place(kind: str, surrogate: str) -> None:
    tok = Tokenizer.train(["one two"], kind=kind)
    text = f"é😀a{surrogate}b\udc00"
    place = rf"has the lone surrogate U\+{ord(surrogate):04X} at character 3"
    for encode in (tok.encode, tok.encode_array, tok.encode_with_offsets):
        with pytest.raises(ValueError, match=f"^text {place}"):
            encode(text)
    with pytest.raises(ValueError, match=rf"^texts\[2\] {place}"):
        tok.encode_batch(["one", "two", text])
    with pytest.raises(ValueError, match=rf"^texts\[1\] {place}"):
        Tokenizer.train(["one", text], kind=kind)
    with pytest.raises(ValueError, match="surrogate"):
        tok.token_to_id(surrogate)


def test_text_of_another_type(word: Tokenizer) -> None:
    wrong: Any
    for wrong in (b"one", None, 3, ["one"]):
        for method in (word.encode, word.encode_array, word.encode_with_offsets):
            with pytest.raises(TypeError, match=rf"^text must be a str, got {type(wrong).__name__}"):
                method(wrong)
        with pytest.raises(TypeError, match=r"^texts\[1\] must be a str"):
            word.encode_batch(["one", wrong])
        with pytest.raises(TypeError, match=r"^token must be a str"):
            word.token_to_id(wrong)
    with pytest.raises(TypeError, match=r"pass \[text\]"):
        word.encode_batch("one")


@pytest.mark.parametrize("allowed", ["<UNK>", "none", {"<UNK>", "<unk>"}, ["one"], [3]])
def test_bad_allowed_special(word: Tokenizer, allowed: Any) -> None:
    with pytest.raises(ValueError, match="allowed_special"):
        word.encode("one", allowed_special=allowed)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([6, 9], ValueError, "id 9 at position 1 is not in the vocabulary: ids are 0 to 8"),
        ([-1], ValueError, "id -1 at position 0"),
        ([2**40], ValueError, f"id {2**40} at position 0"),
        ([2**70], ValueError, "not in the vocabulary"),
        (np.array([2**64 - 1], dtype=np.uint64), ValueError, "at position 0"),
        ([6.0], TypeError, "must be integers, got float64"),
        (np.array([6], dtype=np.float32), TypeError, "must be integers, got float32"),
        ([True], TypeError, "must be integers, got bool"),
        (["6"], TypeError, "must be integers"),
        ([None], TypeError, "must be integers"),
        (6, TypeError, "a list or an array of integers, got int"),
        ("6", TypeError, "a list or an array of integers, got str"),
        (b"6", TypeError, "a list or an array of integers, got bytes"),
        ([[6, 7]], ValueError, r"one dimension, got an array of shape \(1, 2\)"),
        (np.zeros((2, 2), dtype=np.int64), ValueError, "one dimension"),
        (np.int64(6), TypeError, "a list or an array"),
        ([[6], [6, 7]], TypeError, "must be integers"),
    ],
)
def test_ids_that_are_none(word: Tokenizer, ids: Any, error: Any, message: str) -> None:
    for method in (word.decode, word.decode_bytes):
        with pytest.raises(error, match=message):
            method(ids)


def test_id_to_token_outside_of_the_vocabulary(word: Tokenizer) -> None:
    for i in (-1, 9, 2**80):
        with pytest.raises(ValueError, match=f"id {i} is not in the vocabulary: ids are 0 to 8"):
            word.id_to_token(i)
    with pytest.raises(TypeError):
        word.id_to_token("one")  # type: ignore[arg-type]


def test_a_tokenizer_is_not_made_by_calling_its_class() -> None:
    with pytest.raises(TypeError, match=r"Tokenizer\.train"):
        Tokenizer("word")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------- files


def document(kind: str, tmp_path: Path, special: list[str] | None = None) -> dict[str, Any]:
    tok = Tokenizer.train(["one two three"], kind=kind, special_tokens=special)
    loaded: dict[str, Any] = json.loads(tok.save(tmp_path / "good").read_text(encoding="utf-8"))
    return loaded


def refused(tmp_path: Path, content: str | bytes) -> str:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert message.isprintable(), ascii(message)
    return message.removeprefix(f"{file}: ")


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="no tokenizer at "):
            Tokenizer.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\x00\x01", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[]", "is not a tokenizer"),
        (b"null", "is not a tokenizer"),
        (b"{}", "is not a tokenizer"),
        (b'{"model": []}', "is not a tokenizer"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"model": {"vocab": {"a": 1, "a": 2}}}', "'a' appears twice"),
        (b'{"model": {"vocab": {"a": NaN}}}', "NaN"),
        (b'{"model": {"vocab": {"a": 1' + b"0" * 10_000 + b"}}}", "not valid JSON"),
    ],
)
def test_what_is_no_tokenizer(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, content)


def test_a_file_too_large(tmp_path: Path) -> None:
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(1 << 32)  # a hole: no disk, no memory
    with pytest.raises(CheckpointError, match="has 4294967296 bytes, more than"):
        Tokenizer.load(tmp_path)


def edit(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path of keys."""

    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


ADDED = {"id": 9, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("word", edit("version", to="2.0"), "version '2.0'"),
        ("word", edit("extra", to=1), "'extra', which is unknown"),
        ("word", edit("truncation", to=[3]), "has the truncation [3], where null or an object"),
        ("word", edit("padding", to="BatchLongest"), "has the padding 'BatchLongest', where null or an object"),
        ("word", edit("normalizer", to=None), "pre_tokenizer"),
        ("word", edit("normalizer", to={"type": "NFC"}), "has the normalizer {'type': 'NFC'}"),
        ("char", edit("normalizer", to={"type": "Lowercase"}), "has the pre_tokenizer"),
        ("word", edit("pre_tokenizer", to={"type": "Whitespace"}), "has the pre_tokenizer {'type': 'Whitespace'}"),
        ("word", edit("pre_tokenizer", "pattern", to={"Regex": r"\w+"}), "has the pre_tokenizer"),
        ("word", edit("pre_tokenizer", "invert", to=False), "has the pre_tokenizer"),
        ("char", edit("pre_tokenizer", "behavior", to="Removed"), "has the pre_tokenizer"),
        ("byte", edit("pre_tokenizer", to={"type": "Whitespace"}), "a pre_tokenizer of type 'Whitespace'"),
        ("byte", edit("pre_tokenizer", "add_prefix_space", to=True), "has the pre_tokenizer"),
        ("word", edit("decoder", to={"type": "Fuse"}), "has the decoder"),
        ("char", edit("decoder", to=None), "has the decoder None"),
        ("word", edit("post_processor", to={"type": "BertProcessing"}), "has the post_processor"),
        ("word", edit("post_processor", "single", to=[]), "adds tokens to a text"),
        ("word", edit("post_processor", "special_tokens", to=None), "without special_tokens"),
        ("word", edit("post_processor", "special_tokens", to={"<PAD>": {"id": "<PAD>", "ids": [3]}}), "disagrees"),
        ("word", edit("post_processor", "special_tokens", to={"<none>": {}}), "disagrees"),
        ("word", edit("model", "type", to="WordPiece"), "a model of type 'WordPiece'"),
        ("word", edit("model", "type", to=None), "a model of type None"),
        ("word", edit("model", "unk_token", to="[UNK]"), "unk_token = '[UNK]'"),
        ("word", edit("model", "dropout", to=0.5), "dropout = 0.5"),
        ("byte", edit("model", "merges", to=[["a", "b"]]), "does not split the text"),
        ("byte", edit("model", "dropout", to=0.1), "dropout = 0.1"),
        ("byte", edit("model", "fuse_unk", to=0), "fuse_unk = 0"),
        ("byte", edit("model", "ignore_merges", to=True), "ignore_merges = True"),
        ("byte", edit("model", "unk_token", to="a"), "unk_token = 'a'"),
        ("byte", edit("model", "vocab", to={"a": 0}), "no token 'Ā' for byte 0"),
        ("byte", edit("model", "vocab", "more", to=256), "got 1 other tokens"),
        ("word", edit("model", "vocab", to={}), "has no vocabulary"),
        ("word", edit("model", "vocab", to=["one"]), "has no vocabulary"),
        ("word", edit("model", "vocab", to=None), "has no vocabulary"),
        ("word", edit("model", "vocab", "one", to=7), "the id 7 to both"),
        ("word", edit("model", "vocab", "one", to=9), "gives 'one' the id 9, but has 9 tokens"),
        ("word", edit("model", "vocab", "one", to=2**63), "the id 9223372036854775808"),
        ("word", edit("model", "vocab", "one", to=-1), "the id -1, which is not a whole number"),
        ("word", edit("model", "vocab", "one", to=True), "the id True, which is not a whole number"),
        ("word", edit("model", "vocab", "one", to=6.0), "the id 6.0, which is not a whole number"),
        ("word", edit("model", "vocab", "one", to="6"), "the id '6', which is not a whole number"),
        ("word", edit("model", "vocab", "", to=9), "the token '', which is not a text"),
        ("word", edit("model", "vocab", "\ud800", to=9), r"the token '\ud800', which is not a text"),
        ("word", edit("added_tokens", to={}), "added_tokens that are not a list"),
        ("word", edit("added_tokens", to=[7]), "the added token 7"),
        ("word", edit("added_tokens", to=[{**ADDED, "special": False}]), "'<x>', which is not special"),
        ("word", edit("added_tokens", to=[{**ADDED, "lstrip": True}]), "'<x>' with lstrip"),
        ("word", edit("added_tokens", to=[{**ADDED, "normalized": True}]), "'<x>' with normalized"),
        ("word", edit("added_tokens", to=[{**ADDED, "id": 12}]), "'<x>' the id 12, but has 10 tokens"),
        ("word", edit("added_tokens", to=[ADDED, {**ADDED, "id": 10}]), "'<x>' the ids 9 and 10"),
        ("word", edit("added_tokens", to=[{**ADDED, "content": "<PAD>"}]), "'<PAD>' the ids 0 and 9"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(
    kind: str, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    bad = copy.deepcopy(document(kind, tmp_path))
    change(bad)
    assert message in refused(tmp_path, json.dumps(bad))


def test_a_truncated_file_never_loads(tmp_path: Path) -> None:
    whole = Tokenizer.train(["one two é"], kind="char").save(tmp_path).read_bytes()
    for size in range(0, len(whole) - 1, 7):
        refused(tmp_path, whole[:size])


@given(st.data())
def test_a_damaged_file_loads_as_some_tokenizer_or_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    content = bytearray(Tokenizer.train(["one é two"], kind=kind).save(tmp_path).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "tokenizer.json").write_bytes(content)
    try:
        tok = Tokenizer.load(tmp_path)
    except CheckpointError:
        return
    assert tok.encode_with_offsets("one <PAD> é")[1] or tok.special_tokens is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 300) | st.sampled_from(["A", "<UNK>", "a", "Lowercase", "", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "id", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.data())
def test_wrong_types_anywhere_are_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    bad = document(data.draw(st.sampled_from(KINDS)), tmp_path, special=["<UNK>", "<x>"])
    where: Any = bad
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], (dict, list)) or not where[key] or data.draw(st.booleans()):
            where[key] = data.draw(JSON)
            break
        where = where[key]
    (tmp_path / "tokenizer.json").write_text(json.dumps(bad), encoding="utf-8")
    try:
        Tokenizer.load(tmp_path).encode("one <x>", allowed_special="all")
    except CheckpointError as error:
        assert str(tmp_path) in str(error)
    except ValueError as error:
        assert "is not in the vocabulary" in str(error) or "allowed_special" in str(error)


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders")
def test_saving_where_nothing_can_be_written(word: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file"):
        word.save(tmp_path / "file")
    with pytest.raises(CheckpointError, match="file"):
        word.save(tmp_path / "file" / "tokenizer.json")
    assert (tmp_path / "file").read_text() == "mine"
    if os.geteuid() != 0:  # root may write everywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(CheckpointError, match="closed"):
            word.save(closed)
