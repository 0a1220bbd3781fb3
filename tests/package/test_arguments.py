"""Arguments of a wrong type or value raise errors that name the argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma

SHAPE = {"vocab_size": 8, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 4}
MODEL = soma.Model(soma.ModelConfig(**SHAPE))
TOK = soma.Tokenizer.train(["ab"], kind="char")
ANY: Any = None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: soma.AdamW(MODEL, lr="x"), TypeError, "lr must be a number, got 'x'"),  # type: ignore[arg-type]
        (lambda: soma.AdamW(MODEL, lr=ANY), TypeError, "lr must be a number, got None"),
        (lambda: soma.AdamW(MODEL, betas=3), TypeError, "betas must be a pair"),  # type: ignore[arg-type]
        (lambda: soma.AdamW(MODEL, betas=("a", 0)), TypeError, r"betas\[0\] must be"),  # type: ignore[arg-type]
        (lambda: soma.AdamW(MODEL, max_grad_norm="x"), TypeError, "max_grad_norm must be"),  # type: ignore[arg-type]
        (lambda: soma.AdamW(MODEL).step(lr="x"), TypeError, "lr must be a number"),  # type: ignore[arg-type]
        (lambda: MODEL.forward([[1, 2], [3]]), ValueError, "ids must have shape .* rows of different lengths"),
        (lambda: soma.set_num_threads("2"), TypeError, "n must be an integer, got '2'"),  # type: ignore[arg-type]
        (lambda: soma.set_num_threads(1.5), TypeError, "n must be an integer, got 1.5"),  # type: ignore[arg-type]
        (lambda: soma.set_num_threads(True), TypeError, "n must be an integer, got True"),
        (lambda: soma.set_num_threads(10**30), ValueError, "from 1 to 1024"),
        (lambda: soma.load(ANY), TypeError, "folder must be the path of a folder"),
        (lambda: soma.save(ANY, MODEL, ANY), TypeError, "folder must be the path of a folder"),
        (lambda: soma.save("", MODEL, TOK), ValueError, "folder must name a folder, got an empty text"),
        (lambda: soma.save(" ", MODEL, TOK), ValueError, "folder must name a folder, got white space alone: ' '"),
        (lambda: soma.TrainConfig(end_of_document=""), ValueError, "end_of_document must be a token, got an empty"),
        (lambda: soma.load(""), ValueError, "folder must name a folder, got an empty text"),
        (lambda: soma.TrainConfig(checkpoint_dir=""), ValueError, "checkpoint_dir must name a folder"),
        (lambda: TOK.save(""), ValueError, "path must name a file"),
        (lambda: soma.Tokenizer.load(""), ValueError, "path must name a file"),
        (lambda: soma.Tokenizer.from_gpt2("", ""), ValueError, "path must name a file"),
        (lambda: soma.save("x", ANY, ANY), TypeError, "model must be"),
        (lambda: soma.save("x", MODEL, "tok"), TypeError, "tok must be"),  # type: ignore[arg-type]
        (lambda: soma.Trainer(ANY, TOK), TypeError, "model must be a soma_native.Model, got NoneType"),
        (lambda: soma.Trainer(MODEL, "word"), TypeError, "tokenizer must be a soma_native.Tokenizer, got str"),  # type: ignore[arg-type]
        (lambda: soma.Generator(ANY, TOK), TypeError, "model must be a soma_native.Model, got NoneType"),
        (lambda: soma.Generator(MODEL, ANY), TypeError, "tok must be a soma_native.Tokenizer, got NoneType"),
        (lambda: soma.Generator(MODEL, TOK).generate_batch(ANY), TypeError, "prompts must be a list"),
        (
            lambda: soma.Generator(MODEL, TOK).stream("a", repetition_penalty=1e300),
            ValueError,
            "repetition_penalty must be",
        ),
        (lambda: soma.Generator(MODEL, TOK).stream("a", temperature=1e999), ValueError, "temperature must be finite"),
        (lambda: soma.TrainConfig(lr=1e999), ValueError, "lr must be finite"),
        (lambda: TOK.id_to_token(1.5), TypeError, "i must be an integer"),  # type: ignore[arg-type]
        (lambda: TOK.id_to_token(True), TypeError, "i must be an integer"),
        (lambda: soma.Tokenizer.train("books/missing"), FileNotFoundError, "no such text file"),
        (lambda: soma.Tokenizer.train("missing.txt"), FileNotFoundError, "no such text file"),
        (lambda: soma.Tokenizer.train("and/or, one says."), TypeError, "pass .text. for one text"),
        (lambda: soma.Tokenizer.train("end."), TypeError, "pass .text. for one text"),
    ],
)
def test_the_argument_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_model_too_large_for_memory_says_how_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: object, **options: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr("soma_native._core.Model", full)
    config = soma.ModelConfig.preset("gpt2-124m")
    with pytest.raises(MemoryError, match=r"124,439,808 parameters: .* 0\.9 GiB"):
        soma.Model(config)


def test_no_clipping_is_none_in_the_trainer_too() -> None:
    assert soma.TrainConfig(max_grad_norm=None) == soma.TrainConfig(max_grad_norm=0)


def test_resuming_is_not_hindered_by_none(tmp_path: Path) -> None:
    config = soma.TrainConfig(max_grad_norm=None, checkpoint_dir=tmp_path)
    assert soma.TrainConfig.from_dict(config.to_dict()).max_grad_norm == 0.0


def test_objects_say_what_they_are() -> None:
    model = soma.Model(soma.ModelConfig(**SHAPE))
    optimizer = soma.AdamW(model, lr=0.01)
    model.loss_and_grad([1, 2], [2, 3])
    optimizer.step()
    assert "block='soma', parameters=" in repr(model) and "vocab_size=8" in repr(model)
    assert repr(optimizer) == f"AdamW(lr=0.01, step_count=1, model={model!r})"
    generator = soma.Generator(model, TOK, weights="int8")
    assert repr(generator) == f"Generator(model={model!r}, tok={TOK!r}, weights='int8')"
    assert repr(soma.Trainer(model, TOK)) == f"Trainer(model={model!r}, tokenizer={TOK!r}, history=History(0 records))"
