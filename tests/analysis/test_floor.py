"""The floor of a text: single tokens, single characters, a 5-gram and xz, and the sentence about them."""

from __future__ import annotations

import dataclasses
import lzma
import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from oracles.kneser_ney import KneserNey
from soma_native.analysis import floor as module
from soma_native.analysis import xz

SENTENCE = "the cat sat on a mat and then it saw the other cat that was not — 漢字 é"


def some_text(seed: int, words: int = 800) -> str:
    return " ".join(random.Random(seed).choices(SENTENCE.split(), k=words))


TRAIN, VALIDATION = [some_text(0), some_text(1), "a\n"], [some_text(2, 200), "é it was", some_text(3, 90)]


def joined(texts: list[str]) -> bytes:
    return "".join(texts).encode()


def xz_size(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def test_the_figures_are_those_of_the_references() -> None:
    floor = soma.text_floor(TRAIN, VALIDATION)
    oracle, size = KneserNey(TRAIN), len(joined(VALIDATION))
    assert math.isclose(floor.ngram, sum(sum(oracle.bits_of(text)) for text in VALIDATION) / size, rel_tol=1e-9)
    assert math.isclose(floor.characters, sum(map(oracle.character_bits, VALIDATION)) / size, rel_tol=1e-9)
    assert floor.xz == (xz_size(joined(TRAIN + VALIDATION)) - xz_size(joined(TRAIN))) * 8 / size
    assert (floor.tokens, floor.bytes, floor.training_bytes) == (None, size, len(joined(TRAIN)))
    assert floor.ngram < floor.characters


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_the_first_token_of_a_document_is_left_out_for_a_model_does_not_predict_it(kind: Any) -> None:
    validation = [*VALIDATION, "a"]  # which has no next-token pair
    options = {"vocab_size": 300} if kind == "bpe" else {}
    tok = soma.Tokenizer.train(TRAIN + VALIDATION, kind=kind, **options)
    floor = soma.text_floor(iter(TRAIN), iter(validation), tok)

    counts = np.bincount(np.concatenate([tok.encode_array(text) for text in TRAIN]), minlength=tok.vocab_size) + 1
    predicted = [tok.encode(text)[1:] for text in validation]
    bits = sum(math.log2(counts.sum() / counts[i]) for ids in predicted for i in ids)
    assert floor.tokens is not None
    assert math.isclose(floor.tokens, bits / sum(len(tok.decode_bytes(ids)) for ids in predicted), rel_tol=1e-9)

    oracle = KneserNey(TRAIN)
    total = size = 0.0
    for text, ids in zip(validation, predicted, strict=True):
        rest = tok.decode_bytes(ids).decode("utf-8", "ignore")  # the rest of a character that was begun is no character
        total += sum(oracle.bits_of(text)[len(text) - len(rest) :])
        size += len(rest.encode())
    assert (floor.bytes, floor.ngram) == (size, pytest.approx(total / size, rel=1e-9))


def test_stores_give_what_their_texts_give() -> None:
    tok = soma.Tokenizer.train(TRAIN, kind="byte")
    stores = [soma.TokenStore.encode(texts, tok) for texts in (TRAIN, VALIDATION)]
    assert soma.text_floor(*stores, tok) == soma.text_floor(TRAIN, VALIDATION, tok)


def test_the_end_of_a_document_is_no_text() -> None:
    """Special tokens of a store are predicted by the tokens alone, and have no bytes."""
    tok = soma.Tokenizer.train(TRAIN, kind="byte", special_tokens=("<|endoftext|>",))
    end = tok.token_to_id("<|endoftext|>")
    stores, bare = [], [soma.TokenStore.encode(texts, tok) for texts in (TRAIN, VALIDATION)]
    for store in bare:
        spans = zip(store.starts, store.stops, strict=True)
        tokens = np.concatenate([np.append(store.tokens[start:stop], np.uint16(end)) for start, stop in spans])
        stops = store.stops + np.arange(1, len(store.stops) + 1)
        stores.append(soma.TokenStore(tokens.astype(np.uint16), np.append(0, stops[:-1]), stops))
    floor, expected = soma.text_floor(*stores, tok), soma.text_floor(*bare, tok)
    assert (floor.ngram, floor.xz, floor.bytes) == (expected.ngram, expected.xz, expected.bytes)
    assert floor.tokens is not None
    assert expected.tokens is not None
    assert floor.tokens > expected.tokens


def test_a_store_that_is_cut_inside_a_character_is_measured() -> None:
    tok = soma.Tokenizer.train(["漢"], kind="byte")
    train, validation = soma.TokenStore.encode(["漢字" * 50], tok).split(0.243)
    assert len(validation.tokens[validation.starts[0] : validation.stops[0]]) % 3
    floor = soma.text_floor(train, validation, tok)
    assert math.isfinite(floor.ngram)
    assert floor.ngram < 3


@pytest.mark.parametrize("kind", ["word", "char"])
def test_tokens_that_lose_text_are_not_compared(kind: Any) -> None:
    tok = soma.Tokenizer.train(["the cat sat"], kind=kind)
    floor = soma.text_floor(TRAIN, VALIDATION, tok)
    assert floor == soma.text_floor(TRAIN, VALIDATION)
    store = soma.TokenStore.encode(TRAIN, tok)
    with pytest.raises(ValueError, match="train is a TokenStore, which needs the tokenizer"):
        soma.text_floor(store, VALIDATION, tok)
    with pytest.raises(ValueError, match="validation is a TokenStore"):
        soma.text_floor(TRAIN, store, xz=False)


def test_files_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / "train.txt", tmp_path / "validation.txt"]
    for path, texts in zip(paths, (TRAIN, VALIDATION), strict=True):
        path.write_bytes(joined(texts))
    assert soma.text_floor(*paths) == soma.text_floor([joined(TRAIN).decode()], [joined(VALIDATION).decode()])


