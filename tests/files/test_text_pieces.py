"""Files and long texts are read in pieces: the ids, the words, the lines and the errors are those of the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import soma_native as soma
from oracles.bpe_patterns import PIECES
from soma_native.data.documents import read_documents
from soma_native.data.token_store import TokenStore
from soma_native.files import text_files
from soma_native.files.text_files import iter_lines, pieces_of, read_utf8

TEXT = "Zwei Wörter, 12345 Zahlen; don't_stop it's é e\u0301 中文。日本 😀👍🏽 हिन्दी में!\n\n  x_y z\r\n" * 3
TEXTS = st.lists(st.sampled_from([*PIECES, "\r", "word", "_", "中。"]) | st.text(max_size=4), max_size=40).map("".join)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(text_files, "_PIECE", 16)
    yield


def tokenizers_of_all_kinds() -> dict[str, soma.Tokenizer]:
    kinds = {kind: soma.Tokenizer.train([TEXT], kind=kind) for kind in ("word", "char", "byte")}
    for pattern in ("gpt2", "o200k", "starcoder"):
        kinds[pattern] = soma.Tokenizer.train([TEXT], kind="bpe", vocab_size=320, pattern=pattern)
    return kinds


TOKENIZERS = tokenizers_of_all_kinds()


@given(text=TEXTS.filter(lambda text: "\0" not in text))
def test_pieces_are_the_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "text.txt"
    for head in ("", "\ufeff"):
        path.write_bytes((head + text).encode())
        for source, expected in ((text, text), (path, text.removeprefix("\ufeff") if not head else text)):
            assert b"".join(pieces_of(source, 0)) == expected.encode()
    assert len(list(pieces_of("a few words " * 20, 0))) > 5


@given(text=TEXTS.map(lambda text: text.replace("\0", "")).filter(lambda text: not text.startswith("\ufeff")))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_whole(name: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, tok = tmp_path_factory.getbasetemp() / "text.txt", TOKENIZERS[name]
    path.write_bytes((text + TEXT).encode())
    ids = tok.encode(text + TEXT)
    for source in ([text + TEXT], path):
        store = TokenStore.encode(source, tok)
        assert store.tokens.tolist() == ids and store.stops.tolist() == [len(ids)]


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_training_sees_the_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    made = [soma.Tokenizer.train(source, kind=kind) for source in ([TEXT], path)]
    monkeypatch.setattr(text_files, "_PIECE", 1 << 20)
    whole = soma.Tokenizer.train([TEXT], kind=kind)
    for tok in made:
        assert [tok.id_to_token(i) for i in range(tok.vocab_size)] == [
            whole.id_to_token(i) for i in range(whole.vocab_size)
        ]


@pytest.mark.parametrize("rule", ["NFC", "prefix space", "added token"])
def test_rules_of_a_file_see_the_whole(rule: str, tmp_path: Path) -> None:
    """A space in front and added tokens may reach across a cut, NFC may not."""
    file = TOKENIZERS["gpt2"].save(tmp_path)
    document = json.loads(file.read_text(encoding="utf-8"))
    if rule == "NFC":
        document["normalizer"] = {"type": "NFC"}
    elif rule == "prefix space":
        document["pre_tokenizer"]["add_prefix_space"] = True
    else:
        token = {"id": 320, "content": "Wörter, 12345 Zahlen", "special": False}
        flags = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False}
        document["added_tokens"].append({**token, **flags})
    file.write_text(json.dumps(document), encoding="utf-8")
    tok = soma.Tokenizer.load(file)
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    for source in ([TEXT], path):
        assert TokenStore.encode(source, tok).tokens.tolist() == tok.encode(TEXT)


@pytest.mark.parametrize("bad", [b"\0", b"\xff", b"\xe9\xe9", b"\xed\xa0\x80", b"\xf0\x9f", b"\xf0\x9f\x98"])
@pytest.mark.parametrize("at", [0, 1, 14, 15, 16, 17, 31, 100, 300])
def test_errors_name_the_byte(bad: bytes, at: int, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    good = TEXT.encode()
    while at and good[at] & 0xC0 == 0x80:
        at += 1
    for raw in (good[:at] + bad + good[at:], good[:at] + bad):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"byte|UTF") as whole:
            read_utf8(path)
        for use in (
            lambda: list(pieces_of(path, 0)),
            lambda: list(iter_lines(path)),
            lambda: TokenStore.encode(path, TOKENIZERS["char"]),
            lambda: TokenStore.encode([path], TOKENIZERS["gpt2"]),
            lambda: soma.Tokenizer.train(path, kind="word"),
        ):
            with pytest.raises(ValueError, match=r"byte|UTF") as found:
                use()
            assert str(found.value) == str(whole.value)


def test_errors_name_the_text_and_the_character(tmp_path: Path) -> None:
    tok = soma.Tokenizer.train(["abc de"], kind="char", special_tokens=())
    text = "abc de " * 20 + "x" + "abc de " * 20
    (tmp_path / "text.txt").write_text(text)
    for source in ([text], [tmp_path / "text.txt"]):
        with pytest.raises(ValueError, match=r"^texts\[1\]: character 'x' at character 140 is not in the vocabulary"):
            TokenStore.encode(["ab", *source], tok)
    for use in (lambda texts: TokenStore.encode(texts, tok), lambda texts: soma.Tokenizer.train(texts, kind="word")):
        with pytest.raises(ValueError, match=r"^texts\[1\] has the lone surrogate U\+D800 at character 141"):
            use(["ab", "abc de " * 20 + "a\ud800" + "ab " * 20])


def test_a_long_document_of_one_token_is_dropped() -> None:
    tok = TOKENIZERS["word"]
    store = TokenStore.encode(["x" * 100, "zwei Wörter", "." * 100, "zwei"], tok)
    assert store.tokens.tolist() == tok.encode("zwei Wörter")
    assert (store.dropped_documents, store.dropped_tokens) == (3, 2)


@given(text=TEXTS.map(lambda text: text.replace("\0", "").lstrip("\ufeff")))
def test_lines_are_those_of_the_whole(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(text.encode())
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert list(iter_lines(path)) == lines
    assert list(read_documents(path, "line")) == [line for line in lines if line.strip()]


def test_unknown_tokens_are_counted_in_documents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soma_native.data.token_store._PIECE", 7)
    source = np.random.default_rng(0)
    tokens = source.integers(0, 3, 100).astype(np.uint8)
    cuts = 2 * np.sort(source.choice(50, 20, replace=False))
    starts, stops = cuts[::2], cuts[1::2]
    expected = sum(int((tokens[a:b] == 1).sum()) for a, b in zip(starts, stops, strict=True))
    assert TokenStore(tokens, starts, stops, unknown_id=1).unknown_tokens == expected
