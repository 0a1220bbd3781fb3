"""Many sequences at once: each is what a call alone gives; and the ends of texts, engines, threads and processes."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.child import output_of
from helpers.engines import TEXTS, make
from soma_native import _core
from soma_native.generation.completion import Completion
from soma_native.generation.scheduler import Scheduler

ENDLESS = 10**9

pytestmark = pytest.mark.usefixtures("settings_restored")


def check_against_single_calls(engine: soma.Engine, single: soma.Generator, calls: list[tuple[str, dict]]) -> None:
    handles = [engine.submit(prompt, **options) for prompt, options in calls]
    for handle, (prompt, options) in zip(handles, calls, strict=True):
        assert prompt + handle.result().text == single.generate(prompt, **options), (prompt, options)


# results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["auto", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("max_sequences", [1, 3])
def test_each_text_is_that_of_a_call_alone(block: str, weights: str, max_sequences: int) -> None:
    """Prompts of all lengths, also such that begin alike, join and leave; contexts become full; rows are taken over."""
    model, tok = make(block=block)
    rng = np.random.default_rng(0)
    story = " ".join(TEXTS)
    calls: list[tuple[str, dict]] = []
    for seed in range(24):
        begin = 0 if seed % 3 else int(rng.integers(0, 20))
        prompt = story[begin : begin + int(rng.integers(1, 75))]
        temperature = float(seed % 4 > 0)
        calls.append((prompt, {"max_tokens": int(rng.integers(0, 90)), "temperature": temperature, "seed": seed}))
    single = soma.Generator(model, tok, weights=weights)
    with soma.Engine(model, tok, max_sequences, weights=weights, prefill_piece=16) as engine:
        check_against_single_calls(engine, single, calls)
        check_against_single_calls(engine, single, calls[::-1])


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_every_tokenizer_and_stop_strings(kind: str) -> None:
    model, tok = make(kind, max_seq_len=20)
    single = soma.Generator(model, tok)
    calls: list[tuple[str, dict]] = []
    for seed, prompt in enumerate(["The cat", "A", "", "the cat said the cat sat on the mat a dog ate", "dog "]):
        full = single.generate(prompt, max_tokens=30, seed=seed, temperature=1.5)
        stop = full[len(prompt) + 9 : len(prompt) + 11]
        calls += [
            (prompt, {"max_tokens": 30, "seed": seed, "temperature": 1.5}),
            (prompt, {"max_tokens": 30, "seed": seed, "temperature": 1.5, "stop": [stop or "x", "never this"]}),
        ]
    with soma.Engine(model, tok, 4) as engine:
        check_against_single_calls(engine, single, calls)


def test_pieces_together_are_the_text() -> None:
    model, tok = make()
    with soma.Engine(model, tok) as engine:
        handles = [engine.submit("Grüße", max_tokens=50, temperature=2.0, seed=seed) for seed in range(6)]
        for seed, handle in enumerate(handles):
            pieces = list(handle)
            assert all(pieces) and "".join(pieces) == handle.text == handle.result().text
            assert list(handle) == [], "the end stays the end"
            alone = soma.Generator(model, tok).generate("Grüße", max_tokens=50, temperature=2.0, seed=seed)
            assert "Grüße" + handle.text == alone


def test_log_probabilities_are_those_of_complete() -> None:
    model, tok = make(max_seq_len=20)
    single = soma.Generator(model, tok)
    with soma.Engine(model, tok) as engine:
        settings = {"max_tokens": 30, "min_p": 0.01, "frequency_penalty": 0.3, "dry_multiplier": 0.8, "stop": "at"}
        handles = [engine.submit("The cat", logprobs=3, seed=seed, **settings) for seed in range(4)]
        found = [handle.result() for handle in handles]
        assert found == [single.complete("The cat", logprobs=3, seed=seed, **settings)[0] for seed in range(4)]
        assert all(len(one.tokens) == len(one.logprobs) == len(one.top) for one in found)
        without = engine.submit("The cat", seed=0, **settings).result()
        assert without == dataclasses.replace(found[0], logprobs=[], top=[])


def test_what_a_handle_says() -> None:
    model, tok = make("char", special_tokens=())
    with soma.Engine(model, tok) as engine:
        handle = engine.submit("The cat", max_tokens=5, seed=0)
        done = handle.result()
        assert done.text == handle.text and done.tokens == handle.tokens == tok.encode(done.text)
        assert done.finish_reason == handle.finish_reason == "length"
        assert (handle.prompt_tokens, len(handle.tokens), handle.done) == (7, 5, True)
        assert 0 <= handle.first_seconds <= handle.seconds
        assert repr(handle) == "Handle(length, 5 tokens)"
        nothing = engine.submit("The cat", max_tokens=0)
        assert nothing.result() == Completion("", [], "length") and list(nothing) == []


def test_an_end_token_ends_a_text() -> None:
    model, tok = make("char", special_tokens=("<|endoftext|>",))
    model.write("lm_head", 0 * model.read("lm_head"))  # of equal logits the first id wins: that of the end
    with soma.Engine(model, tok) as engine:
        assert engine.submit("The cat", max_tokens=ENDLESS, temperature=0).result() == Completion("", [], "stop")
    with soma.Engine(model, tok, end_token=None) as engine:
        assert engine.submit("The cat", max_tokens=7, temperature=0).result().finish_reason == "length"


# ends -----------------------------------------------------------------------------------------------------------


def test_a_cancelled_text_leaves_its_place_to_another() -> None:
    model, tok = make()
    with soma.Engine(model, tok, 1) as engine:
        endless = engine.submit("The cat", max_tokens=ENDLESS, seed=0)
        waiting, dropped = engine.submit("dog", max_tokens=9, seed=1), engine.submit("x", max_tokens=9)
        begun = next(endless)
        with pytest.raises(TimeoutError, match="not complete after 0"):
            waiting.result(timeout=0)
        dropped.cancel()
        assert dropped.result() == Completion("", [], "cancelled")
        endless.cancel()
        assert endless.result().finish_reason == "cancelled"
        assert begun + "".join(endless) == endless.text
        alone = soma.Generator(model, tok).generate("dog", max_tokens=9, seed=1)
        assert "dog" + waiting.result().text == alone
        waiting.cancel()
        assert waiting.result().finish_reason == "length", "it was complete"


def test_a_forgotten_handle_leaves_its_place_to_another() -> None:
    model, tok = make()
    with soma.Engine(model, tok, 1) as engine:
        for piece in engine.submit("The cat", max_tokens=ENDLESS):
            assert piece
            break
        del piece
        gc.collect()
        assert engine.submit("dog", max_tokens=3).result().finish_reason == "length"


def test_the_queue_is_bounded() -> None:
    model, tok = make()
    with soma.Engine(model, tok, 1, max_queue=2) as engine:
        handles = [engine.submit("The cat", max_tokens=ENDLESS) for _ in range(3)]
        assert (engine.running, engine.waiting) == (1, 2)
        with pytest.raises(soma.EngineFullError, match="max_queue = 2 texts wait already: submit again later"):
            engine.submit("dog")
        handles[1].cancel()
        handles.append(engine.submit("dog", max_tokens=1))
        with pytest.raises(soma.EngineFullError):
            engine.submit("dog")
        for handle in handles[:3]:
            handle.cancel()
        assert handles[3].result().finish_reason == "length"


def test_an_engine_that_is_closed_while_it_works() -> None:
    model, tok = make()
    engine = soma.Engine(model, tok, 2)
    handles = [engine.submit("The cat", max_tokens=ENDLESS, seed=seed) for seed in range(4)]
    next(handles[0])
    engine.close()
    assert engine.closed and "soma-engine" not in [thread.name for thread in threading.enumerate()]
    for handle in handles:
        with pytest.raises(soma.EngineClosedError, match="closed before this text was complete"):
            handle.result()
        with pytest.raises(soma.EngineClosedError):
            list(handle)
    assert handles[0].text and handles[0].finish_reason is None
    with pytest.raises(soma.EngineClosedError, match="the engine is closed"):
        engine.submit("dog")
    with pytest.raises(soma.EngineClosedError):
        engine.submit("dog", max_tokens=0)
    engine.close()
    assert repr(engine) == "Engine(closed, max_sequences=2)"


def test_a_forgotten_engine_ends_its_thread() -> None:
    model, tok = make()
    engine = soma.Engine(model, tok)
    handle = engine.submit("The cat", max_tokens=ENDLESS)
    next(handle)
    thread = engine._thread._thread
    del engine
    gc.collect()
    next(handle)  # who has a handle has the engine
    del handle
    gc.collect()
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


def test_an_idle_engine_has_no_thread() -> None:
    model, tok = make()
    with soma.Engine(model, tok) as engine:
        for seed in range(2):
            assert engine.submit("The cat", max_tokens=3, seed=seed).result().tokens
            thread = engine._thread._thread
            assert thread is not None
            thread.join(60)
            assert not thread.is_alive()


def test_a_failure_reaches_every_text_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tok = make()
    fail = threading.Event()
    grow = Scheduler._grow

    def grow_or_fail(self: Scheduler) -> None:
        if fail.is_set() and self.running == 2:
            fail.clear()
            raise MemoryError("no memory for this")
        grow(self)

    monkeypatch.setattr(Scheduler, "_grow", grow_or_fail)
    with soma.Engine(model, tok, 2) as engine:
        handles = [engine.submit("The cat", max_tokens=ENDLESS, seed=seed) for seed in range(2)]
        following = engine.submit("dog", max_tokens=9, seed=1)
        fail.set()
        for handle in handles:
            with pytest.raises(RuntimeError, match="failed at this text: MemoryError: no memory for this") as raised:
                handle.result()
            assert isinstance(raised.value.__cause__, MemoryError)
            with pytest.raises(RuntimeError):
                list(handle)
        alone = soma.Generator(model, tok).generate("dog", max_tokens=9, seed=1)
        assert "dog" + following.result().text == alone


def test_a_model_that_is_broken() -> None:
    model, tok = make()
    model.write("lm_head", np.nan * model.read("lm_head"))
    with soma.Engine(model, tok) as engine:
        with pytest.raises(ValueError, match="a logit is not finite"):
            engine.submit("The cat").result()


# threads and processes -------------------------------------------------------------------------------------------


def test_many_threads_submit() -> None:
    model, tok = make()
    single = soma.Generator(model, tok)
    want = [single.generate("The cat", max_tokens=20, seed=seed) for seed in range(40)]
    found: dict[int, str] = {}

    def ask(first: int) -> None:
        for seed in range(first, 40, 8):
            found[seed] = "The cat" + engine.submit("The cat", max_tokens=20, seed=seed).result().text

    with soma.Engine(model, tok, 3) as engine:
        threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[seed] for seed in range(40)] == want


def test_asyncio() -> None:
    model, tok = make()
    single = soma.Generator(model, tok)

    async def ask(engine: soma.Engine, seed: int) -> str:
        pieces = [piece async for piece in engine.submit("dog", max_tokens=30, seed=seed)]
        return "dog" + "".join(pieces)

    async def fail(engine: soma.Engine) -> None:
        handle = engine.submit("dog", max_tokens=ENDLESS)
        async for _ in handle:
            engine.close()

    async def ask_all() -> None:
        with soma.Engine(model, tok, 2) as engine:
            found = await asyncio.gather(*(ask(engine, seed) for seed in range(5)))
            assert found == [single.generate("dog", max_tokens=30, seed=seed) for seed in range(5)]
            with pytest.raises(soma.EngineClosedError):
                await fail(engine)

    asyncio.run(ask_all())


CHILD = """
tok = soma.Tokenizer.train(["the cat sat on the mat"], kind="byte")
config = soma.ModelConfig(vocab_size=256, d_model=32, n_layers=1, n_heads=2, d_ff=64, max_seq_len=64)
model = soma.Model(config, seed=0)
engine = soma.Engine(model, tok, 2)
handle = engine.submit("the cat", max_tokens=10**9)
next(handle)
"""


def test_a_process_ends_while_its_engine_works(tmp_path: Path) -> None:
    assert output_of(CHILD + "print('end')", tmp_path) == "end"


def test_a_child_of_a_fork_makes_its_own_engine(tmp_path: Path) -> None:
    code = """
