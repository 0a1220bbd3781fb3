"""Documents, token stores, windows and samplers: every pair once, and no pair across two documents."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import soma_native as soma
from soma_native.data.documents import iter_documents, read_documents
from soma_native.data.samplers import EpochSampler, RandomSampler
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import IGNORE_INDEX, Windows
from soma_native.files import text_files


def store_of(lengths: list[int], first: int = 0) -> TokenStore:
    """Documents of these lengths. Token number i has the id i, so a pair (i, i + 1) gives its own place."""
    stops = np.cumsum(lengths, dtype=np.int64)
    tokens = np.arange(first, first + int(stops[-1]), dtype=np.uint32)
    return TokenStore(tokens, stops - np.array(lengths), stops)


def pairs_in(batches: list[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> list[int]:
    """The first tokens of the pairs in the batches. Checks that everything else is padding."""
    found: list[int] = []
    for ids, targets in batches:
        assert ids.dtype == targets.dtype == np.int32
        assert ids.shape == targets.shape
        real = targets != IGNORE_INDEX
        assert (real[:, :-1] >= real[:, 1:]).all(), "padding must be at the right"
        assert real.any(axis=0).all(), "no column of padding alone"
        assert (targets[real] == ids[real] + 1).all()
        assert (ids >= 0).all()
        found += ids[real].tolist()
    return found


def all_pairs(lengths: list[int]) -> list[int]:
    ends = np.cumsum(lengths)
    return [token for token in range(int(ends[-1])) if token + 1 not in ends]


some_lengths = st.lists(st.integers(2, 40), min_size=1, max_size=30)


@given(lengths=some_lengths, seq_len=st.integers(1, 45))
def test_windows_hold_every_pair_once_and_cross_no_document(lengths: list[int], seq_len: int) -> None:
    windows = Windows(store_of(lengths), seq_len)
    found = pairs_in([windows.batch(np.array([index])) for index in range(len(windows))])
    assert found == all_pairs(lengths)
    assert windows.lengths.max() <= seq_len
    assert windows.pairs == len(found)


@given(
    lengths=some_lengths, seq_len=st.integers(1, 45), batch_size=st.integers(1, 9), accumulate=st.integers(1, 3),
    epoch=st.integers(0, 3), fresh=st.booleans(),
)  # fmt: skip
def test_an_epoch_holds_every_pair_once(
    lengths: list[int], seq_len: int, batch_size: int, accumulate: int, epoch: int, fresh: bool
) -> None:
    sampler = EpochSampler(Windows(store_of(lengths), seq_len), batch_size, 7, accumulate, fresh)
    steps = [sampler.batches(epoch * sampler.steps_per_epoch + step) for step in range(sampler.steps_per_epoch)]
    assert sorted(pairs_in([batch for step in steps for batch in step])) == all_pairs(lengths)
    assert all(1 <= len(step) <= accumulate for step in steps)
    assert all(1 <= len(ids) <= batch_size for step in steps for ids, _ in step)
    assert all(ids.shape[1] <= seq_len for step in steps for ids, _ in step)
    if fresh and max(lengths) > seq_len + 1:  # windows are shared evenly, one more or less
        sizes = [len(ids) for step in steps for ids, _ in step]
        assert max(sizes) - min(sizes) <= 1


def cuts(sampler: EpochSampler, epoch: int) -> set[int]:
    """The first tokens of all windows of an epoch."""
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    return {int(row[0]) for step in steps for ids, _ in sampler.batches(step) for row in ids}


def test_fresh_windows_are_cut_at_other_places_in_each_epoch() -> None:
    store = store_of([500, 6, 300])
    fresh = [cuts(EpochSampler(Windows(store, 16), 4, 3, fresh=True), epoch) for epoch in range(200)]
    first, second = ([{(cut - at) % 16 for cut in found if at + 16 <= cut < end} for found in fresh]
                     for at, end in ((0, 484), (506, 790)))  # fmt: skip
    assert all(len(places) == 1 for places in first + second), "windows inside a document are whole"
    assert len(set.union(*first)) == len(set.union(*second)) == 16, "every place is cut sooner or later"
    assert first != second, "documents are cut at offsets of their own"
    assert all({0, 500, 506} <= found for found in fresh), "the second document fits, so it stays one window"
    assert fresh[5] == cuts(EpochSampler(Windows(store, 16), 4, 3, fresh=True), 5) != fresh[6]
    assert fresh[5] != cuts(EpochSampler(Windows(store, 16), 4, 4, fresh=True), 5)


def test_documents_that_fit_have_the_same_batches_with_fresh_windows() -> None:
    windows = Windows(store_of([5, 9, 3, 17, 2, 2, 12] * 9), 16)
    fixed, fresh = EpochSampler(windows, 4, 1), EpochSampler(windows, 4, 1, fresh=True)
    assert fixed.steps_per_epoch == fresh.steps_per_epoch
    for step in range(2 * fixed.steps_per_epoch):
        for (ids, targets), (others, other_targets) in zip(fixed.batches(step), fresh.batches(step), strict=True):
            assert np.array_equal(ids, others) and np.array_equal(targets, other_targets)


@pytest.mark.parametrize("kind", ["epoch", "random"])
def test_a_step_depends_on_seed_and_number_alone(kind: str) -> None:
    store = store_of([5, 9, 3, 40, 17, 2, 2, 30])

    def sampler(seed: int) -> EpochSampler | RandomSampler:
        return EpochSampler(Windows(store, 8), 2, seed) if kind == "epoch" else RandomSampler(store, 8, 2, seed)

    def tokens(seed: int, steps: list[int]) -> list[list[int]]:
        made = sampler(seed)
        return [pairs_in(made.batches(step)) for step in steps]

    forward = list(range(24))
    assert tokens(1, forward) == tokens(1, forward[::-1])[::-1]
    assert tokens(1, forward) != tokens(2, forward)
    epoch = sampler(1).steps_per_epoch
    assert tokens(1, list(range(epoch))) != tokens(1, list(range(epoch, 2 * epoch)))


def test_little_is_padded_where_lengths_differ() -> None:
    lengths = np.random.default_rng(0).integers(4, 30, 400).tolist()
    sampler = EpochSampler(Windows(store_of(lengths), 64), 8, 0)
    cells = sum(ids.size for step in range(sampler.steps_per_epoch) for ids, _ in sampler.batches(step))
    assert len(all_pairs(lengths)) > 0.85 * cells


@given(lengths=some_lengths, seq_len=st.integers(1, 45))
def test_random_windows_stay_inside_documents(lengths: list[int], seq_len: int) -> None:
    sampler = RandomSampler(store_of(lengths), seq_len, 4, 0)
    assert set(pairs_in([batch for step in range(5) for batch in sampler.batches(step)])) <= set(all_pairs(lengths))


def test_random_windows_start_where_nanogpt_draws_them() -> None:
    # nanoGPT draws torch.randint(len(data) - block_size, ...): len - block_size places, equally likely
    length, seq_len, draws = 30, 8, 4400
    sampler = RandomSampler(store_of([length]), seq_len, draws, 0)
    ids, targets = sampler.batches(0)[0]
    assert ids.shape == (draws, seq_len)
    assert (targets == ids + 1).all()
    counts = np.bincount(ids[:, 0], minlength=length - seq_len)
    assert len(counts) == length - seq_len
    expected = draws / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-squared with 21 degrees of freedom: p < 0.001


def test_batches_in_order_cover_everything_and_a_limit_spreads() -> None:
    lengths = [3, 60, 2, 9, 9]
    windows = Windows(store_of(lengths), 7)
    assert sorted(pairs_in(list(windows.in_order(3)))) == all_pairs(lengths)  # type: ignore[arg-type]
    limited = list(windows.in_order(3, limit=4))
    assert sum(len(ids) for ids, _ in limited) == 4
    assert {int((targets >= 0).sum()) for _, targets in windows.in_order(1, limit=4)} > {1, 7}


# --- documents and token stores


def test_encoding_counts_what_is_there_and_what_is_dropped() -> None:
    texts = ["a b c", "", "a", "c zebra b", "b"]
    tok = soma.Tokenizer.train(["a b c a b a"], kind="word", vocab_size=9)
    store = TokenStore.encode(texts, tok)
    assert store.counts() == {
        "documents": 2, "tokens": 6, "pairs": 4, "dropped_documents": 3, "dropped_tokens": 2, "unknown_tokens": 1,
    }  # fmt: skip
    expected = [tok.encode(text) for text in ("a b c", "c zebra b")]
    assert [store.tokens[a:b].tolist() for a, b in zip(store.starts, store.stops, strict=True)] == expected


@pytest.mark.parametrize(("different", "size"), [(255, 1), (256, 2)])
def test_tokens_take_as_few_bytes_as_they_fit_in(different: int, size: int) -> None:
    text = "".join(map(chr, range(32, 32 + different))) * 20
    tok = soma.Tokenizer.train([text], kind="char", special_tokens=["<UNK>"])
    store = TokenStore.encode([text] * 5, tok)
    assert store.tokens.dtype.itemsize == size
    assert store.tokens.nbytes == size * 5 * len(text)
    assert store.tokens.tolist() == tok.encode(text) * 5


def test_more_than_65536_tokens_take_four_bytes() -> None:
    text = "".join(chr(code) for code in range(0x20, 0x11000) if not 0xD800 <= code < 0xE000)
    tok = soma.Tokenizer.train([text], kind="char")
    assert tok.vocab_size > 1 << 16
    store = TokenStore.encode([text], tok)
    assert store.tokens.dtype == np.uint32
    assert store.tokens.tolist() == tok.encode(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no document in texts"),
        (["", "a", "b"], r"all 3 document\(s\) have fewer than 2 tokens \(2 tokens in all\)"),
    ],
)
def test_no_pair_is_an_error_that_says_why(texts: list[str], message: str) -> None:
    tok = soma.Tokenizer.train(["a b c"], kind="word", vocab_size=9)
    with pytest.raises(ValueError, match=message):
        TokenStore.encode(texts, tok).require_pairs("texts")


def test_a_text_the_tokenizer_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = soma.Tokenizer.train(["abc"], kind="char", special_tokens=())
    with pytest.raises(ValueError, match=r"^texts\[1\]: "):
        TokenStore.encode(["abc", "abx"], tok)
    monkeypatch.setattr(
        text_files, "_BATCH_CHARACTERS", 100
    )  # the first text fills a batch; texts 1 and 2 are in the next
    with pytest.raises(ValueError, match=r"^texts\[2\]: "):
        TokenStore.encode(["abc" * 50, "abc", "abx"], tok)
    with pytest.raises(ValueError, match=r"^texts\[2\] has the lone surrogate"):
        TokenStore.encode(["abc" * 50, "abc", "ab\ud800"], tok)


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
@pytest.mark.parametrize("batch_characters", [0, 300, 5_000, 1 << 24])
def test_batches_and_threads_change_no_token(kind: str, batch_characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ein zwei drei é " * (i % 9) + "x" * (i % 2) for i in range(400)] + ["", "drei " * 5_000, "zwei", "ein é"]
    tok = soma.Tokenizer.train(texts, kind=kind)
    monkeypatch.setattr(text_files, "_BATCH_CHARACTERS", batch_characters)
    threads = soma.get_num_threads()
    soma.set_num_threads(3)
    try:
        store = TokenStore.encode(iter(texts), tok)
    finally:
        soma.set_num_threads(threads)
    expected = [tok.encode(text) for text in texts]
    long = [ids for ids in expected if len(ids) >= 2]
    assert [store.tokens[a:b].tolist() for a, b in zip(store.starts, store.stops, strict=True)] == long
    assert store.dropped_documents == len(expected) - len(long) > 0
    assert store.dropped_tokens == sum(len(ids) for ids in expected if len(ids) < 2)
    assert len(store.tokens) == sum(map(len, long)) and store.tokens.dtype == np.uint8


def test_fingerprint_is_that_of_the_documents() -> None:
    store = store_of([5, 7, 3])
    rest = TokenStore(store.tokens, store.starts[1:], store.stops[1:])
    assert rest.fingerprint() == store_of([7, 3], first=5).fingerprint()
    assert rest.fingerprint() != store.fingerprint()
    assert store_of([5, 7, 3]).fingerprint() != store_of([5, 3, 7]).fingerprint()
    gap = TokenStore(store.tokens, store.starts[[0, 2]], store.stops[[0, 2]])
    assert gap.fingerprint() not in (store.fingerprint(), store_of([5, 3]).fingerprint())


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=60), fraction=st.floats(0.05, 0.6))
def test_split_never_puts_a_pair_into_both_parts(lengths: list[int], fraction: float) -> None:
    store = store_of(lengths)
    try:
        parts = store.split(fraction)
    except ValueError as error:
        assert "val_fraction" in str(error)
        return
    again = store.split(fraction)
    train, validation = (pairs_in([Windows(part, 9).batch(np.arange(len(Windows(part, 9))))]) for part in parts)
    assert not set(train) & set(validation)
    assert train
    assert validation
    assert set(train) | set(validation) <= set(all_pairs(lengths))
    assert [part.fingerprint() for part in parts] == [part.fingerprint() for part in again]


def test_split_holds_out_whole_documents_when_there_are_many() -> None:
    store = store_of([10] * 200)
    train, validation = store.split(0.1)
    assert (len(train.starts), len(validation.starts)) == (180, 20)
    assert set(validation.starts.tolist()) <= set(store.starts.tolist())
    assert train.pairs + validation.pairs == store.pairs


def test_split_holds_out_the_tail_of_one_long_text_as_nanogpt_does() -> None:
    size = 1_115_394  # tinyshakespeare; nanoGPT: data[int(n * 0.9):]
    train, validation = store_of([size]).split(0.1)
    assert (train.starts.tolist(), train.stops.tolist()) == ([0], [int(size * 0.9)])
    assert (validation.starts.tolist(), validation.stops.tolist()) == ([int(size * 0.9)], [size])


def test_split_of_too_little_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"val_fraction 0.1 holds out no next-token pair of 6 tokens"):
        store_of([6]).split(0.1)


# --- files


def test_files_are_documents(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes("\ufeffé\r\nb\n".encode())
    two.write_text("zwei", encoding="utf-8")
    assert list(iter_documents(one)) == ["é\r\nb\n"]
    assert list(iter_documents([one, "a text", two])) == ["é\r\nb\n", "a text", "zwei"]
    assert list(iter_documents(str(two))) == ["zwei"]
    assert list(read_documents([str(one), two])) == ["é\r\nb\n", "zwei"]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_bytes("\ufeffabc \ufeff".encode())
    assert list(iter_documents(path)) == list(read_documents(path)) == ["abc \ufeff"]
    assert list(iter_documents(["\ufeffabc"])) == ["\ufeffabc"]  # a text is never changed
    for texts in (path, str(path), [path]):
        assert soma.Tokenizer.train(texts, kind="char", special_tokens=()).decode(range(5)) == " abc\ufeff"
    path.write_bytes("\ufeffaabb".encode())
    tok = soma.Tokenizer.train(path, kind="char", special_tokens=())
    assert TokenStore.encode(path, tok).tokens.tolist() == [0, 0, 1, 1] and tok.vocab_size == 2
    path.write_bytes("\ufeffab\udcff".encode("utf-8", "surrogateescape"))
    for read in (lambda: list(iter_documents(path)), lambda: soma.Tokenizer.train(path)):
        with pytest.raises(ValueError, match=r"marked\.txt: not UTF-8 at byte 5"):
            read()


def test_lines_and_blank_lines_part_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\r\nb\r\n \r\n\r\nc\rd\n\n\ne")
    assert list(read_documents(path, split="line")) == ["a", "b", "c", "d", "e"]
    assert list(read_documents(path, split="blank-line")) == ["a\nb", "c\nd", "e"]


def test_a_name_of_a_file_among_texts_is_a_text_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "one.txt"
    path.write_text("content")
    with caplog.at_level(logging.WARNING, "soma_native"):
        assert list(iter_documents([str(path)])) == [str(path)]
    assert "pass a Path" in caplog.text


def test_wrong_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"bad\.txt: not UTF-8 at byte 3 \(0xff\)"):
        list(iter_documents(bad))
    with pytest.raises(FileNotFoundError, match=r"none\.txt: there is no such text file"):
        list(iter_documents([tmp_path / "none.txt"]))
    with pytest.raises(ValueError, match="is a folder"):
        list(iter_documents([tmp_path]))
    with pytest.raises(ValueError, match="split must be one of file, line, blank-line"):
        list(read_documents(bad, split="word"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text by itself", r"names no file: .*pass \[text\]"),
        (b"bytes", "got bytes"),
        (7, "texts must be an iterable of str, or paths .*got int"),
        (["a", 3], r"texts\[1\] must be .*got int"),
        ([b"a"], r"texts\[0\]"),
    ],
)
def test_what_is_no_text_is_a_type_error(texts: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        list(iter_documents(texts))  # type: ignore[arg-type]