@pytest.mark.parametrize(("train", "validation", "name"), [([], ["ab"], "train"), (["ab"], ["", ""], "validation")])
def test_texts_without_a_character_are_named(train: list[str], validation: list[str], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must have at least a character, and has none"):
        soma.text_floor(train, validation)
    tok = soma.Tokenizer.train(["ab"], kind="byte")
    with pytest.raises(ValueError, match=f"{name} must have at least a document of two tokens"):
        soma.text_floor([*train, "a"], [*validation, "b"], tok)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"tokenizer must be a soma_native\.Tokenizer, got str"):
        soma.text_floor(["a"], ["a"], "byte")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="xz must be True or False"):
        soma.text_floor(["a"], ["a"], xz=1)  # type: ignore[arg-type]
    byte = soma.Tokenizer.train(["ab"], kind="byte")
    for tok in (None, byte):
        with pytest.raises(TypeError, match=r"^train must be an iterable of str"):
            soma.text_floor(5, ["ab"], tok)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^train is a single str that names no file: 'a text'"):
            soma.text_floor("a text", ["ab"], tok)
        with pytest.raises(TypeError, match=r"^validation\[1\] must be a str or an os.PathLike, got int"):
            soma.text_floor(["ab"], ["ab", 5], tok)  # type: ignore[list-item]


def test_xz_reads_no_further_back_than_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xz, "_REACH", 1 << 12)
    data = np.random.default_rng(0).integers(32, 127, 5000).astype(np.uint8).tobytes().decode()
    train = [data[:1000], data[1000:3000], data[3000:]]
    new = "x" + data[:5000]
    end, begin = data[-4096:].encode(), new[:4096].encode()
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 12}
    sizes = [len(lzma.compress(text, filters=[options])) for text in (end + begin, end)]
    assert soma.text_floor(train, [new]).xz == (sizes[0] - sizes[1]) * 8 / len(begin)


def test_ctrl_c_ends_both_compressions(monkeypatch: pytest.MonkeyPatch) -> None:
    compressing = threading.Semaphore(0)

    class Compressor:
        """Never done: it waits to be stopped."""

        def __init__(self, filters: object) -> None:
            pass

        def compress(self, data: bytes) -> bytes:
            compressing.release()
            return b""

        def flush(self) -> bytes:
            raise AssertionError("it was not stopped")

    class Pool(xz.ThreadPoolExecutor):
        def submit(self, *arguments: Any, **options: Any) -> Any:
            future = super().submit(*arguments, **options)
            compressing.acquire()

            def interrupted() -> int:
                raise KeyboardInterrupt

            future.result = interrupted  # type: ignore[method-assign]
            return future

    monkeypatch.setattr(xz.lzma, "LZMACompressor", Compressor)
    monkeypatch.setattr(xz, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(xz, "_PIECE", 1)
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        soma.text_floor(["ab" * 10**6], ["ab" * 10**6])
    assert threading.active_count() == threads


def test_the_sentence() -> None:
    floor = soma.Floor(ngram=2.0, characters=4.5, tokens=None, xz=2.5, bytes=10**5, training_bytes=10**6)
    assert floor.sentence(1.72) == "14% below a 5-gram, 31% below xz -9e"
    assert floor.sentence(2.001) == "level with a 5-gram, 20% below xz -9e"
    assert floor.sentence(2.1) == "the 5-gram wins by 5%"
    small = soma.Floor(ngram=2.0, characters=4.5, tokens=None, xz=1.5, bytes=10**3, training_bytes=10**4)
    assert small.sentence(2.1) == "this text is too small: the 5-gram wins by 5%"
    assert small.sentence(1.8) == "10% below a 5-gram, 20% above xz -9e"
    assert small.sentence(4.1) == "this text is too small: the 5-gram wins by far"
    assert soma.Floor(2.0, 4.5, None, None, 100, 100).sentence(1.8) == "10% below a 5-gram"
    assert soma.Floor(2.0, 4.5, None, None, 10, 100).sentence(1.8) == "not to be told from 10 bytes"
    repeated = soma.Floor(ngram=0.01, characters=4.5, tokens=None, xz=0.1, bytes=10**5, training_bytes=10**6)
    assert repeated.sentence(0.02) == "this text repeats itself: a 5-gram knows it by 0.010 bits/byte"
    for wrong in (-1, math.nan, math.inf, "2"):
        with pytest.raises((ValueError, TypeError), match="bits_per_byte"):
            floor.sentence(wrong)  # type: ignore[arg-type]


def test_a_python_without_lzma_measures_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the cat sat on the mat"] * 3, ["the cat sat on the hat"]
    whole = module.text_floor(*texts)
    monkeypatch.setattr(module, "HAS_XZ", False)
    assert module.text_floor(*texts) == dataclasses.replace(whole, xz=None)
