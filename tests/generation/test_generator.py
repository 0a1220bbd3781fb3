"""Generation: the cache, the sampler and the handling of text, for every kind of tokenizer."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest

import soma_native
from soma_native import Generator, _core
from soma_native.generation.text_writer import TextWriter

TEXTS = ["The cat sat on the mat.", "A dog ate the cat's food, and the cat said: no!", "Grüße, 世界 🌍!"]


def make(kind: str = "word", max_seq_len: int = 16, block: str = "soma", extra: int = 0, **special: Any) -> Generator:
    """A generator of a random model with large weights, so that some tokens are much likelier than others."""
    tok = soma_native.Tokenizer.train(TEXTS, kind=kind, **special)
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size + extra,
        d_model=16,
        n_layers=2,
        n_heads=2,
        d_ff=32,
        max_seq_len=max_seq_len,
        block=block,
    )
    model = soma_native.Model(config, seed=3, precision="float32")
    for name, array in model.parameters().items():
        model.write(name, 20 * array)
    return Generator(model, tok)


def prefer(generator: Generator, *ids: int) -> None:
    """Sets the weights so that the next token is always the id that follows the last one in a cycle."""
    parameters = {name: np.zeros_like(array) for name, array in generator._model.parameters().items()}
    width = generator._model.config.d_model
    assert len(ids) <= width
    for place, (this, following) in enumerate(zip(ids, [*ids[1:], ids[0]], strict=True)):
        parameters["wte"][this, place] = 1
        parameters["lm_head"][following, place] = 50
    for name, array in parameters.items():
        generator._model.write(name, array)


# the loop ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_greedy_text_is_what_the_full_forward_says(kind: str, block: str) -> None:
    generator = make(kind, max_seq_len=64, block=block)
    model, tok = generator._model, generator._tok
    ids = tok.encode("The cat")
    banned = [tok.token_to_id(token) for token in tok.special_tokens]
    for _ in range(20):
        logits = model.forward(np.array(ids))[-1].copy()
        logits[banned] = -np.inf
        ids.append(int(logits.argmax()))
    got = generator.generate("The cat", max_tokens=20, temperature=0, repetition_penalty=1)
    continuation = tok.decode_bytes(ids[len(tok.encode("The cat")) :]).decode("utf-8", "replace")
    assert got == "The cat" + (" " if kind == "word" else "") + continuation


def test_cached_logits_are_those_of_the_full_forward(block: str) -> None:
    generator = make("word", max_seq_len=12, block=block)
    model = generator._model
    rng = np.random.default_rng(0)
    ids = rng.integers(6, model.config.vocab_size, 12).astype(np.int32)
    full = model.forward(ids)
    decoder = _core.Decoder(model._core, 1)
    decoder.prefill(0, ids[:5])
    for position in range(5, 13):
        scale = np.abs(full).max()
        np.testing.assert_allclose(decoder.logits()[0], full[position - 1], rtol=0, atol=2e-5 * scale)
        if position < 12:
            decoder.step(np.array([0], np.int32), ids[position : position + 1])


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_batch_gives_what_single_calls_give(kind: str, temperature: float, block: str) -> None:
    generator = make(kind, max_seq_len=10, block=block)  # short: the windows of rows slide at different times
    prompts = ["The cat", "A", "", "the cat said the cat sat on the mat a dog ate", "dog"]
    single = [generator.generate(p, max_tokens=25, temperature=temperature, seed=5) for p in prompts]
    assert generator.generate_batch(prompts, max_tokens=25, temperature=temperature, seed=5) == single
    assert generator.generate_batch(iter(prompts[:1]), max_tokens=25, temperature=temperature, seed=5) == single[:1]


def test_an_empty_batch() -> None:
    assert make().generate_batch([]) == []


def test_seeds() -> None:
    generator = make()
    texts = [generator.generate("the", max_tokens=12, temperature=2.0, seed=seed) for seed in range(20)]
    again = [generator.generate("the", max_tokens=12, temperature=2.0, seed=seed) for seed in range(20)]
    assert texts == again
    assert len(set(texts)) > 15
    fresh = {generator.generate("the", max_tokens=12, temperature=2.0) for _ in range(5)}
    assert len(fresh) > 1
    batch = generator.generate_batch(["the"] * 5, max_tokens=12, temperature=2.0)
    assert len(set(batch)) > 1, "without a seed every row gets one of its own"


def test_sampling_settings_reach_the_sampler() -> None:
    generator = make()
    greedy = generator.generate("the", max_tokens=8, temperature=0, repetition_penalty=1)
    assert generator.generate("the", max_tokens=8, temperature=5.0, top_k=1, repetition_penalty=1) == greedy
    assert generator.generate("the", max_tokens=8, temperature=5.0, top_p=1e-9, repetition_penalty=1) == greedy
    words = generator.generate("the", max_tokens=8, temperature=0, repetition_penalty=1e9).split()
    assert len(set(words)) == len(words), "with such a penalty no word comes twice"


@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_the_window_slides(window: int) -> None:
    """A full context shrinks to its last max_seq_len // 2 tokens, at least one, then grows again."""
    generator = make(max_seq_len=window)
    model, tok = generator._model, generator._tok
    context = tok.encode("the cat sat on the mat a dog ate the")[-window:]
    written = []
    for _ in range(20):
        logits = model.forward(np.array(context))[-1].copy()
        logits[:6] = -np.inf
        written.append(int(logits.argmax()))
        context.append(written[-1])
        if len(context) > window:
            context = context[-max(1, window // 2) :]
    prompt = "the cat sat on the mat a dog ate the"
    got = generator.generate(prompt, max_tokens=20, temperature=0, repetition_penalty=1)
    assert got == f"{prompt} {tok.decode(written)}"


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_smallest_windows(window: int) -> None:
    assert len(make(max_seq_len=window).generate("the cat sat on", max_tokens=9, seed=0).split()) == 13


def test_weights_are_read_live() -> None:
    generator = make()
    before = generator.generate("the", max_tokens=10, temperature=0)
    prefer(generator, *generator._tok.encode("the dog ate"))
    assert generator.generate("the", max_tokens=5, temperature=0, repetition_penalty=1) == "the dog ate the dog ate"
    assert before != generator.generate("the", max_tokens=10, temperature=0)


# text ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_the_stream_is_the_text_after_the_prompt(kind: str) -> None:
    generator = make(kind, max_seq_len=20)
    for prompt, seed in itertools.product(["The cat", "the ", "", "Grüße, 世"], range(5)):
        pieces = list(generator.stream(prompt, max_tokens=30, temperature=1.5, seed=seed, top_k=0))
        assert all(pieces), "no empty pieces"
        assert prompt + "".join(pieces) == generator.generate(
            prompt, max_tokens=30, temperature=1.5, seed=seed, top_k=0
        )


def test_pieces_are_whole_characters() -> None:
    generator = make("byte")
    text = "é世🌍"
    prefer(generator, *text.encode())
    pieces = list(generator.stream("🌍", max_tokens=18, temperature=0, repetition_penalty=1))
    assert "".join(pieces) == "é世🌍é世🌍"
    assert pieces == ["é", "世", "🌍"] * 2
    cut = list(generator.stream("🌍", max_tokens=16, temperature=0, repetition_penalty=1))
    assert "".join(cut) == "é世🌍é世\ufffd", "an unfinished character at the end becomes a replacement"


def test_word_prompts_are_kept_as_given() -> None:
    generator = make()
    prefer(generator, *generator._tok.encode("cat sat"))
    ask = {"max_tokens": 2, "temperature": 0, "repetition_penalty": 1}
    assert generator.generate("The  CAT!?", **ask) == "The  CAT!? sat cat"
    assert generator.generate("cat ", **ask) == "cat sat cat"
    assert generator.generate("cat\n", **ask) == "cat\nsat cat"
    assert list(generator.stream("cat", **ask)) == [" sat", " cat"]


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (" sat", "cat"),
        ("sat", "cat "),
        ("at on", "cat s"),
        (["nothing", "mat"], "cat sat on "),
        (("on m", "t on"), "cat sa"),
        ("nothing", "cat sat on mat cat"),
        ([], "cat sat on mat cat"),
        ("cat", "cat sat on mat "),
        ("cat sat", "cat sat on mat cat"),
    ],
)
def test_stop_strings(stop: Any, expected: str) -> None:
    generator = make()
    prefer(generator, *generator._tok.encode("cat sat on mat"))
    ask = {"max_tokens": 4, "temperature": 0, "repetition_penalty": 1, "stop": stop}
    assert generator.generate("cat", **ask) == expected
    assert "cat" + "".join(generator.stream("cat", **ask)) == expected
    assert generator.generate_batch(["cat", "sat"], **ask)[0] == expected


