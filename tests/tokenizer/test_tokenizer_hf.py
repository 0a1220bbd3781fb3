"""One file gives the ids of Hugging Face `tokenizers` on any text. Special tokens behave as in tiktoken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from soma_native import _core
from soma_native.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["word", "char", "byte"]
ALL_CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]

# Texts on which tokenizers make mistakes: case, marks, joiners, scripts without spaces, controls, special tokens.
AWKWARD = [
    "İ", "ı", "ß", "ẞ", "Σ", "ΑΣ ", "ς", "ſ", "\u212a", "\u212b", "ǅ", "Ⅷ", "Ⓐ", "ﬁ", "\u0345", "e\u0301", "\u0301",
    "a\u0307", "\u200d", "👩\u200d👧", "🇩🇪", "👍🏽", "中文", "한국어", "각", "ไทย", "हिन्दी", "עִברִית", "٣", "²", "½",
    "_", "\0", "\r\n", "\n", "\r", "\t", " ", "\u00a0", "\u2028", "\u0085", "\ufeff", "\ufffd", "\uffff",
    "\U0010ffff", "ꟊ", "Ა", "\u1c89", "\ua7ce", "\U00010d50", "\U00016ea0", "𝐀", "𞤀", "<UNK>", "<unk>", "<PAD>",
    "<é>", "Ġ", "A", "Word1",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=4), max_size=12).map("".join)
CORPUS = ["The word <UNK> and <PAD> pad unk i stanbul ß σ ς 中文 한국어 naïve e 42 _x_ 👩 ²½ ⅷ", "".join(AWKWARD)]


def both(tok: Tokenizer, folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(tok.save(folder)))


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    special = ["<UNK>", "<PAD>", "<é>"]
    tok = Tokenizer.train(CORPUS, kind=request.param, special_tokens=special)
    return tok, both(tok, tmp_path_factory.mktemp(request.param))


# ---------------------------------------------------------------------------------------------------------------- texts


@given(TEXTS)
def test_equal_ids_and_offsets_on_any_text(pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    tok, theirs = pair
    expected = theirs.encode(text)
    assert tok.encode_with_offsets(text) == (expected.ids, expected.offsets)
    assert tok.encode(text) == expected.ids
    assert tok.encode_array(text).tolist() == expected.ids


@given(st.lists(TEXTS, max_size=5))
def test_equal_batches(pair: tuple[Tokenizer, tokenizers.Tokenizer], texts: list[str]) -> None:
    tok, theirs = pair
    assert tok.encode_batch(texts) == [e.ids for e in theirs.encode_batch(texts)]


@given(TEXTS)
def test_equal_decoding_where_there_is_no_special_token(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    """For words and characters, `tokenizers` writes special tokens, and we leave them out."""
    tok, theirs = pair
    special = {tok.token_to_id(t) for t in tok.special_tokens}
    ids = [i for i in tok.encode(text) if i not in special]
    assert tok.decode(ids) == theirs.decode(ids)


@given(st.lists(st.integers(0, 255), max_size=20))
def test_equal_decoding_of_any_bytes(pair: tuple[Tokenizer, tokenizers.Tokenizer], ids: list[int]) -> None:
    tok, theirs = pair
    if tok.kind == "byte":
        assert tok.decode(ids) == theirs.decode(ids)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(2, 12))
def test_training_counts_the_words_that_tokenizers_finds(texts: list[str], size: int) -> None:
    lower = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}_]+"), "removed", invert=True)
    counts: dict[str, int] = {}
    for text in texts:
        for word, _ in split.pre_tokenize_str(lower.normalize_str(text)):
            counts[word] = counts.get(word, 0) + 1
    if len(counts) >= 2:
        tok = Tokenizer.train(texts, kind="word", vocab_size=size, special_tokens=())
        expected = sorted(counts, key=lambda word: -counts[word])[:size]  # stable: ties keep their order of appearance
        assert [tok.id_to_token(i) for i in range(tok.vocab_size)] == expected


# ------------------------------------------------------------------------------------------------------ all code points


@pytest.fixture(scope="module")
def every_word(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A vocabulary with a word for the lower case of every character."""
    tok = Tokenizer.train([" ".join(f"x{c}y" for c in ALL_CHARACTERS)], kind="word", vocab_size=1 << 21)
    assert tok.vocab_size > 100_000
    return tok, both(tok, tmp_path_factory.mktemp("every-word"))


