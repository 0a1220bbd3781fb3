"""The command soma-native with byte-level BPE: training, inspecting, and models of every preset."""

# ruff: noqa: F811 -- fixtures of test_cli are arguments here

from __future__ import annotations

import base64
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import TEXT, corpus, failed  # noqa: F401

import soma_native
from soma_native.cli.main import main
from soma_native.training.recipes import RECIPES


def test_bpe_there_and_back(run: Any, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "bpe.json"
    options = ("--kind", "bpe", "--vocab-size", 290, "--pattern", "o200k", "--special-token", "<e>")
    assert run("tokenizer", "train", corpus, "--out", out, *options, "--json").json["vocab_size"] == 290
    tok = soma_native.Tokenizer.load(out)
    assert (tok.kind, tok.special_tokens) == ("bpe", ("<e>",))
    text = "The cat's mät\n<e>"
    assert [int(word) for word in run("tokenizer", "encode", out, text).out.split()] == tok.encode(text)
    special = run("tokenizer", "encode", out, text, "--special")
    assert [int(word) for word in special.out.split()] == tok.encode(text, allowed_special="all")
    assert run("tokenizer", "decode", out, *special.out.split()).out == text + "\n"
    lines = tmp_path / "lines.json"
    assert run("tokenizer", "train", corpus, "--out", lines, *options, "--split", "line").status == 0
    few = run("tokenizer", "train", corpus, "--out", out, "--kind", "bpe", "--min-frequency", 10**9)
    assert few.status == 0 and "257 tokens" in few.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "bpe", "--vocab-size", 99), "--vocab-size must be at least 257 for kind bpe"),
        (("--kind", "bpe", "--pattern", "gpt5"), "invalid choice: 'gpt5'"),
        (("--kind", "bpe", "--min-frequency", 0), "must be at least 1"),
        (("--kind", "bpe", "--special-token", ""), "--special-token must not be empty"),
        (("--kind", "char", "--pattern", "gpt2"), "--pattern is for kind bpe alone, and the kind is char"),
        (("--min-frequency", 2), "--min-frequency is for kind bpe alone, and the kind is word"),
    ],
)
def test_errors_of_training_bpe(run: Any, corpus: Path, tmp_path: Path, options: tuple[Any, ...], message: str) -> None:
    result = run("tokenizer", "train", corpus, "--out", tmp_path / "t.json", *options)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("soma-native: error: ") and result.err.count("\n") == 1
    assert message in result.err


def test_vocabularies_of_others(run: Any, tmp_path: Path) -> None:
    tok = soma_native.Tokenizer.train([TEXT], kind="bpe", vocab_size=300)
    end = tok.vocab_size - 1
    ranks = [base64.b64encode(tok.decode_bytes([i])) + b" %d\n" % i for i in range(end)]
    (tmp_path / "some.tiktoken").write_bytes(b"".join(ranks))
    model = json.loads(tok.save(tmp_path).read_text(encoding="utf-8"))["model"]
    vocab = {**model["vocab"], "<|endoftext|>": end}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(model["merges"]), encoding="utf-8")
    tiktoken = (tmp_path / "some.tiktoken", "--pattern", "gpt2")
    named = (*tiktoken, "--special-token", f"<|endoftext|>={end}")
    gpt2 = (tmp_path / "vocab.json", "--merges", tmp_path / "merges.txt")
    text = "The cät's mat.<|endoftext|>"
    for others in (named, gpt2):
        found = run("tokenizer", "encode", others[0], text, *others[1:], "--special", "--json").json["ids"]
        assert found == tok.encode(text, allowed_special="all")
        assert run("tokenizer", "decode", others[0], *found, *others[1:]).out == text + "\n"
        assert run("tokenizer", "inspect", *others, "--json").json["special_tokens"] == ["<|endoftext|>"]
    assert run("tokenizer", "inspect", *tiktoken, "--json").json["special_tokens"] == []
    for arguments, problem in (
        (tiktoken[:1], "does not say how texts are split: give --pattern"),
        ((tmp_path, "--special-token", "<e>=299"), "--special-token goes with --pattern"),
        ((*gpt2, "--special-token", "<e>=299"), "--special-token goes with --pattern"),
        ((*tiktoken, "--special-token", "299"), "'299' is not of the form TEXT=ID"),
        ((*tiktoken, "--special-token", "<e>=x"), "must be a whole number, got 'x'"),
        ((*gpt2, "--pattern", "gpt2"), "not allowed with"),
    ):
        result = run("tokenizer", "inspect", *arguments)
        assert result.status == 2 and problem in result.err
    failed(run("tokenizer", "inspect", gpt2[0]), "vocab.json", "it has no 'model' (from_gpt2 reads a vocab.json")
    result = run("tokenizer", "inspect", *named[:-1], "<e>=5")
    assert result.status == 2 and "--special-token must have ids that are free" in result.err
    failed(run("tokenizer", "inspect", *gpt2[:-1], tmp_path / "none"), "none")


