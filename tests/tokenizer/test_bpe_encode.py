"""Byte-level BPE gives the ids of tiktoken and of Hugging Face `tokenizers`, with vocabularies that are made here."""

from __future__ import annotations

import base64
import gc
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

import soma_native as soma
from oracles.bpe_patterns import PATTERNS, PIECES, random_text
from soma_native import _core
from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary
from soma_native.tokenizer.tokenizer import Tokenizer

CORPUS = (Path(soma.__file__).parent / "showcase" / "corpus.txt").read_text(encoding="utf-8")
MIXED = CORPUS + "".join(PIECES) * 3 + " Привет, мир! 日本語のテキスト。 नमस्ते दुनिया 12345 HTMLParser don't" * 40
ALPHABET = _core.byte_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}
SINGLE = [bytes([i]) for i in range(256)]
SPECIAL = {"<|end|>": 3000, "<|a|>": 3005, "é<": 3001}  # with gaps


def raw(token: str) -> bytes:
    return bytes(BYTE_OF[c] for c in token)


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    """2,000 tokens that `tokenizers` learns from the showcase and from other scripts."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=ALPHABET, show_progress=False)
    theirs.train_from_iterator([MIXED], trainer)
    return theirs


@pytest.fixture(scope="module")
def tokens(trained: tokenizers.Tokenizer) -> list[bytes]:
    vocab = trained.get_vocab()
    return [raw(token) for token in sorted(vocab, key=vocab.__getitem__)]


def pair_of(pattern: str, tokens: list[bytes], special: dict[str, int]) -> tuple[Tokenizer, tiktoken.Encoding]:
    ranks = {token: i for i, token in enumerate(tokens)}
    theirs = tiktoken.Encoding(pattern, pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer(BpeVocabulary(pattern, tokens, None, special).make()), theirs


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k"])
def both(request: pytest.FixtureRequest, tokens: list[bytes]) -> tuple[Tokenizer, tiktoken.Encoding]:
    return pair_of(request.param, tokens, SPECIAL)


# ------------------------------------------------------------------------------------------------------------- tiktoken


def test_ten_thousand_random_texts(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    tok, theirs = both
    source = random.Random(3)
    texts = [random_text(source) for _ in range(10_000)]
    expected = [theirs.encode_ordinary(text) for text in texts]
    assert tok.encode_batch(texts) == expected
    for text, ids in zip(texts[:2000], expected, strict=False):
        assert tok.encode(text) == ids
        assert tok.decode(ids) == text


def test_batches_of_all_sizes(both: tuple[Tokenizer, tiktoken.Encoding], threads: int) -> None:
    """Texts that share a queue, a task or a thread, empty texts, and one that is too long to share."""
    tok, _ = both
    source = random.Random(5)
    texts = [random_text(source) * source.choice([0, 0, 1, 1, 3, 40]) for _ in range(3000)]
    texts[1000:1000] = [""] * 300 + [MIXED * 400, "a" * 70_000, " " * 63, "é" * 32]
    assert len(texts[1300].encode()) > 1 << 20
    expected = [tok.encode(text) for text in texts]
    assert tok.encode_batch(texts) == expected
    assert tok.encode_batch(texts, allowed_special="all") == [tok.encode(text, allowed_special="all") for text in texts]
    ids, lengths = tok._encode_joined(texts, 0)
    assert lengths.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [i for row in expected for i in row]


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(both: tuple[Tokenizer, tiktoken.Encoding], was_on: bool) -> None:
    tok, _ = both
    (gc.enable if was_on else gc.disable)()
    try:
        rows = tok.encode_batch(["one two"] * 1000)
        tok.encode_with_offsets("one two")
        with pytest.raises(ValueError, match=r"texts\[1\]"):
            tok.encode_batch(["one", "\ud800"])
        assert gc.isenabled() == was_on
        assert all(map(gc.is_tracked, rows))
    finally:
        gc.enable()


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k"])
def test_every_pair_of_bytes_a_token(pattern: str) -> None:
    """The ids of such a vocabulary show the chunks: a byte pairs with its neighbour or not."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    random.Random(5).shuffle(pairs)
    tok, theirs = pair_of(pattern, [*SINGLE, *pairs], {})
    source = random.Random(6)
    for _ in range(3000):
        text = random_text(source)
        assert tok.encode(text) == theirs.encode_ordinary(text)


