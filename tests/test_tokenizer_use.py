"""The tokenizer inside other programs: sent to other processes, called with whatever iterable is at hand."""

from __future__ import annotations

import copy
import pickle

import pytest

from soma_native import Tokenizer


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_a_tokenizer_goes_to_other_processes(kind: str) -> None:
    tok = Tokenizer.train(["one two two", "three"], kind=kind, vocab_size=300)
    for copied in (pickle.loads(pickle.dumps(tok)), copy.deepcopy(tok)):
        assert (copied.kind, copied.vocab_size, copied.special_tokens) == (tok.kind, tok.vocab_size, tok.special_tokens)
        assert copied.encode("two three") == tok.encode("two three")


def test_allowed_special_may_be_any_iterable_of_tokens() -> None:
    tok = Tokenizer.train(["ab"], kind="bpe", vocab_size=259, special_tokens=("<a>",))
    want = tok.encode("x<a>", allowed_special={"<a>"})
    assert len(want) == 2
    assert tok.encode("x<a>", allowed_special=(name for name in ["<a>"])) == want
    for wrong in (None, 3, b"<a>"):
        with pytest.raises(TypeError, match="allowed_special must be 'all' or a set"):
            tok.encode("x", allowed_special=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="texts must be a list of str, got NoneType"):
        tok.encode_batch(None)  # type: ignore[arg-type]