def test_the_stream_never_shows_a_part_of_a_stop_string() -> None:
    text = "aab aabaabc aab aabaabd tail aa"
    for stops in [("aabaabd",), ("aabd", "aabaabc"), ("tail aab",), ("aa aa", "xx")]:
        writer = TextWriter(None, stops)
        shown = ""
        cut = min((text.find(stop) for stop in stops if stop in text), default=len(text))
        for character in text:
            shown += writer.write([character.encode()])
            if writer.stopped:
                break
            assert not any(shown.endswith(stop[:n]) for stop in stops for n in range(1, len(stop))), shown
        assert shown + writer.finish() == text[:cut]


def test_a_stop_string_across_bytes() -> None:
    writer = TextWriter(None, ("世!",))
    assert "".join(writer.write([bytes([byte])]) for byte in "ab世!".encode()) == "ab"
    assert writer.stopped and writer.finish() == ""


# special tokens and prompts ------------------------------------------------------------------------------------------


def test_special_tokens_are_never_generated() -> None:
    generator = make()
    special = [generator._tok.token_to_id(token) for token in generator._tok.special_tokens]
    head = generator._model.read("lm_head")
    head[special] *= 1000
    generator._model.write("lm_head", head)
    for seed in range(30):
        text = generator.generate("the", max_tokens=20, temperature=3.0, top_k=0, top_p=1, seed=seed)
        assert len(text.split()) == 21 and "<" not in text


