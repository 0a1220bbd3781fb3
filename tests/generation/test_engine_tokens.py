"""Prompts of an engine that are given as tokens, as a chat template makes them."""

from __future__ import annotations

import numpy as np
import pytest
from test_engine import make

import soma_native as soma


def test_a_prompt_may_be_given_as_tokens() -> None:
    model, tok = make("char", special_tokens=("<|user|>",))
    ids = [*tok.encode("<|user|>", "all"), *tok.encode("The cat")]
    with soma.Engine(model, tok) as engine:
        done = engine.submit("<|user|>The cat", ids=ids, max_tokens=9, temperature=0).result()
        assert (
            engine.submit("The cat", ids=ids[1:], max_tokens=5, seed=1).result()
            == engine.submit("The cat", max_tokens=5, seed=1).result()
        )
        for token in done.tokens:
            logits = model.forward(ids)[-1]
            assert token == int(np.argmax(logits[1:])) + 1, "the special token is never drawn"
            ids.append(token)
        assert (
            engine.submit("", ids=[], max_tokens=5, seed=1).result() == engine.submit("", max_tokens=5, seed=1).result()
        )
        with pytest.raises(ValueError, match=r"ids\[1\] must be from 0 to"):
            engine.submit("a", ids=[1, tok.vocab_size])
