"""Prompts of `Engine` that begin like earlier ones: what they take over of those, and when they do not."""

from __future__ import annotations

import pytest

import soma_native as soma
from helpers.engines import TEXTS, make
from soma_native.generation import engine_thread
from soma_native.generation.prefix import shared_length

pytestmark = pytest.mark.usefixtures("settings_restored")


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_chat_goes_on_where_it_was(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_thread, "_LINGER", 60.0)  # live weights are trusted as long as the thread lives
    model, tok = make(max_seq_len=200)
    single = soma.Generator(model, tok, weights=weights)
    with soma.Engine(model, tok, 2, weights=weights) as engine:
        first, other = "The cat sat on the mat.", "A dog ate the cat's food"
        said = engine.submit(first, max_tokens=20, seed=1).result().tokens
        engine.submit(other, max_tokens=20, seed=2).result()
        following = tok.decode_bytes([*tok.encode(first), *said[:15]]).decode("utf-8", "ignore") + " And then?"
        handle = engine.submit(following, max_tokens=20, seed=3)
        assert following + handle.result().text == single.generate(following, max_tokens=20, seed=3)
        shared = shared_length(tok.encode(following), [*tok.encode(first), *said])
        assert handle.reused_tokens == (shared if weights == "auto" else len(first)), "answers are not rounded"
        again = engine.submit(other, max_tokens=20, seed=2)
        assert again.result().text == single.generate(other, max_tokens=20, seed=2)[len(other) :]
        assert again.reused_tokens == len(other) - 1, "the row of another text was left alone"


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_chat_goes_on_after_the_thread_has_ended(weights: str) -> None:
    """A person takes longer than the thread waits."""
    model, tok = make(max_seq_len=200)
    single, prompt = soma.Generator(model, tok, weights=weights), "The cat sat on the mat."
    with soma.Engine(model, tok, 2, weights=weights) as engine:
        engine.submit(prompt, max_tokens=20, seed=1).result()
        engine._thread._thread.join()
        handle = engine.submit(prompt, max_tokens=20, seed=2)
        assert prompt + handle.result().text == single.generate(prompt, max_tokens=20, seed=2)
        assert handle.reused_tokens == len(prompt) - 1


def test_live_weights_may_change_after_the_thread_has_ended() -> None:
    model, tok = make(max_seq_len=200)
    prompt = "The cat sat on the mat."
    with soma.Engine(model, tok, 2) as engine:
        engine.submit(prompt, max_tokens=20, seed=1).result()
        engine._thread._thread.join()
        for name in model.parameters():
            model.write(name, -0.5 * model.read(name))
        handle = engine.submit(prompt, max_tokens=20, seed=2)
        assert prompt + handle.result().text == soma.Generator(model, tok).generate(prompt, max_tokens=20, seed=2)
        assert handle.reused_tokens == 0


def test_a_prompt_that_several_ask_for_is_read_once() -> None:
    model, tok = make(max_seq_len=200)
    prompt = "The cat sat on the mat. A dog ate the cat's food."
    single = soma.Generator(model, tok)
    with soma.Engine(model, tok, 4, prefill_piece=16) as engine:
        handles = [engine.submit(prompt, max_tokens=30, seed=seed) for seed in range(4)]
        for seed, handle in enumerate(handles):
            assert prompt + handle.result().text == single.generate(prompt, max_tokens=30, seed=seed)
        assert [handle.reused_tokens for handle in handles] == [0] + 3 * [len(prompt) - 1]


def test_short_prompts_take_nothing_that_was_rounded() -> None:
    model, tok = make()
    single = soma.Generator(model, tok, weights="bfloat16")
    with soma.Engine(model, tok, 1, weights="bfloat16") as engine:
        for length in (40, 10, 12, 40, 20, 3):
            prompt = " ".join(TEXTS)[:length]
            handle = engine.submit(prompt, max_tokens=10, seed=0)
            assert prompt + handle.result().text == single.generate(prompt, max_tokens=10, seed=0)
            assert handle.reused_tokens == {12: 10, 20: 19}.get(length, 0)
