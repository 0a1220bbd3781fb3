"""Prompts of an engine that are given as tokens, as a chat template makes them, and wrong arguments of a handle."""

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
        for wrong in (3, "ab", b"ab"):
            with pytest.raises(TypeError, match="ids must be a list of tokens, got"):
                engine.submit("a", ids=wrong)


def test_a_wrong_time_or_model_is_named() -> None:
    model, tok = make("char")
    with pytest.raises(TypeError, match=r"model must be a soma_native\.Model"):
        soma.Engine.memory_of(tok)
    with soma.Engine(model, tok) as engine:
        handle = engine.submit("The cat", max_tokens=5, seed=1)
        done = handle.result(timeout=1e300)
        assert done == handle.result(timeout=-1), "it is complete already"
        with pytest.raises(TypeError, match="timeout must be a number, got 'long'"):
            handle.result(timeout="long")
        with pytest.raises(ValueError, match="timeout must be finite"):
            handle.result(timeout=float("nan"))
