"""The tokenizer in programs: sent to other processes, given any iterable, and given text that is slow to normalize."""

from __future__ import annotations

import copy
import pickle
import random
import unicodedata

import pytest

from soma_native import Tokenizer
from soma_native.tokenizer import added_tokens
from soma_native.tokenizer.added_tokens import to_nfc


@pytest.mark.parametrize("kind", ["word", "char", "byte", "bpe"])
def test_a_tokenizer_goes_to_other_processes(kind: str) -> None:
    tok = Tokenizer.train(["one two two", "three"], kind=kind, vocab_size=300)
    for copied in (pickle.loads(pickle.dumps(tok)), copy.deepcopy(tok)):
        assert (copied.kind, copied.vocab_size, copied.special_tokens) == (tok.kind, tok.vocab_size, tok.special_tokens)
        assert copied.encode("two three") == tok.encode("two three")
    assert b"soma_native" in pickle.dumps(tok) and b"soma_native." not in pickle.dumps(tok)  # no module that may move


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


def test_long_runs_of_marks_are_normalized_as_python_does() -> None:
    """Marks are sorted in a quick way, which must not change the result."""
    rng = random.Random(3)
    marks = [chr(c) for c in range(0x300, 0x3100) if unicodedata.ucd_3_2_0.combining(chr(c))]
    for _ in range(300):
        text = "".join(rng.choice(marks if rng.random() < 0.9 else "aé가ᄀ ") for _ in range(rng.randrange(64, 200)))
        assert to_nfc(text) == unicodedata.normalize("NFC", text)
        assert "".join(added_tokens._clusters(text)) == text