def test_inspect_shows_tokens_and_what_a_corpus_uses(run: Any, corpus: Path, tmp_path: Path) -> None:
    tok = soma_native.Tokenizer.train([TEXT], kind="bpe", vocab_size=300)
    path = tok.save(tmp_path)
    ids = tok.encode("the cät\n")
    shown = run("tokenizer", "inspect", path, "the cät\n")
    assert r"\xc3|\xa4" in shown.out and r"|\n" in shown.out  # bytes of a cut character and line ends are escaped
    assert " ".join(map(str, ids)) in shown.out
    assert f"{len(ids)} tokens, {9 / len(ids):.2f} bytes per token" in shown.out
    found = run("tokenizer", "inspect", path, "the cät\n", "--corpus", corpus, "--tokens", 4, "--json").json
    assert found["text"]["ids"] == ids
    usage = found["corpus"]
    counts = np.bincount(tok.encode(TEXT), minlength=tok.vocab_size)
    assert usage["bytes"] == len(TEXT.encode())
    assert usage["tokens"] == counts.sum()
    assert usage["bytes_per_token"] == pytest.approx(len(TEXT.encode()) / counts.sum())
    assert usage["used"] == np.count_nonzero(counts)
    assert usage["used"] + usage["never_used"] == tok.vocab_size - len(tok.special_tokens)
    special = {tok.token_to_id(token) for token in tok.special_tokens}
    unused = sorted(
        set(np.flatnonzero(counts == 0).tolist()) - special, key=lambda i: (len(tok.decode_bytes([i])) == 1, i)
    )
    assert [row["id"] for row in usage["unused"]] == unused[:4]
    assert [row["count"] for row in usage["rarest"]] == sorted(counts[counts > 0].tolist())[:4]
    assert found["longest"][0]["bytes"] == max(len(tok.decode_bytes([i])) for i in range(tok.vocab_size))
    table = run("tokenizer", "inspect", path, "--corpus", corpus, "--tokens", 4)
    assert "bytes per token" in table.out and "never used" in table.out
    listed = run("tokenizer", "inspect", path, "--tokens", 4)
    assert "the longest tokens" in listed.out and "<|endoftext|>" in listed.out
    failed(run("tokenizer", "inspect", path, "--corpus", tmp_path / "none"), "none: no such file or folder")