child = os.fork()
if child == 0:
    for call in (lambda: engine.submit("the"), handle.result, lambda: next(handle)):
        try:
            call()
        except RuntimeError as error:
            print(error)
    engine.close()
    alone = soma.Generator(model, tok).generate("the cat", max_tokens=5, seed=1)
    with soma.Engine(model, tok) as own:
        print("the cat" + own.submit("the cat", max_tokens=5, seed=1).result().text == alone)
    del handle, engine
else:
    assert os.waitpid(child, 0)[1] == 0
    engine.close()
"""
    said = output_of(CHILD + code, tmp_path).splitlines()
    assert said == 3 * ["the engine was made in another process: make one in this process, after the fork"] + ["True"]


# arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_sequences": 0}, ValueError, "max_sequences must be from 1 to 65536, got 0"),
        ({"max_sequences": 2.0}, TypeError, "max_sequences must be an integer"),
        ({"max_queue": -1}, ValueError, "max_queue must be at least 0"),
        ({"prefill_piece": 15}, ValueError, "prefill_piece must be at least 16, got 15"),
        ({"weights": "int4"}, ValueError, "weights must be one of"),
        ({"end_token": "<no>"}, ValueError, "end_token must be a token of the vocabulary"),
    ],
)
def test_wrong_arguments_of_an_engine(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, tok = make()
    with pytest.raises(error, match=message):
        soma.Engine(model, tok, **options)


def test_wrong_arguments_of_a_text() -> None:
    model, tok = make("char", special_tokens=())
    with soma.Engine(model, tok, 1) as engine:
        for prompt, options, error, message in [
            (b"The cat", {}, TypeError, "prompt must be a text, got b'The cat'"),
            ("The cat", {"max_length": 3}, TypeError, "max_length"),
            ("The cat", {"max_tokens": -1}, ValueError, "max_tokens must be"),
            ("The cat", {"temperature": "hot"}, TypeError, "temperature must be"),
            ("The cat", {"logprobs": -1}, ValueError, "logprobs must be"),
            ("The cat", {"logit_bias": {10**6: 1.0}}, ValueError, "logit_bias has the id 1000000"),
            ("Q", {}, ValueError, "Q"),
        ]:
            with pytest.raises(error, match=message):
                engine.submit(prompt, **options)
        assert engine.running == engine.waiting == 0
        assert len(engine.submit("The cat", max_tokens=4, max_new_tokens=4).result().tokens) == 4


def test_memory_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tok = make(max_seq_len=60)
    a_row = 4 * (2 * 2 * 64 * 16 + 256)  # layers, keys and values, positions in blocks of 16, channels; logits
    assert soma.Engine.memory_of(model) == 16 * a_row
    with soma.Engine(model, tok, 3) as engine:
        assert engine.memory_bytes == 3 * a_row

    class NoMemory:
        bytes_per_row = staticmethod(lambda model, kv_cache: 2**30)

        def __init__(self, *arguments: object) -> None:
            raise MemoryError

    monkeypatch.setattr(_core, "Decoder", NoMemory)
    with pytest.raises(MemoryError, match="16 sequences need 16,384 MB for keys, values and logits: take fewer"):
        soma.Engine(model, tok)
