"""The tokenizer, kind by kind, against definitions that are written out here."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.interrupts import alarm, needs_timers
from soma_native import _core
from soma_native.data.token_store import TokenStore
from soma_native.tokenizer.tokenizer import Tokenizer

DEFAULT_SPECIAL = ("<PAD>", "<UNK>", "<START>", "<END>", "<BOS>", "<EOS>")
TEXTS = ["The cat sat on the mat.", "A dog, a cat: A DOG!", "naïve Ünïcode 42 x_y"]


def vocabulary(tok: Tokenizer) -> list[str]:
    return [tok.id_to_token(i) for i in range(tok.vocab_size)]


# ----------------------------------------------------------------------------------------------------------------- word


def test_words_are_ranked_by_frequency_then_first_appearance() -> None:
    tok = Tokenizer.train(["b a c a", "C d b", "d e"], kind="word")
    assert vocabulary(tok) == [*DEFAULT_SPECIAL, "b", "a", "c", "d", "e"]
    assert tok.special_tokens == DEFAULT_SPECIAL
    assert (tok.kind, tok.vocab_size) == ("word", 11)


def test_vocab_size_counts_special_tokens_and_drops_the_rarest() -> None:
    tok = Tokenizer.train(["a a a b b c"], kind="word", vocab_size=8)
    assert vocabulary(tok) == [*DEFAULT_SPECIAL, "a", "b"]
    assert tok.encode("c a B") == [1, 6, 7]


def test_the_default_size_of_a_word_vocabulary_is_3000() -> None:
    tok = Tokenizer.train([" ".join(f"w{i}" for i in range(4000))])
    assert tok.vocab_size == 3000
    assert tok.id_to_token(2999) == "w2993"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop", ["don", "t", "stop"]),
        ("İstanbul", ["i", "stanbul"]),  # lower case: "i" and a combining dot, which is not a letter
        ("aİb İ", ["ai", "b", "i"]),
        ("STRASSE Straße ẞ", ["strasse", "straße", "ß"]),
        ("ΌΔΟΣ ὈΔΟΣ", ["όδοσ", "ὀδοσ"]),  # no rule for the last sigma
        ("cafe\u0301s", ["cafe", "s"]),
        ("中文 한국어", ["中文", "한국어"]),
        ("a👍b 👩\u200d👧", ["a", "b"]),
        ("a\0b\r\nc\td", ["a", "b", "c", "d"]),
        ("_x_ __ 1_0", ["_x_", "__", "1_0"]),
        ("٣ Ⅷ ² ½", ["٣", "ⅷ", "²", "½"]),
        ("K Å", ["k", "å"]),  # Kelvin and Ångström signs
        ("", []),
        (" ,.!", []),
    ],
)
def test_what_a_word_is(text: str, words: list[str]) -> None:
    tok = Tokenizer.train([text + " zz yy"], kind="word", special_tokens=())
    assert sorted(vocabulary(tok)) == sorted({*words, "zz", "yy"})
    assert [tok.id_to_token(i) for i in tok.encode(text)] == words


def test_without_unk_a_strange_word_raises_and_says_where() -> None:
    tok = Tokenizer.train(["one two"], kind="word", special_tokens=["<s>"])
    with pytest.raises(ValueError, match=r"word 'Drei' at character 6 is not in the vocabulary.*<UNK>"):
        tok.encode("one, <Drei")
    with pytest.raises(ValueError, match=r"texts\[2\]: word 'x' at character 0 "):
        tok.encode_batch(["one", "two", "x", "y"])


def test_words_decode_with_spaces_and_without_special_tokens() -> None:
    tok = Tokenizer.train(TEXTS, kind="word")
    ids = [4, *tok.encode("The dog sat, Ünïcode!"), 1, 5, 0]
    assert tok.decode(ids) == "the dog sat ünïcode"
    assert tok.decode_bytes(ids) == "the dog sat ünïcode".encode()
    assert tok.decode([1, 0]) == "" == tok.decode([])


# ----------------------------------------------------------------------------------------------------------------- char


def test_characters_are_in_order_of_code_point() -> None:
    tok = Tokenizer.train(["hello\n", "😀é中\0\r"], kind="char")
    assert vocabulary(tok) == ["<UNK>", "<|endoftext|>", *sorted(set("hello\n😀é中\0\r"))]
    assert tok.encode("\0é😀Z") == [2, vocabulary(tok).index("é"), tok.vocab_size - 1, 0]
    assert tok.special_tokens == ("<UNK>", "<|endoftext|>")


def test_characters_without_special_tokens() -> None:
    tok = Tokenizer.train(["ba"], kind="char", special_tokens=())
    assert vocabulary(tok) == ["a", "b"]
    with pytest.raises(ValueError, match=r"character 'é' at character 2 is not in the vocabulary"):
        tok.encode("abé")
    with pytest.raises(ValueError, match=r"character '\\x00' at character 0 is not"):
        tok.encode("\0")


def test_fewer_characters_where_vocab_size_says_so() -> None:
    tok = Tokenizer.train(["zzzyyx" + "aab"], kind="char", vocab_size=5)
    assert vocabulary(tok) == ["<UNK>", "<|endoftext|>", "a", "y", "z"]  # the most frequent, in order of code point
    assert vocabulary(Tokenizer.train(["zzzyyaax"], kind="char", vocab_size=4)) == ["<UNK>", "<|endoftext|>", "y", "z"]


@given(st.text(min_size=2))
def test_characters_come_back(text: str) -> None:
    tok = Tokenizer.train([text, "ab"], kind="char", special_tokens=())
    assert vocabulary(tok) == sorted(set(text + "ab"))
    assert tok.decode(tok.encode(text)) == text
    assert len(tok.encode(text)) == len(text)


# ----------------------------------------------------------------------------------------------------------------- byte


@given(st.text())
def test_bytes_are_the_utf8_and_come_back(text: str) -> None:
    tok = Tokenizer.train(["ab"], kind="byte")
    assert tok.encode(text) == list(text.encode())
    assert tok.decode(tok.encode(text)) == text


@given(st.lists(st.integers(0, 257)))
def test_any_bytes_decode(ids: list[int]) -> None:
    tok = Tokenizer.train(["ab"], kind="byte", special_tokens=["<a>", "<|é|>"])
    assert (tok.vocab_size, tok.special_tokens) == (258, ("<a>", "<|é|>"))
    expected = b"".join(bytes([i]) if i < 256 else (b"<a>", "<|é|>".encode())[i - 256] for i in ids)
    assert tok.decode_bytes(ids) == expected
    assert tok.decode(ids) == expected.decode("utf-8", "replace")


def test_every_byte_has_a_text_of_its_own() -> None:
    tok = Tokenizer.train(["ab"], kind="byte")
    tokens = vocabulary(tok)
    assert len(set(tokens)) == 256
    assert [tok.token_to_id(t) for t in tokens] == list(range(256))
    assert (tokens[ord("A")], tokens[0], tokens[ord(" ")], tokens[0xAD]) == ("A", "Ā", "Ġ", "Ń")


# ------------------------------------------------------------------------------------------------------- special tokens


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_special_tokens_are_plain_text_unless_allowed(kind: str) -> None:
    tok = Tokenizer.train(["unk eos ab a <>|"], kind=kind, special_tokens=["<UNK>", "<eos>", "<eos>|"])
    special = {t: tok.token_to_id(t) for t in tok.special_tokens}
    text = "ab<eos>|<eos><UNK>a"
    assert not set(tok.encode(text)) & {special["<eos>"], special["<eos>|"]}
    assert tok.encode(text, allowed_special="all") == [
        *tok.encode("ab"), special["<eos>|"], special["<eos>"], special["<UNK>"], *tok.encode("a"),
    ]  # fmt: skip
    assert tok.encode(text, allowed_special={"<eos>"}) == [
        *tok.encode("ab"), special["<eos>"], *tok.encode("|"), special["<eos>"], *tok.encode("<UNK>a"),
    ]  # fmt: skip
    assert tok.encode(text, allowed_special=[]) == tok.encode(text)
    everything = tok.encode(text, allowed_special="all")
    assert tok.encode_array(text, allowed_special="all").tolist() == everything
    assert tok.encode_batch([text], allowed_special="all") == [everything]
    ids, offsets = tok.encode_with_offsets(text, allowed_special="all")
    assert ids == everything
    assert [text[a:b] for (a, b), i in zip(offsets, ids, strict=True) if i in special.values()] == [
        "<eos>|", "<eos>", "<UNK>",
    ]  # fmt: skip


def test_a_special_token_ends_a_word() -> None:
    tok = Tokenizer.train(["foo bar foobar"], kind="word", special_tokens=["<s>"])
    assert [tok.id_to_token(i) for i in tok.encode("foo<s>bar", allowed_special="all")] == ["foo", "<s>", "bar"]


# ------------------------------------------------------------------------------------------------------------- encoding


@given(st.lists(st.text(alphabet=st.sampled_from("aB é中😀İ\r\n\0_.1"), max_size=30), max_size=8))
def test_all_ways_to_encode_agree(texts: list[str]) -> None:
    for kind in ("word", "char", "byte"):
        tok = Tokenizer.train(TEXTS, kind=kind)
        batch = tok.encode_batch(iter(texts))
        for text, ids in zip(texts, batch, strict=True):
            assert ids == tok.encode(text) == tok.encode_array(text).tolist()
            same_ids, offsets = tok.encode_with_offsets(text)
            assert same_ids == ids
            assert len(offsets) == len(ids)
            assert all(0 <= a < b <= len(text) for a, b in offsets)
            if kind == "char":
                assert offsets == [(i, i + 1) for i in range(len(text))]
            elif kind == "byte":
                assert offsets == [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]
            else:
                assert [tok.encode(text[a:b]) for a, b in offsets] == [[i] for i in ids]


def test_encode_array_is_uint32() -> None:
    tok = Tokenizer.train(TEXTS, kind="char")
    array = tok.encode_array("cat")
    assert (array.dtype, array.shape, array.flags.writeable) == (np.uint32, (3,), True)
    assert tok.encode_array("").shape == (0,)


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_texts_longer_than_what_is_encoded_at_once(kind: str) -> None:
    """The core encodes 4 MiB at once. A cut must not change ids, and a run without a place to cut stays whole."""
    tok = Tokenizer.train(TEXTS, kind=kind)
    unit = "the cat é中😀 xyz_1 "
    text = unit * 250_000
    assert len(text.encode()) > 5 << 20
    np.testing.assert_array_equal(tok.encode_array(text), np.tile(tok.encode_array(unit), 250_000))
    solid = "é" * (5 << 19) + "b"
    assert len(tok.encode_array(solid)) == {"word": 1, "char": (5 << 19) + 1, "byte": (5 << 20) + 1}[kind]


def test_encode_batch_over_many_and_uneven_texts(threads: int) -> None:
    tok = Tokenizer.train(TEXTS, kind="word")
    texts = ["cat dog " * (i % 7) + "the" * (i == 500) for i in range(5000)] + ["", "mat " * 50_000]
    assert tok.encode_batch(texts) == [tok.encode(text) for text in texts]


def test_several_threads_at_once() -> None:
    tok = Tokenizer.train(TEXTS, kind="word")
    expected = tok.encode("the cat é sat " * 20_000)
    results: list[list[int]] = []
    workers = [threading.Thread(target=lambda: results.append(tok.encode("the cat é sat " * 20_000))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [expected] * 4


@needs_timers
@pytest.mark.parametrize("what", ["encode", "encode_batch", "store of one text", "store of many texts", "train"])
def test_a_signal_ends_a_long_call(what: str) -> None:
    """The signal comes long before the text ends; the core checks for it every 50 ms."""
    tok = Tokenizer.train(TEXTS, kind="word")
    text = "the cat É sat on a MAT " * 3_000_000
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: tok.encode_array(text),
        "encode_batch": lambda: tok.encode_batch([text[: 1 << 16]] * 4000),
        "store of one text": lambda: TokenStore.encode([text], tok),
        "store of many texts": lambda: TokenStore.encode([text[: 1 << 16]] * 4000, tok),
        "train": lambda: Tokenizer.train([text] * 4),
    }

    with alarm() as ring_soon:
        ring_soon()
        calls[what]()
    assert tok.decode(tok.encode("The cat!")) == "the cat"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_decode_takes_every_kind_of_integers(dtype: type[np.integer]) -> None:
    tok = Tokenizer.train(["ab"], kind="byte")
    ids = np.array([104, 105], dtype=dtype)
    assert tok.decode(ids) == tok.decode(ids.tolist()) == tok.decode(tuple(ids)) == tok.decode(iter(ids)) == "hi"
    assert tok.decode(np.array([104, 0, 105], dtype=dtype)[::2]) == "hi"
    assert tok.decode(np.empty(0, dtype)) == ""


def test_token_to_id() -> None:
    tok = Tokenizer.train(["one two"], kind="word")
    assert [tok.token_to_id(t) for t in ("<UNK>", "one", "One", "three", "")] == [1, 6, None, None, None]
    assert tok.id_to_token(np.int64(7)) == "two"


# ------------------------------------------------------------------------------------------------------------- training


def reference_words(texts: list[str]) -> list[str]:
    """For ASCII texts, where the definition of a word is short."""
    count: Counter[str] = Counter()  # keeps the order of first appearance, and most_common is stable
    for text in texts:
        count.update("".join(c.lower() if c.isalnum() or c == "_" else " " for c in text).split())
    return [word for word, _ in count.most_common()]


@given(st.lists(st.text(alphabet=st.sampled_from("abAB_1 .,\n"), max_size=40)))
def test_training_agrees_with_a_counter(texts: list[str]) -> None:
    expected = reference_words(texts)
    if len(expected) >= 2:
        assert vocabulary(Tokenizer.train(texts, kind="word", special_tokens=())) == expected


def test_training_does_not_depend_on_threads_or_on_how_the_corpus_is_divided(threads: int, tmp_path: Path) -> None:
    """Enough text for many tasks and rounds, with words that all appear equally often."""
    random = np.random.default_rng(5)
    words = [f"w{i}" for i in range(2000)]
    lines = [" ".join(random.permutation(words)) for _ in range(400)]
    expected = reference_words(lines)
    text = "\n".join(lines)
    (tmp_path / "all.txt").write_text(text)
    for i, line in enumerate(lines):
        (tmp_path / f"{i}.txt").write_text(line)
    limit = len(expected) + 6
    trained = [
        Tokenizer.train(lines, vocab_size=limit),
        Tokenizer.train((line for line in lines), vocab_size=limit),
        Tokenizer.train([text], vocab_size=limit),
        Tokenizer.train(tmp_path / "all.txt", vocab_size=limit),
        Tokenizer.train(str(tmp_path / "all.txt"), vocab_size=limit),
        Tokenizer.train([lines[0], *(tmp_path / f"{i}.txt" for i in range(1, 400))], vocab_size=limit),
    ]
    assert [vocabulary(tok)[6:] == expected for tok in trained] == [True] * 6


def test_texts_are_taken_as_they_come() -> None:
    """A stream may be longer than memory, so it must not become a list."""
    alive = 0
    most = 0

    class Text(str):
        def __new__(cls, text: str) -> Text:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, text)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[str]:
        for i in range(200):
            yield Text(f"word{i} " * 50_000)

    assert Tokenizer.train(stream()).vocab_size == 206
    assert most < 100


def test_a_str_in_a_list_is_a_text_even_where_a_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "corpus.txt").write_text("inside of it")
    monkeypatch.chdir(tmp_path)
    assert vocabulary(Tokenizer.train(["corpus.txt"]))[6:] == ["corpus", "txt"]
    assert "pass a Path" in caplog.text
    assert vocabulary(Tokenizer.train("corpus.txt"))[6:] == ["inside", "of", "it"]


@given(st.binary(max_size=12) | st.lists(st.sampled_from([b"a", b"\xc3", b"\xa9", b"\xe2\x82", b"\xed\xa0\x80",
       b"\xf0\x9f\x98", b"\x80", b"\xf4\x90", b"\xe0\x80", "€😀".encode(), b"abcdefgh"])).map(b"".join))  # fmt: skip
def test_invalid_utf8_is_found_where_python_finds_it(data: bytes) -> None:
    try:
        data.decode("utf-8")
        expected = -1
    except UnicodeDecodeError as error:
        expected = error.start
    assert _core.find_invalid_utf8(data) == expected


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
@pytest.mark.parametrize("special_tokens", [None, (), ["<a b>", '<"\\>', "<é😀>", "<UNK>", "<\n>"]])
def test_a_saved_tokenizer_comes_back(kind: str, special_tokens: list[str] | None, tmp_path: Path) -> None:
    tok = Tokenizer.train([*TEXTS, "\0\r\n\u2028\ufeff\U0010ffff"], kind=kind, special_tokens=special_tokens)
    for target, file in [
        (tmp_path, tmp_path / "tokenizer.json"),
        (tmp_path / "new" / "folder-1.0", tmp_path / "new" / "folder-1.0" / "tokenizer.json"),
        (tmp_path / "mine.json", tmp_path / "mine.json"),
    ]:
        assert tok.save(target) == file
        for path in (target, str(file)):
            again = Tokenizer.load(path)
            assert (again.kind, again.special_tokens) == (tok.kind, tok.special_tokens)
            assert vocabulary(again) == vocabulary(tok)
    before = file.read_bytes()
    Tokenizer.load(file).save(file)
    assert file.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "new", "tokenizer.json"]


def test_saving_replaces(tmp_path: Path) -> None:
    Tokenizer.train(["one two"]).save(tmp_path)
    Tokenizer.train(["ab"], kind="byte").save(tmp_path)
    assert Tokenizer.load(tmp_path).kind == "byte"
