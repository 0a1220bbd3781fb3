"""Rank files of tiktoken, and vocab.json and merges.txt of GPT-2: read exactly; an error names the bad line."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from soma_native import CheckpointError
from soma_native.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat, and the hat's thatch 123 456\n\n  aaaaaaaaaaaa abababab é中文 don't",
    "aaa aaaa banana" * 3,
]
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def ranks_of(texts: list[str], size: int = 420) -> dict[bytes, int]:
    """Learned merges, then tokens that no merge reaches and tokens that many pairs merge to."""
    tok = Tokenizer.train(texts, kind="bpe", vocab_size=size)
    tokens = [tok.decode_bytes([i]) for i in range(tok.vocab_size - 1)]
    extra = [b"qqq", b"zxzx", b" the cat", b"aaaaa", b"aaaaaaa", b"ababa", b"abab", b"zx", b"zxz", b"\xc3\xa9\xe4"]
    return {token: i for i, token in enumerate(dict.fromkeys([*tokens, *extra]))}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


def rank_file(folder: Path, texts: list[str]) -> Path:
    return write_ranks(folder / "some.tiktoken", ranks_of(texts))


# ------------------------------------------------------------------------------------------------------------- tiktoken


@given(
    st.text()
    | st.lists(st.sampled_from(["a", "b", "ab", "z", "x", " the", " cat", "q", "'s", "\n", "<|end|>"])).map("".join)
)
def test_ids_are_those_of_tiktoken(both: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    tok, theirs = both
    assert tok.encode(text) == theirs.encode(text, disallowed_special=())
    assert tok.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tiktoken.Encoding]:
    ranks = ranks_of(TEXTS)
    special = {"<|end|>": 1000}
    path = write_ranks(tmp_path_factory.mktemp("ranks") / "r.tiktoken", ranks)
    theirs = tiktoken.Encoding("r", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens=special), theirs


def test_line_ends_blank_lines_and_order_do_not_matter(tmp_path: Path) -> None:
    ranks = ranks_of(TEXTS)
    one = Tokenizer.from_tiktoken(write_ranks(tmp_path / "a", ranks), pattern="gpt2")
    lines = (tmp_path / "a").read_bytes().splitlines()
    (tmp_path / "b").write_bytes(b"\r\n\r\n".join(reversed(lines)))
    two = Tokenizer.from_tiktoken(tmp_path / "b", pattern="gpt2")
    assert one.encode(TEXTS[0]) == two.encode(TEXTS[0])


def test_a_special_token_fills_the_gap_that_it_leaves(tmp_path: Path) -> None:
    """As in p50k_base, where the id of <|endoftext|> is between the ranks."""
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 257}
    path = write_ranks(tmp_path / "gap", ranks)
    tok = Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens={"<|end|>": 256})
    assert tok.encode("ab<|end|>", allowed_special="all") == [257, 256]
    saved = tok.save(tmp_path / "saved")
    assert tokenizers.Tokenizer.from_file(str(saved)).encode("ab<|end|>").ids == [257, 256]
    with pytest.raises(CheckpointError, match="no line with the rank 256, but line 257 has the rank 257"):
        Tokenizer.from_tiktoken(path, pattern="gpt2")


def line(text: bytes, at: int = 5) -> Callable[[list[bytes]], None]:
    return lambda lines: lines.__setitem__(at, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (line(b"YQ=="), "line 6 is b'YQ==', where a token in base64 and its rank are expected"),
        (line(b"YQ== 5 6"), "line 6 is b'YQ== 5 6'"),
        (line(b"\xff\xfe"), r"line 6 is b'\xff\xfe'"),
        (line(b"Y!== 5"), "line 6 has the token b'Y!==', which is not base64"),
        (line(b"YQ= 5"), "line 6 has the token b'YQ=', which is not base64"),
        (line(b"YQ== five"), "line 6 has the rank b'five', which is not a whole number"),
        (line(b"YQ== -5"), "line 6 has the rank b'-5'"),
        (line(b"YQ== 5.0"), "line 6 has the rank b'5.0'"),
        (line(b"YQ== " + b"9" * 5000), "line 6 has the rank b'999"),
        (line(b"YQ== 4"), "line 6 gives the rank 4, like line 5"),
        (line(b"BA== 5"), r"line 6 gives the token b'\x04', like line 5"),
        (line(b"BQ== 300"), "no line with the rank 5, but line 7 has the rank 6"),
        (line(b"BQ== 16777216"), "no line with the rank 5"),
        (line(b"aGVsbG8= 5"), r"no token for the byte 0x05 (b'\x05')"),
        (line(b"= 5"), "line 6 has the token b'=', which is not base64"),
        (list.clear, "has no line with a token and its rank"),
    ],
)
def test_a_damaged_rank_file_names_line_and_fault(
    change: Callable[[list[bytes]], None], message: str, tmp_path: Path
) -> None:
    lines = [base64.b64encode(bytes([i])) + b" %d" % i for i in range(256)]
    change(lines)
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_tiktoken(path, pattern="cl100k")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pattern": "gpt5"}, ValueError, "pattern must be one of gpt2, cl100k, llama3, qwen2, o200k, nanochat"),
        ({"pattern": "gpt2", "special_tokens": {"<e>": 7}}, ValueError, "line 8 of"),
        ({"pattern": "gpt2", "special_tokens": {"<e>": -1}}, ValueError, "'<e>'] must be from 0"),
        ({"pattern": "gpt2", "special_tokens": {"<e>": 1 << 24}}, ValueError, "'<e>'] must be from 0"),
        ({"pattern": "gpt2", "special_tokens": {"<e>": 300, "<f>": 300}}, ValueError, "ids that differ"),
        ({"pattern": "gpt2", "special_tokens": {"<e>": "7"}}, TypeError, "'<e>'] must be an integer, got '7'"),
        ({"pattern": "gpt2", "special_tokens": {7: 300}}, TypeError, "a dict of text to id"),
        ({"pattern": "gpt2", "special_tokens": ["<e>"]}, TypeError, "a dict of text to id, got list"),
        ({"pattern": "gpt2", "special_tokens": {"": 300}}, ValueError, "empty"),
    ],
)
def test_arguments_of_from_tiktoken(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = write_ranks(tmp_path / "ranks", {bytes([i]): i for i in range(256)})
    with pytest.raises(error) as caught:
        Tokenizer.from_tiktoken(path, **arguments)
    assert message in str(caught.value)


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_tiktoken(tmp_path / "nowhere", pattern="gpt2")
    with pytest.raises(CheckpointError, match="is a folder"):
        Tokenizer.from_tiktoken(tmp_path, pattern="gpt2")
    with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
        (tmp_path / "vocab.json").write_text("{}")
        Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")


# ---------------------------------------------------------------------------------------------------------------- GPT-2


def gpt2_files(folder: Path) -> tuple[Path, Path]:
    tok = Tokenizer.train(TEXTS, kind="bpe", vocab_size=320)
    document = json.loads(tok.save(folder / "t.json").read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"] | {"<|endoftext|>": tok.vocab_size - 1}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = "".join(f"{merge}\n" for merge in document["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return folder / "vocab.json", folder / "merges.txt"


@given(text=st.text() | st.lists(st.sampled_from(["the", " cat", "a", "'s", "\n", "<|endoftext|>"])).map("".join))
def test_gpt2_files_give_the_ids_that_tokenizers_gives(gpt2: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    tok, theirs = gpt2
    assert tok.encode(text, allowed_special="all") == theirs.encode(text).ids
    assert tok.special_tokens == ("<|endoftext|>",)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    paths = gpt2_files(tmp_path_factory.mktemp("gpt2"))
    theirs = tokenizers.ByteLevelBPETokenizer.from_file(*map(str, paths))
    theirs.add_special_tokens(["<|endoftext|>"])
    return Tokenizer.from_gpt2(*paths), theirs


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "merges.txt",
            lambda text: text.replace(b"\n", b"\nq j\n", 1),
            "line 2 has the merge 'q' 'j', but 'qj' is not",
        ),
        (
            "merges.txt",
            lambda text: text.replace(b"\n", b"\nabc\n", 1),
            "line 2 has the merge ['abc'], where two tokens",
        ),
        ("merges.txt", lambda text: text + text.split(b"\n")[1] + b"\n", "like line 2"),
        ("merges.txt", lambda text: text + b"\xff", "is not UTF-8: byte"),
        ("vocab.json", lambda text: text[:-5], "is not valid JSON"),
        ("vocab.json", lambda text: b"[1]", "has no vocabulary"),
        ("vocab.json", lambda text: text.replace(b'"a": 97', b'"a": 98'), "the id 98 to both"),
        ("vocab.json", lambda text: text.replace(b'"a": 97', b'"a": "97"'), "'a' the id '97', which is not a whole"),
        ("vocab.json", lambda text: text.replace(b'"a": 97', b'"b": 97'), "'b' appears twice"),
        ("vocab.json", lambda text: text.replace(b'"a": 97', b'"zz": 97'), "'a' is not in the vocabulary"),
    ],
)
def test_damaged_gpt2_files_name_the_fault(
    name: str, change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    vocab, merges = gpt2_files(tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_gpt2(vocab, merges)
    assert message in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- bombs


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 30_000_000,
        b"[" + b"[]," * 10_000_000 + b"[]]",
        b'{"model": [' + b"{}," * 10_000_000 + b"{}]}",
        b"[" + b"1," * 20_000_000 + b"1]",
        b'{"model": {"vocab": {"a": 1' + b"0" * 1_000_000 + b"}}}",
        b'{"model": {"type": "BPE", "merges": [], "vocab": {"a": 1e400}}}',
        b'{"model": {"type": "BPE", "merges": [], "vocab": {"a": 16777215}}}',
        b'{"' + b"k" * 5_000_000 + b'": 1, "' + b"k" * 5_000_000 + b'": 1}',
    ],
    ids=["nesting", "lists", "objects", "numbers", "long number", "infinity", "far id", "long key twice"],
)
def test_a_bomb_is_refused_within_a_few_times_its_size(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    assert peak_of(lambda: Tokenizer.load(path)) < 5 * len(content) + (1 << 20)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(path)
    assert len(str(caught.value)) < 1000


def test_rank_files_of_nothing_but_line_ends_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken"
    path.write_bytes(b"\n" * 2_000_000)
    assert peak_of(lambda: Tokenizer.from_tiktoken(path, pattern="gpt2")) < 4_500_000
    with open(path, "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(CheckpointError, match="has 8589934592 bytes, more than the"):
        Tokenizer.from_tiktoken(path, pattern="gpt2")
