"""The reference's own file: its logits, words and folder; files that are untrained, or of other shapes, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native
from helpers.soma_pickle import SPECIAL, WORDS, dumps, logits, reference
from soma_native.errors import CheckpointError


def read(folder: Path, saved: Any, protocol: int = 4) -> tuple[soma_native.Model, soma_native.Tokenizer]:
    (folder / "old.pkl").write_bytes(dumps(saved, protocol))
    return soma_native.import_soma_pickle(folder / "old.pkl")


def refused(folder: Path, saved: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        read(folder, saved)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["__main__", "soma_lgm"])
def test_the_logits_are_those_of_the_reference(protocol: int, module: str, tmp_path: Path) -> None:
    saved = reference(module)
    model, tok = read(tmp_path, saved, protocol)
    assert model.config.block == "soma" and tok.kind == "word" and tok.special_tokens == SPECIAL
    for length in (1, 10):
        ids = np.random.default_rng(length).integers(0, len(SPECIAL) + len(WORDS), length)
        assert np.abs(model.forward(ids) - logits(saved, ids)).max() < 1e-4


@pytest.mark.parametrize("form", ["float32", ">f8", "fortran"])
def test_arrays_in_other_forms(form: str, tmp_path: Path) -> None:
    saved = reference()
    for owner in (saved, *(vars(b) for b in saved["blocks"]), *(vars(b.token_interaction) for b in saved["blocks"])):
        for name, value in owner.items():
            if isinstance(value, np.ndarray):
                owner[name] = np.asfortranarray(value) if form == "fortran" else value.astype(form)
    for protocol in (2, 5):
        model, _ = read(tmp_path, saved, protocol)
        assert np.abs(model.forward(np.arange(10)) - logits(saved, np.arange(10))).max() < 1e-4


def test_words_are_those_of_the_reference(tmp_path: Path) -> None:
    """Runs of letters, digits and underscore of the lower-cased text; others are unknown."""
    saved = reference()
    saved["vocab"] = {word: np.int64(i) for word, i in saved["vocab"].items()}
    _, tok = read(tmp_path, saved)
    words = [tok.id_to_token(i) for i in tok.encode("The CAT, x_1: 42 Café! dog <PAD>")]
    assert words == ["the", "cat", "x_1", "42", "café", "<UNK>", "<UNK>"]


@pytest.mark.processor
def test_the_folder_is_ours(run: Any, tmp_path: Path) -> None:
    """soma-native import writes a folder that generates, and never over another model."""
    old, out = tmp_path / "old.pkl", tmp_path / "model"
    saved = reference()
    old.write_bytes(dumps(saved))
    assert run("import", old, "--out", out, "--json").json["vocab_size"] == len(SPECIAL) + len(WORDS)
    model, _ = soma_native.load(out)
    assert np.abs(model.forward(np.arange(10)) - logits(saved, np.arange(10))).max() < 1e-4
    assert run("generate", out, "the cat", "--max-tokens", 2).out.startswith("the cat")
    again = run("import", old, "--out", out)
    assert again.status == 1 and "would replace: give another folder" in again.err
    missing = run("import", tmp_path / "none.pkl", "--out", tmp_path / "other")
    assert missing.status == 1 and "there is no such file" in missing.err and len(missing.err.splitlines()) == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("embeddings", None, "its embeddings is None"),
        ("pos_embeddings", None, "its pos_embeddings is None"),
        ("output_proj", None, "its output_proj is None"),
        ("blocks", [], "its blocks is empty"),
        ("blocks", None, "its blocks is None"),
        ("vocab", {}, "its vocab is empty"),
    ],
)
def test_an_untrained_model_is_called_one(name: str, value: Any, said: str, tmp_path: Path) -> None:
    refused(tmp_path, {**reference(), name: value}, f"holds a model that was never trained: {said}")


def test_a_training_that_did_not_end_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, {**reference(), "trained": False})
    assert "its model was not trained to the end" in caplog.text


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    def changed(problem: str, change: Any) -> None:
        saved = reference()
        change(saved)
        refused(tmp_path, saved, problem)

    def block(saved: Any) -> Any:
        return saved["blocks"][1]

    changed("it has no 'vocab'", lambda saved: saved.pop("vocab"))
    changed("no SOMALGMConfig in config", lambda saved: saved.update(config={"d_model": 12}))
    changed("has 1 blocks, where config.n_layers is 2", lambda saved: saved["blocks"].pop())
    changed(r"has the shape \[9, 12\] in pos_emb", lambda saved: saved.update(pos_embeddings=np.zeros((9, 12))))
    changed(r"\[2, 2\] in blocks\[1\]\.token_interaction\.W_k, where \[12, 12\]",
            lambda saved: setattr(block(saved).token_interaction, "W_k", np.zeros((2, 2))))  # fmt: skip
    changed(r"no array of floating-point numbers in blocks\[1\]\.b1", lambda saved: setattr(block(saved), "b1", None))
    changed(r"blocks\[1\]\.b2", lambda saved: setattr(block(saved), "b2", np.zeros(12, int)))
    changed("has 5 heads of 4", lambda saved: setattr(block(saved).token_interaction, "n_heads", 5))
    changed("no usable config.d_ff", lambda saved: setattr(saved["config"], "d_ff", -1))
    changed("d_model must be a multiple|heads of 4", lambda saved: setattr(saved["config"], "n_heads", 5))
    changed(r"NaN, infinity or a number too large in blocks\[1\]\.W1", lambda s: block(s).W1.__setitem__((0, 0), 1e39))
    changed("too large in embeddings", lambda saved: saved["embeddings"].__setitem__((0, 0), np.nan))
    changed("ids are not 0 to 14", lambda saved: saved["vocab"].update(cat=8))
    changed("ids are not 0 to 15", lambda saved: saved["vocab"].update(more=20))
    changed("has 16 words, more than the 15 rows", lambda saved: saved["vocab"].update(more=15))
    changed("id_to_token that disagrees", lambda saved: saved["id_to_token"].update({7: "dog"}))
    refused(tmp_path, [1, 2], "is a pickle, but no SOMA model: a dict is expected")


def test_files_that_are_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    for content, problem in [
        (b"", "is no pickle"),
        (b"<html>", "is a web page"),
        (b"\x1f\x8b\x08abc", r"is packed \(gzip\)"),
        (b"hello", "is no pickle"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=problem):
            soma_native.import_soma_pickle(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        soma_native.import_soma_pickle(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        soma_native.import_soma_pickle(tmp_path / "none")
    path.write_bytes(dumps(reference()))
    with pytest.raises(CheckpointError, match="is a pickle, which can run any code"):  # everywhere else
        soma_native.Tokenizer.load(path)