def test_ids_beyond_the_tokenizer_are_never_generated() -> None:
    generator = make(extra=40)
    texts = [generator.generate("the", max_tokens=20, temperature=9.0, top_k=0, top_p=1, seed=s) for s in range(10)]
    assert all(len(text.split()) == 21 for text in texts)


def test_an_end_token_ends_the_text() -> None:
    generator = make()
    end = generator._tok.token_to_id("<EOS>")
    prefer(generator, *generator._tok.encode("cat sat"), end)
    ask = {"temperature": 0, "repetition_penalty": 1}
    assert generator.generate("cat", max_tokens=3, **ask).startswith("cat sat "), "by default <EOS> is not an end"
    generator = Generator(generator._model, generator._tok, end_token="<EOS>")
    assert generator.generate("cat", **ask) == "cat sat"
    assert list(generator.stream("cat", **ask)) == [" sat"]
    assert generator.generate_batch(["cat", "sat", "cat cat"], **ask) == ["cat sat", "sat", "cat cat sat"]
    tok = soma_native.Tokenizer.train(TEXTS, kind="word", special_tokens=("<UNK>", "<|endoftext|>"))
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=16, n_layers=1, n_heads=2, d_ff=8, max_seq_len=8
    )
    generator = Generator(soma_native.Model(config), tok)
    prefer(generator, *tok.encode("cat sat"), tok.token_to_id("<|endoftext|>"))
    assert generator.generate("cat", **ask) == "cat sat"


