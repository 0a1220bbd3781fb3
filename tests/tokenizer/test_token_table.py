"""The table of a vocabulary's tokens finds what a search through all of them finds."""

from __future__ import annotations

import re

import pytest

import soma_native

TEXT = 'the cat sat on the mat: "the cats," said 北京 the\n\nmats * and Ünder the çat_1 '


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_it_finds_what_a_search_finds(kind: str) -> None:
    tok = soma_native.Tokenizer.train([TEXT] * 3, kind=kind, vocab_size=310 if kind == "bpe" else None)
    special = {tok.token_to_id(token) for token in tok.special_tokens}
    tokens = {i: tok.decode_bytes([i]) for i in range(tok.vocab_size) if i not in special}
    table = tok._token_table()
    starts = {token[:n] for token in tokens.values() for n in range(len(token) + 1)} | {b"zz", b"\xff\xff", b"the cat"}
    assert len(starts) > 10
    for start in starts:
        longer = {i for i, token in tokens.items() if token.startswith(start) and token != start}
        assert set(table.extending(start).tolist()) == longer, start
    for part in (b"a", b"at", b"\n", b":", b'"', b"*", b"\x8c", b" ", b"the cat sat"):
        found = table.containing(part).tolist()
        assert set(found) == {i for i, token in tokens.items() if part in token} and len(set(found)) == len(found), part
    if kind != "byte":
        assert len(table.containing(b"a")) > 0


def test_tokens_inside_words() -> None:
    tok = soma_native.Tokenizer.train([TEXT] * 3, kind="bpe", vocab_size=310)
    inside = set(tok._token_table().inside_words().tolist())
    for i in range(tok.vocab_size):
        token = tok.decode_bytes([i])
        if token == b"<|endoftext|>":
            assert i not in inside
        elif token.isascii():
            assert (i in inside) == bool(re.match(rb"\w", token)), token
        else:
            text = token.decode(errors="replace")
            assert (i in inside) == (text[0] == "\ufffd" or text[0].isalnum()), token