def test_inspect_colours_tokens_in_a_terminal(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = soma_native.Tokenizer.train([TEXT], kind="bpe", vocab_size=300).save(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in (("NO_COLOR", ""), ("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR")
    coloured = run("tokenizer", "inspect", path, "the \x1b[31mcat").out
    assert "\x1b[30;10" in coloured
    assert r"\x1b" in coloured and "\x1b[31m" not in coloured  # escape codes of a text never reach the terminal


def test_train_and_evaluate_with_bpe(run: Any, corpus: Path, tmp_path: Path) -> None:
    small = [
        "--preset",
        "nano-cpu",
        "--tokenizer",
        "bpe",
        "--vocab-size",
        "270",
        "--seq-len",
        "16",
        "--batch-size",
        "4",
    ]
    out = tmp_path / "model"
    assert run("train", corpus, "--out", out, "--steps", 2, *small, "--json").json["vocab_size"] == 270
    tok = soma_native.Tokenizer.load(out)
    assert tok.kind == "bpe"
    found = run("evaluate", out, corpus, "--json").json
    ids = tok.encode(TEXT)
    size = len(TEXT.encode()) - len(tok.decode_bytes(ids[:1]))
    assert found["bytes"] == size
    assert found["pairs"] == len(ids) - 1
    assert found["bits_per_byte"] == pytest.approx(found["loss"] * (len(ids) - 1) / math.log(2) / size)
    text = run("generate", out, "The cät", "--max-tokens", 20, "--seed", 1).out
    assert text.startswith("The cät")
    short = tmp_path / "short.txt"
    short.write_text("The cat sat on the mat.\na\nThe dog ate.\n", encoding="utf-8")  # a line of one token is left out
    found = run("evaluate", out, short, "--split", "line", "--json").json
    lines = [tok.encode("The cat sat on the mat."), tok.encode("The dog ate.")]
    assert found["bytes"] == sum(len(tok.decode_bytes(line[1:])) for line in lines)


def test_streamed_pieces_of_bpe_are_whole_characters(tmp_path: Path) -> None:
    tok = soma_native.Tokenizer.train(["中文é😀" * 9], kind="bpe", vocab_size=262)
    config = soma_native.ModelConfig(
        vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=32
    )
    generator = soma_native.Generator(soma_native.Model(config, seed=0), tok)
    for seed in range(20):
        settings: dict[str, Any] = {"max_tokens": 24, "temperature": 2.0, "seed": seed}
        pieces = list(generator.stream("中", **settings))
        assert "中" + "".join(pieces) == generator.generate("中", **settings)
        for piece in pieces:
            piece.encode("utf-8")
            assert piece


@pytest.mark.parametrize("preset", RECIPES)
def test_every_classic_preset_takes_bpe(
    run: Any, preset: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset's settings are passed to the model, which is replaced by a small one here."""
    made: list[Any] = []
    preset_of = soma_native.ModelConfig.preset

    def small(name: str, **arguments: Any) -> Any:
        made.append(preset_of(name, **arguments))
        return soma_native.ModelConfig(
            vocab_size=arguments["vocab_size"], d_model=8, n_layers=1, n_heads=1, d_ff=8, max_seq_len=16
        )

    monkeypatch.setattr(soma_native.ModelConfig, "preset", staticmethod(small))
    arguments = ("--preset", preset, "--tokenizer", "bpe", "--steps", 1, "--val-fraction", 0)
    result = run("train", corpus, "--out", tmp_path / preset, *arguments)
    assert result.status == 0, result.err
    assert soma_native.Tokenizer.load(tmp_path / preset).kind == "bpe"
    assert made[0].vocab_size == soma_native.Tokenizer.load(tmp_path / preset).vocab_size


@pytest.mark.parametrize(
    ("command", "more"),
    [("tokenizer encode", ["-"]), ("tokenizer decode", []), ("tokenizer inspect", ["-"]), ("generate", ["-"])],
)
def test_standard_input_that_is_not_utf8_is_named(
    command: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soma_native.Tokenizer.train(["ab"], kind="byte").save(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert main([*command.split(), str(tmp_path), *more]) == 1
    assert "standard input is not UTF-8 at byte 1 (0xff)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_tokenizer_is_not_put_over_that_of_a_model(run: Any, tmp_path: Path, name: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat", encoding="utf-8")
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    assert run("train", text, "--out", model, "--preset", "nano-cpu", "--steps", 1, "--val-fraction", 0).status == 0
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    result = run("tokenizer", "train", text, "--out", model / name)
    assert result.status == 1 and "needs its own tokenizer: give another place" in result.err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    for _ in range(2):  # a tokenizer alone may be replaced
        assert run("tokenizer", "train", text, "--out", tokenizer / name).status == 0