def test_unknown_words_are_named(caplog: pytest.LogCaptureFixture) -> None:
    generator = make()
    with caplog.at_level(logging.WARNING, logger="soma_native"):
        text = generator.generate("The Zebra sat, zebra and Yak.", max_tokens=2, seed=0)
    assert text.startswith("The Zebra sat, zebra and Yak. ")
    assert "read as <UNK>: Zebra, zebra, Yak" in caplog.text
    caplog.clear()
    generator.generate(" ".join(f"z{i}" for i in range(13)), max_tokens=1, seed=0)
    assert caplog.messages == [
        f"not in the vocabulary, read as <UNK>: {', '.join(f'z{i}' for i in range(10))} and 3 more"
    ]
    caplog.clear()
    generator.generate("The cat", max_tokens=2, seed=0)
    assert caplog.text == ""


def test_an_unknown_character_without_unk_raises() -> None:
    with pytest.raises(ValueError, match="Q"):
        make("char", special_tokens=()).generate("Q")


@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_an_empty_prompt(kind: str) -> None:
    text = make(kind).generate("", max_tokens=5, seed=0)
    assert text and not text.startswith(" ")
    assert make(kind).generate("", max_tokens=0) == ""


def test_an_empty_prompt_starts_from_a_line_break_where_there_is_no_better() -> None:
    generator = make("byte")
    prefer(generator, *b"\nabc")
    assert generator.generate("", max_tokens=3, temperature=0) == "abc"


def test_a_prompt_without_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="soma_native"):
        assert make().generate("?!", max_tokens=1, seed=0).startswith("?! ")
    assert "no token" in caplog.text


# arguments -----------------------------------------------------------------------------------------------------------


def test_max_tokens() -> None:
    generator = make()
    assert generator.generate("The cat", max_tokens=0) == "The cat"
    assert list(generator.stream("The cat", max_tokens=0)) == []
    assert generator.generate_batch(["The cat", "A"], max_tokens=0) == ["The cat", "A"]
    assert len(generator.generate("the").split()) == 101
    assert len(generator.generate("the", 3).split()) == 4
    assert len(generator.generate("the", max_new_tokens=3).split()) == 4
    assert len(generator.generate("the", max_tokens=np.int64(3), max_new_tokens=3).split()) == 4
    with pytest.raises(TypeError, match="max_tokens is 3 and its alias max_new_tokens 4"):
        generator.generate("the", max_tokens=3, max_new_tokens=4)