def test_every_code_point_within_a_word(every_word: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    """Checks which code points belong to words, and their lower case."""
    tok, theirs = every_word
    texts = [" ".join(f"x{c}y" for c in ALL_CHARACTERS[i : i + 4096]) for i in range(0, len(ALL_CHARACTERS), 4096)]
    for text, expected in zip(texts, theirs.encode_batch(texts), strict=True):
        ids, offsets = tok.encode_with_offsets(text)
        assert ids == expected.ids
        assert offsets == expected.offsets


def test_every_code_point_beside_every_class(every_word: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    tok, theirs = every_word
    texts = ["".join(ALL_CHARACTERS[i : i + 4096]) for i in range(0, len(ALL_CHARACTERS), 4096)]
    neighbours = "aA1_ é中\u0301😀İ"
    texts += ["".join(c + neighbours[i % len(neighbours)] for i, c in enumerate(ALL_CHARACTERS[:20_000]))]
    for text, expected in zip(texts, theirs.encode_batch(texts), strict=True):
        assert tok.encode_with_offsets(text) == (expected.ids, expected.offsets)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_every_code_point_as_a_character(kind: str, tmp_path: Path) -> None:
    tok = Tokenizer.train(["".join(ALL_CHARACTERS[::7])], kind=kind)  # `tokenizers` is slow with a million tokens
    texts = ["".join(ALL_CHARACTERS[i : i + 4096]) for i in range(0, len(ALL_CHARACTERS), 4096)]
    for text, expected in zip(texts, both(tok, tmp_path).encode_batch(texts), strict=True):
        assert tok.encode(text) == expected.ids


def test_the_unicode_tables_are_what_their_generator_writes() -> None:
    """The classes of all code points, also of those that no kind of tokenizer uses."""
    script = ROOT / "tools" / "generate_unicode_tables.py"
    check = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    assert _core.unicode_versions() == ("16.0", "17.0")
    classes = _core.unicode_classes()
    assert [int(classes[ord(c)]) for c in "Aaǅʰ中\u03011 -"] == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert np.count_nonzero(classes[0xD800:0xE000]) == 0


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special_tokens", [None, [], ["<a b>", '<"\\>', "<é😀>", "<\n>"]])
def test_a_file_that_tokenizers_saved_again(kind: str, special_tokens: list[str] | None, tmp_path: Path) -> None:
    tok = Tokenizer.train(CORPUS, kind=kind, special_tokens=special_tokens)
    theirs = both(tok, tmp_path)
    theirs.save(str(tmp_path / "again.json"))
    again = Tokenizer.load(tmp_path / "again.json")
    assert (again.kind, again.special_tokens) == (tok.kind, tok.special_tokens)
    assert [again.id_to_token(i) for i in range(again.vocab_size)] == [
        theirs.id_to_token(i) for i in range(theirs.get_vocab_size())
    ]
    assert again.save(tmp_path).read_bytes() == tok.save(tmp_path / "first").read_bytes()


def make_theirs(kind: str) -> tokenizers.Tokenizer:
    """A tokenizer made with `tokenizers` alone, with special tokens added in its usual way."""
    if kind == "byte":
        theirs = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        theirs.decoder = decoders.ByteLevel()
    elif kind == "char":
        theirs = tokenizers.Tokenizer(models.WordLevel({"b": 0, "<UNK>": 1, "a": 2, "é": 3}, unk_token="<UNK>"))
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        theirs.decoder = decoders.Fuse()
    else:
        theirs = tokenizers.Tokenizer(models.WordLevel({"b": 0, "<UNK>": 1, "aé": 2}, unk_token="<UNK>"))
        theirs.normalizer = normalizers.Lowercase()
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}_]+"), "removed", invert=True)
    theirs.add_special_tokens(["<UNK>", "<PAD>", "<|é|>"])
    return theirs


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.lists(st.sampled_from(["a", "b", "é", " ", "<PAD>", "<|é|>", "<PAD", "<UNK>", "Aé"])).map("".join))
def test_a_file_that_tokenizers_made(kind: str, tmp_path: Path, text: str) -> None:
    """`tokenizers` finds special tokens in every text; here they must be allowed."""
    theirs = make_theirs(kind)
    theirs.save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.load(tmp_path)
    assert tok.kind == kind
    assert set(tok.special_tokens) == {"<PAD>", "<|é|>", "<UNK>"}
    assert tok.encode(text, allowed_special="all") == theirs.encode(text).ids
    theirs.encode_special_tokens = True
    if "<|é|>" not in text or kind != "byte":
        assert tok.encode(text) == theirs.encode(text).ids


# ------------------------------------------------------------------------------------------------------------- tiktoken


SPECIAL = ["<eos>", "<eos>x", "é<", "<|a|>"]


@given(
    st.lists(st.sampled_from([*SPECIAL, "<", "eos", ">", "é", "x", "\n", "<|", "|>"])).map("".join),
    st.sampled_from(["all", {"<eos>"}, {"é<", "<|a|>"}, {"<eos>x"}, set()]),
)
def test_allowed_special_as_tiktoken_means_it(text: str, allowed: str | set[str]) -> None:
    """Never allows "<eos>" with "<eos>x": where two start at one place, tiktoken may take either."""
    special = [t for t in SPECIAL if t != "<eos>x"] if allowed in ("all", {"<eos>"}) else SPECIAL
    theirs = tiktoken.Encoding(
        "bytes",
        pat_str=r"(?s).+",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={token: 256 + i for i, token in enumerate(special)},
    )
    tok = Tokenizer.train(["ab"], kind="byte", special_tokens=special)
    ids = theirs.encode(text, allowed_special=allowed, disallowed_special=())
    assert tok.encode(text, allowed_special=allowed) == ids
    assert tok.decode_bytes(ids) == theirs.decode_bytes(ids)


def test_the_file_is_plain_json_in_the_order_of_ids(tmp_path: Path) -> None:
    tok = Tokenizer.train(["é a"], kind="word")
    document = json.loads(tok.save(tmp_path).read_text(encoding="utf-8"))
    assert list(document["model"]["vocab"].items())[5:] == [("<EOS>", 5), ("é", 6), ("a", 7)]
    assert document["added_tokens"] == []
