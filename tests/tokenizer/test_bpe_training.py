"""Training byte-level BPE makes the merges of the definition, for any texts, sources and number of threads."""

from __future__ import annotations

import logging
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import rustbpe
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import soma_native as soma
from helpers.interrupts import alarm, needs_timers
from oracles import bpe_reference
from oracles.bpe_patterns import PATTERNS
from soma_native.tokenizer.bpe_vocabulary import BpeVocabulary

CORPUS = (Path(soma.__file__).parent / "showcase" / "corpus.txt").read_text(encoding="utf-8")
ROUND = 1 << 21  # bytes that one task counts in a round: kRoundBytes of chunk_counter.cpp


def trained(texts: Any, merges: int, **options: Any) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Tokens by id without the special ones, and merges."""
    special = options.setdefault("special_tokens", ())
    tokenizer = soma.Tokenizer.train(texts, kind="bpe", vocab_size=256 + merges + len(special), **options)
    vocabulary = BpeVocabulary.of(tokenizer._core)
    assert vocabulary.merges is not None
    tokens = [token for token in vocabulary.tokens if token is not None]
    return tokens, [(int(left), int(right)) for left, right in vocabulary.merges]


def expected(texts: list[str], merges: int, pattern: str = "gpt2", **options: Any) -> Any:
    return bpe_reference.train(bpe_reference.count_chunks(texts, pattern), merges, **options)


# ---------------------------------------------------------------------------------------------------------- the merges

# Few letters make pairs overlap and tie. Very different counts make the trainer lower its floor more than once.
WORDS = st.text(st.sampled_from("aab"), min_size=1, max_size=9)
REPEATED = st.tuples(WORDS, st.sampled_from([1, 1, 2, 3, 90, 7000])).map(lambda pair: (pair[0] + " ") * pair[1])
MIXED = st.text(st.sampled_from("aAbß語ẹ́ ..'s\n\t1٣/🙂"), max_size=40)


@given(st.lists(st.one_of(REPEATED, WORDS, MIXED), min_size=1, max_size=8), st.integers(0, 40), st.integers(1, 4))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_merges_are_those_of_the_definition(
    threads: int, pattern: str, texts: list[str], merges: int, min_frequency: int
) -> None:
    texts = [*texts, "ab"]
    ours = trained(texts, merges, pattern=pattern, min_frequency=min_frequency)
    assert ours == expected(texts, merges, pattern, min_frequency=min_frequency)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_real_text(threads: int, pattern: str) -> None:
    assert trained([CORPUS], 700, pattern=pattern) == expected([CORPUS], 700, pattern)


@pytest.mark.parametrize("run", ["a" * 5000, "ab" * 3000, "abaab" * 1500, "aaab" * 1200])
def test_one_long_chunk(run: str) -> None:
    assert trained([run], 60) == expected([run], 60)


def test_the_same_as_rustbpe() -> None:
    """rustbpe breaks ties as we do."""
    peer = rustbpe.Tokenizer()
    peer.train_from_iterator(iter([CORPUS]), 256 + 2000, pattern=PATTERNS["gpt2"])
    ranks = sorted(peer.get_mergeable_ranks(), key=lambda pair: pair[1])
    assert trained([CORPUS], 2000)[0] == [bytes(token) for token, _ in ranks]


def test_the_same_as_tokenizers() -> None:
    """With byte b written as U+0100 + b, its alphabet is in the order of bytes, and it breaks ties as we do."""
    chunks = bpe_reference.count_chunks([CORPUS], "gpt2")
    written = {chunk: "".join(chr(0x100 + byte) for byte in chunk) for chunk in chunks}
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.CharDelimiterSplit("|")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 2000, initial_alphabet=[chr(0x100 + b) for b in range(256)], show_progress=False
    )
    peer.train_from_iterator(("|".join([written[c]] * n) for c, n in chunks.items()), trainer)
    by_id = sorted(peer.get_vocab().items(), key=lambda pair: pair[1])
    assert trained([CORPUS], 2000)[0] == [bytes(ord(c) - 0x100 for c in token) for token, _ in by_id]


def test_a_merge_never_spells_a_special_token() -> None:
    texts = ["the theme of the thesis " * 3, "Ġthe"]
    special = ["the", "Ġth", "<|endoftext|>"]  # in a file, "Ġth" is how " th" is written
    reserved = {b"the", b" th", "Ġth".encode()}
    assert trained(texts, 20, special_tokens=special) == expected(texts, 20, reserved=reserved)
    tokenizer = soma.Tokenizer.train(texts, kind="bpe", vocab_size=279, special_tokens=special)
    assert tokenizer.special_tokens == tuple(special)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


# ------------------------------------------------------------------------------------------------------------ the texts


def test_ids_are_bytes_then_merges_then_special_tokens() -> None:
    tokenizer = soma.Tokenizer.train(["low lower lowest"], kind="bpe", vocab_size=260)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("bpe", 260)
    assert tokenizer.encode("low") == [257]
    assert tokenizer.encode("\x00é") == [0, 0xC3, 0xA9]
    assert tokenizer.special_tokens == ("<|endoftext|>",)
    assert tokenizer.token_to_id("<|endoftext|>") == 259


def test_texts_and_files_mixed(tmp_path: Path, threads: int) -> None:
    texts = ["one two", "", "three\r\nfour", "fünf 語 " * 50]
    for name, text in zip("bd", texts[1::2], strict=True):
        (tmp_path / name).write_bytes(text.encode())
    mixed = [texts[0], tmp_path / "b", texts[2], tmp_path / "d"]
    assert trained(mixed, 30) == trained(iter(texts), 30) == expected(texts, 30)
    assert trained(tmp_path / "d", 20) == trained(str(tmp_path / "d"), 20) == expected(texts[3:], 20)


def test_a_file_is_read_in_pieces_as_if_it_were_whole(tmp_path: Path, threads: int) -> None:
    """Characters of three bytes from an odd place on, so that borders between reads fall inside characters."""
    text = "x" + "語ではない、はず。 naïve 12345 \n\n" * (5 * ROUND // 48)
    path = tmp_path / "long.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert path.stat().st_size > 2 * ROUND * threads
    assert trained(path, 60) == trained([text], 60) == expected([text], 60)


def test_a_file_that_cannot_be_cut(tmp_path: Path, threads: int) -> None:
    """One chunk that is longer than a read."""
    size = 2 * ROUND * threads + 12345
    path = tmp_path / "long.txt"
    path.write_bytes(b"ab" * size)
    tokens, merges = trained(path, 3)
    assert merges == [(97, 98), (256, 256), (257, 257)]
    assert tokens[-1] == b"abababab"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_that_gives_a_little_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            for byte in text.encode():
                pipe.write(bytes([byte]))

    text = "añb 語 " * 300
    writer = threading.Thread(target=write)
    writer.start()
    ours = trained([path], 20)
    writer.join()
    assert ours == expected([text], 20)


@pytest.mark.parametrize("at", [0, 5, ROUND - 1, ROUND, 2 * ROUND - 2, 4 * ROUND + 7])
def test_a_file_that_is_not_utf8_names_the_byte(tmp_path: Path, threads: int, at: int) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"word " * (at // 5) + b"-" * (at % 5) + b"\xe9t\xe9 and more")
    with pytest.raises(ValueError, match=rf"latin1\.txt: not UTF-8 at byte {at} \(0xe9\): convert the file") as error:
        trained([path], 10)
    with pytest.raises(ValueError) as as_bytes:
        soma.Tokenizer.train([path], kind="byte")
    assert str(error.value) == str(as_bytes.value)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_file_that_ends_within_a_character(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes(b"some text " + "🙂".encode()[:cut])
    with pytest.raises(ValueError, match=r"cut\.txt: .* byte 10"):
        trained([path], 10)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: there is no such text file"):
        trained([tmp_path / "absent"], 10)
    with pytest.raises(ValueError, match="is a folder"):
        trained([tmp_path], 10)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=r"texts\[2\] has the lone surrogate U\+D800 at character 1"):
        trained(["fine", tmp_path / "file", "a\ud800"], 10)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str or an os\.PathLike, got int"):
        trained(["fine", 3], 10)


# ------------------------------------------------------------------------------------------- limits, warnings, progress


@pytest.mark.parametrize(
    ("size", "special", "least"), [(256, None, 257), (255, (), 256), (0, None, 257), (-3, ("<a>", "<b>"), 258)]
)
def test_a_vocabulary_holds_the_bytes_and_the_special_tokens(size: int, special: Any, least: int) -> None:
    with pytest.raises(ValueError, match=rf"vocab_size must be at least {least} for kind bpe .* got {size}"):
        soma.Tokenizer.train(["one two"], kind="bpe", vocab_size=size, special_tokens=special)
    smallest = soma.Tokenizer.train(["one two"], kind="bpe", vocab_size=least, special_tokens=special)
    assert smallest.encode("one") == [*b"one"]


@pytest.mark.parametrize(("texts", "has"), [([], "none"), (["", ""], "none"), (["a"], "only one")])
def test_a_corpus_with_nothing_to_learn(texts: list[str], has: str) -> None:
    with pytest.raises(ValueError, match=f"at least two bytes, and have {has}"):
        soma.Tokenizer.train(texts, kind="bpe")


@pytest.mark.parametrize(
    ("texts", "options", "made", "message"),
    [
        (["a\nb\nc"], {}, 0, "the texts have no more pairs"),  # single characters: no pair at all
        (["abc ab"], {}, 3, "the texts have no more pairs"),
        (["abc ab"], {"min_frequency": 2}, 1, "no more pairs seen 2 times"),
        (["abc ab"], {"min_frequency": 2**70}, 0, f"no more pairs seen {2**70} times"),
    ],
)
def test_fewer_merges_than_asked_for_are_told(
    caplog: pytest.LogCaptureFixture, texts: list[str], options: dict[str, int], made: int, message: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="soma_native"):
        tokenizer = soma.Tokenizer.train(texts, kind="bpe", vocab_size=300, **options)
    assert tokenizer.vocab_size == 257 + made
    assert [f"has {257 + made} ids, {43 - made} fewer" in r.getMessage() for r in caplog.records] == [True]
    assert caplog.records[0].getMessage().endswith(message)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="soma_native"):
        soma.Tokenizer.train(texts, kind="bpe", **options)  # no vocab_size: no warning
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pattern": "gpt3"}, ValueError, "pattern must be one of gpt2, cl100k, .*, got 'gpt3'"),
        ({"pattern": 3}, ValueError, "pattern must be one of"),
        ({"min_frequency": 0}, ValueError, "min_frequency must be at least 1, got 0"),
        ({"min_frequency": 1.5}, TypeError, r"min_frequency must be an integer, got 1\.5"),
        ({"min_frequency": True}, TypeError, "min_frequency must be an integer, got True"),
        ({"special_tokens": ["a"]}, ValueError, "'a' is also a byte"),
        ({"special_tokens": ["<\ud800>"]}, ValueError, "lone surrogate"),
        ({"kind": "word", "pattern": "gpt2"}, ValueError, "pattern is for kind bpe alone, and the kind is word"),
        ({"kind": "byte", "min_frequency": 2}, ValueError, "min_frequency is for kind bpe alone"),
        ({"kind": "char", "progress": print}, ValueError, "progress is for kind bpe alone"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        soma.Tokenizer.train(["one two"], **{"kind": "bpe", **options})


def test_progress_goes_through_the_texts_and_the_merges(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(CORPUS, encoding="utf-8")
    calls: list[tuple[str, int, int | None]] = []
    soma.Tokenizer.train([CORPUS, path], kind="bpe", vocab_size=900, progress=lambda *call: calls.append(call))
    counting = [call for call in calls if call[0] == "counting"]
    merging = [call for call in calls if call[0] == "merging"]
    assert calls == counting + merging
    assert [done for _, done, _ in counting] == sorted(done for _, done, _ in counting)
    assert counting[-1] == ("counting", 2 * len(CORPUS.encode()), None)
    assert merging == [("merging", 256, 643), ("merging", 512, 643), ("merging", 643, 643)]


@needs_timers
@pytest.mark.parametrize("what", ["text", "file", "pipe", "merges"])
def test_a_signal_ends_a_long_training(tmp_path: Path, what: str) -> None:
    """The signal comes long before the text or the merges end; nobody writes into the pipe."""
    path = tmp_path / "corpus"
    if what == "file":
        path.write_text("the cat É sat on a MAT " * 6_000_000, encoding="utf-8")  # 140 MB
    if what == "pipe":
        os.mkfifo(path)
    keep_open = os.open(path, os.O_RDWR) if what == "pipe" else None
    numbers = random.Random(1)
    texts: dict[str, Any] = {
        "text": ["the cat É sat on a MAT " * 3_000_000] * 40,
        "file": path,
        "pipe": path,
        "merges": ["".join(numbers.choices("abcdefgh", k=3_000_000))],
    }

    try:
        with alarm() as ring_soon:
            if what != "merges":
                ring_soon()
            soma.Tokenizer.train(
                texts[what], kind="bpe", vocab_size=1 << 20,
                progress=lambda stage, done, total: ring_soon() if stage == "merging" else None,
            )  # fmt: skip
    finally:
        if keep_open is not None:
            os.close(keep_open)


def test_what_a_progress_function_raises_ends_the_training() -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        soma.Tokenizer.train([CORPUS], kind="bpe", progress=stop)