@pytest.mark.parametrize("call", ["generate", "generate_batch", "stream"])
@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        ({"max_length": 5}, TypeError, "max_length.*max_tokens"),
        ({"heat": 5}, TypeError, "'heat': allowed are max_tokens"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be"),
        ({"max_tokens": 2.0}, TypeError, "max_tokens must be"),
        ({"max_tokens": True}, TypeError, "max_tokens must be"),
        ({"max_tokens": "5"}, TypeError, "max_tokens must be"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be"),
        ({"temperature": -0.1}, ValueError, "temperature must be at least 0"),
        ({"temperature": math.nan}, ValueError, "temperature must be"),
        ({"temperature": math.inf}, ValueError, "temperature must be"),
        ({"temperature": "hot"}, TypeError, "temperature must be"),
        ({"temperature": None}, TypeError, "temperature must be"),
        ({"top_k": -1}, ValueError, "top_k must be"),
        ({"top_k": 1.5}, TypeError, "top_k must be"),
        ({"top_p": 0}, ValueError, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.01}, ValueError, "top_p must be"),
        ({"top_p": math.nan}, ValueError, "top_p must be"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be"),
        ({"repetition_penalty": -1}, ValueError, "repetition_penalty must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"seed": 1 << 64}, ValueError, "seed must be"),
        ({"seed": 1.0}, TypeError, "seed must be"),
        ({"stop": ""}, ValueError, "must not hold an empty text"),
        ({"stop": ["a", ""]}, ValueError, "must not hold an empty text"),
        ({"stop": 5}, TypeError, "stop must be"),
        ({"stop": [5]}, TypeError, "got 5 in it"),
    ],
)
def test_bad_arguments(call: str, arguments: dict[str, Any], error: type[Exception], wanted: str) -> None:
    generator = make()
    with pytest.raises(error, match=wanted):
        getattr(generator, call)(["the"] if call == "generate_batch" else "the", **arguments)


def test_settings_that_switch_off() -> None:
    generator = make()
    off = generator.generate("the", 9, 1.0, 0, 1.0, 1.0, seed=4)
    assert off == generator.generate("the", 9, 1.0, top_k=None, top_p=None, repetition_penalty=None, seed=4)
    assert off == generator.generate("the", 9, 1.0, top_k=10**6, top_p=1, repetition_penalty=1, seed=4, stop=[])


def test_bad_prompts() -> None:
    generator = make()
    for prompt in (None, 5, b"the", ["the"]):
        with pytest.raises(TypeError, match="prompt must be a text"):
            generator.generate(prompt)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prompts must be a list"):
        generator.generate_batch("the")
    with pytest.raises(TypeError, match=r"prompts\[1\] must be a text"):
        generator.generate_batch(["the", 5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="surrogate"):
        make("char").generate("the \ud800")


def test_bad_generators() -> None:
    generator = make()
    model, tok = generator._model, generator._tok
    with pytest.raises(ValueError, match="they do not belong together"):
        Generator(model, soma_native.Tokenizer.train(["and many more words than before " * 2, *TEXTS], kind="char"))
    with pytest.raises(ValueError, match="end_token must be a token of the vocabulary"):
        Generator(model, tok, end_token="<NO>")


def test_a_stream_may_be_left() -> None:
    stream = make().stream("the", max_tokens=10**9, seed=0)
    assert len(list(itertools.islice(stream, 5))) == 5
    stream.close()  # type: ignore[attr-defined]


def test_ctrl_c_between_tokens() -> None:
    import _thread

    generator = make()
    with pytest.raises(KeyboardInterrupt):
        for count, _ in enumerate(generator.stream("the", max_tokens=10**9)):
            if count == 3:
                _thread.interrupt_main()
            assert count < 1000


def test_signatures_are_the_documented_ones() -> None:
    import inspect

    wanted = (
        "max_tokens: 'int' = 100, temperature: 'float' = 0.7, top_k: 'int | None' = 50, "
        "top_p: 'float | None' = 0.95, repetition_penalty: \"float | Literal['auto'] | None\" = 'auto', "
        "seed: 'int | None' = None, stop: 'str | Iterable[str] | None' = None, *, max_new_tokens: 'int | None' = None"
    )
    for method in (Generator.generate, Generator.stream, Generator.generate_batch):
        assert wanted in str(inspect.signature(method))


def test_a_given_100_is_no_default() -> None:
    with pytest.raises(TypeError, match="max_tokens is 100 and its alias max_new_tokens 4"):
        make().generate("the", max_tokens=100, max_new_tokens=4)


def test_a_smaller_tokenizer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    tok = soma_native.Tokenizer.train(["the cat sat"], kind="char")
    shape = {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8, "max_seq_len": 8}
    model = soma_native.Model(soma_native.ModelConfig(vocab_size=tok.vocab_size + 3, **shape))
    Generator(model, tok)
    assert f"the tokenizer has {tok.vocab_size} tokens, the model {tok.vocab_size + 3}" in caplog.text


@pytest.mark.parametrize(("kind", "penalty"), [("word", 1.15), ("char", 1), ("bpe", 1)])
def test_the_automatic_penalty_is_for_words(kind: str, penalty: float) -> None:
    tok = soma_native.Tokenizer.train(["the cat sat on the mat and the dog sat on the cat"], kind=kind)
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=32
    )
    generator = Generator(soma_native.Model(config, seed=0), tok)
    ask = {"max_tokens": 30, "temperature": 0.1, "seed": 1}
    assert generator.generate("the cat", **ask) == generator.generate("the cat", repetition_penalty=penalty, **ask)
    assert generator.generate("the cat", **ask) != generator.generate("the cat", repetition_penalty=3, **ask)