def test_long_text_and_long_chunks(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    tok, theirs = both
    source = random.Random(9)
    texts = [MIXED * 3, "a" * 700, "ab" * 400, " " * 500, "0123" * 99, "日本語" * 60, "\n" * 300]
    texts += ["".join(source.choices("abcdeth", k=n)) for n in (15, 16, 17, 63, 64, 65, 66, 255, 256, 257, 900)]
    for text in texts:
        assert tok.encode(text) == theirs.encode_ordinary(text)
        assert tok.encode(text) == tok.encode(text)  # the second time, the cache has it


@given(
    st.lists(st.sampled_from([*SPECIAL, "<", "end", "|>", "é", "x", "\n", "<|", " word"])).map("".join),
    st.sampled_from(["all", {"<|end|>"}, {"é<", "<|a|>"}, set()]),
)
def test_allowed_special(both: tuple[Tokenizer, tiktoken.Encoding], text: str, allowed: str | set[str]) -> None:
    tok, theirs = both
    ids = theirs.encode(text, allowed_special=allowed, disallowed_special=())
    assert tok.encode(text, allowed_special=allowed) == ids
    assert tok.encode_array(text, allowed_special=allowed).tolist() == ids
    assert tok.decode_bytes(ids) == theirs.decode_bytes(ids)


@given(st.lists(st.integers(0, 1500), max_size=30))
def test_any_ids_decode(both: tuple[Tokenizer, tiktoken.Encoding], ids: list[int]) -> None:
    tok, theirs = both
    assert tok.decode_bytes(ids) == theirs.decode_bytes(ids)
    assert tok.decode(ids) == theirs.decode(ids, errors="replace")
    assert tok.decode(np.array(ids, np.uint32)) == tok.decode(np.array(ids, np.int16)) == tok.decode(tuple(ids))


def test_a_rank_file(tokens: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "own.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    tok = Tokenizer.from_tiktoken(path, pattern="cl100k", special_tokens={"<|end|>": 2500})
    expected = pair_of("cl100k", tokens, {"<|end|>": 2500})[1]
    assert tok.encode(MIXED) == expected.encode_ordinary(MIXED)
    assert (tok.kind, tok.vocab_size, tok.special_tokens) == ("bpe", 2501, ("<|end|>",))


# ----------------------------------------------------------------------------------------------------------- tokenizers


def test_the_files_of_gpt2(trained: tokenizers.Tokenizer, tmp_path: Path) -> None:
    trained.model.save(str(tmp_path))
    tok = Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    source = random.Random(4)
    for text in [MIXED, *(random_text(source) for _ in range(2000))]:
        expected = trained.encode(text)
        assert tok.encode(text) == expected.ids
        assert tok.decode(expected.ids) == text
    assert tok.id_to_token(tok.encode(" the")[0]) == trained.id_to_token(trained.encode(" the").ids[0]) == "Ġthe"
    assert tok.token_to_id("Ġthe") == trained.token_to_id("Ġthe")
    assert tok.token_to_id("no such token") is None and tok.token_to_id("日") is None


def test_merges_alone_and_whole_chunks_first() -> None:
    """A token that no merges lead to is found only where whole chunks are looked up."""
    tokens = [*SINGLE, b"ab", b"bc", b"abc"]
    a, b, c = (ord(x) for x in "abc")
    merges = [(b, c), (a, b), (256, c)]
    assert Tokenizer(BpeVocabulary("gpt2", tokens, merges).make()).encode("abc ab") == [a, 257, 32, 256]
    assert Tokenizer(BpeVocabulary("gpt2", tokens, merges, {}, True).make()).encode("abc ab") == [258, 32, 256]
    assert Tokenizer(BpeVocabulary("gpt2", tokens).make()).encode("abcb") == [258, b]


# ------------------------------------------------------------------------------------------------------------ reference


def reference(chunk: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The definition: the pair of lowest rank merges, the leftmost among equals, until no pair has a rank."""
    parts = [bytes([byte]) for byte in chunk]
    while True:
        found = [(ranks[parts[i] + parts[i + 1]], i) for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]
        if not found:
            return [ranks[part] for part in parts]
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@given(
    st.lists(st.text("ab", min_size=2, max_size=6), unique=True, max_size=25),
    st.lists(st.text("abc", min_size=1, max_size=150), min_size=1, max_size=4),
)
def test_any_ranks_even_those_that_no_training_gives(longer: list[str], chunks: list[str]) -> None:
    """Short and long chunks, also where a merge makes a pair of lower rank than its own."""
    tokens = [*SINGLE, *(token.encode() for token in longer)]
    ranks = {token: i for i, token in enumerate(tokens)}
    tok = Tokenizer(BpeVocabulary("gpt2", tokens).make())
    for chunk in chunks:
        whole = ranks.get(chunk.encode())
        assert tok.encode(chunk) == ([whole] if whole is not None else reference(chunk.encode(), ranks))


@pytest.mark.parametrize("text", ["a", " ", "1", "ab", "\n", "中", "aA", "' ", "the"])
def test_a_megabyte_of_one_thing(both: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    """With quadratic time this test would not end."""
    tok, _ = both
    long = text * (1_000_000 // len(text))
    assert tok.decode(tok.encode_array(long)) == long


# ------------------------------------------------------------------------------------------------------------- threads


def test_threads_do_not_change_a_long_text(both: tuple[Tokenizer, tiktoken.Encoding], threads: int) -> None:
    tok, theirs = both
    text = MIXED * (1_500_000 // len(MIXED) + 1)
    ids = tok.encode_array(text)
    assert ids.dtype == np.uint32 and ids.tolist() == theirs.encode_ordinary(text)
    _, offsets = tok.encode_with_offsets(text)
    assert len(offsets) == len(ids) and offsets[-1][1] == len(text)


def test_callers_in_many_threads(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    tok, theirs = both
    source = random.Random(8)
    texts = [random_text(source) for _ in range(300)]
    expected = [theirs.encode_ordinary(text) for text in texts]
    results: list[list[list[int]]] = [[] for _ in range(6)]

    def work(into: list[list[int]]) -> None:
        into += [tok.encode(text) for text in texts]

    callers = [threading.Thread(target=work, args=(into,)) for into in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(result == expected for result in results)


# -------------------------------------------------------------------------------------------------------------- offsets


@given(st.lists(st.sampled_from([*PIECES, " the", "<|end|>"]), max_size=20).map("".join))
def test_offsets_are_those_of_the_characters_that_a_token_has_bytes_of(
    both: tuple[Tokenizer, tiktoken.Encoding], text: str
) -> None:
    tok, _ = both
    ids, offsets = tok.encode_with_offsets(text, allowed_special="all")
    assert ids == tok.encode(text, allowed_special="all")
    starts = np.cumsum([0, *(len(c.encode()) for c in text)])
    at = 0
    for i, (begin, end) in zip(ids, offsets, strict=True):
        size = len(tok.decode_bytes([i]))
        assert starts[begin] <= at < starts[begin + 1] and starts[end - 1] < at + size <= starts[end]
        at += size
    assert at == len(text.encode())


# --------------------------------------------------------------------------------------------------------------- errors


def test_ids_in_gaps_are_no_ids(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    tok, _ = both
    assert tok.vocab_size == 3006
    assert tok.decode([3000, 3005, 3001]) == "<|end|><|a|>é<"
    for i in (2999, 3002, 3006, -1):
        with pytest.raises(ValueError, match=f"id {i} at position 1 is not in the vocabulary"):
            tok.decode([3000, i])
        with pytest.raises(ValueError, match="is not in the vocabulary"):
            tok.id_to_token(i)
    assert tok.id_to_token(3001) == "é<" and tok.token_to_id("é<") == 3001
    with pytest.raises(TypeError, match="ids must be integers"):
        tok.decode([1, "a"])  # type: ignore[list-item]


def test_a_vocabulary_comes_back(tokens: list[bytes]) -> None:
    for merges in (None, [(97, 98), (98, 99)]):
        given = BpeVocabulary("o200k", [*SINGLE, b"ab", None, b"bc"], merges, {"<|end|>": 300}, merges is not None)
        got = BpeVocabulary.of(given.make())
        assert got.pattern == "o200k" and got.special_tokens == {"<|end|>": 300}
        assert got.tokens == [*given.tokens, *[None] * 42]
        assert got.ignore_merges == given.ignore_merges
        assert (got.merges is None) if merges is None else np.array_equal(got.merges, merges)
    with pytest.raises(ValueError, match="a tokenizer of kind 'byte' has no merges"):
        BpeVocabulary.of(_core.Tokenizer("byte", ALPHABET, []))


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (BpeVocabulary("p50k", SINGLE), "pattern must be 'gpt2'"),
        (BpeVocabulary("gpt2", SINGLE[:255]), "no token for the single byte 255"),
        (
            BpeVocabulary("gpt2", [*SINGLE, b"ab", b"ab"]),
            "token b'ab' is in the vocabulary twice, with the ids 256 and 257",
        ),
        (BpeVocabulary("gpt2", [*SINGLE, b""]), "token 256 is empty"),
        (BpeVocabulary("gpt2", SINGLE, [(97, 98)]), "merge 0 of ids 97 and 98 gives b'ab', which is not a token"),
        (BpeVocabulary("gpt2", SINGLE, [(97, 256)]), "merge 0 uses id 256, which is not an ordinary token"),
        (BpeVocabulary("gpt2", [*SINGLE, b"ab"], [(97, 98), (97, 98)]), "merge 1 of ids 97 and 98 is listed twice"),
        (BpeVocabulary("gpt2", SINGLE, None, {"<e>": 255}), "special token b'<e>' has the id 255 of an ordinary"),
        (BpeVocabulary("gpt2", SINGLE, None, {"": 256}), "special token 256 is empty"),
        (BpeVocabulary("gpt2", SINGLE, None, {"<e>": 1 << 24}), "id 16777216 of a special token is not within"),
        (BpeVocabulary("gpt2", SINGLE, [(-1, 98)]), "id -1 of a merge is not within"),
        (
            BpeVocabulary("gpt2", SINGLE, None, {"<e>": 256, "<f>": 256}),
            "special tokens b'<e>' and b'<f>' have the same id",
        ),
    ],
)
def test_what_is_wrong_with_a_vocabulary_is_said(vocabulary: BpeVocabulary, message: str) -> None:
    with pytest.raises(ValueError) as error:
        vocabulary.make()
    assert message in str(error.value)
