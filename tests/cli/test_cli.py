"""The command soma-native: called in this process, or run as a program for signals and pipes."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native
from helpers.command import Result
from soma_native.cli.main import main

TEXT = (
    """The cat sat on the mat. A dog ate the cat's food, and the cat said: no!
The dog sat on the cat. The mat ate the dog, and the food said: yes!
"""
    * 12
)
PROGRAM = [sys.executable, "-m", "soma_native"]
SMALL = ["--preset", "nano-cpu", "--tokenizer", "word", "--seq-len", "16", "--batch-size", "4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that `train` made."""
    out = tmp_path_factory.mktemp("runs") / "model"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", str(corpus), "--out", str(out), "--steps", "6", *SMALL]) == 0
    return out


# help and usage ------------------------------------------------------------------------------------------------------

COMMANDS = (
    (), ("showcase",), ("train",), ("plan",), ("generate",), ("serve",), ("score",), ("evaluate",), ("tokenizer",),
    ("tokenizer", "train"), ("tokenizer", "encode"), ("tokenizer", "decode"), ("tokenizer", "inspect"), ("bench",),
    ("export",), ("import",), ("info",),
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(run: Any, command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert not re.search(r"\([\d./\w]*[\d/][\d./\w]*\)", result.out), "a default is called one"
    assert result.status == 0 and result.err == ""
    assert f"Example:\n  soma-native {' '.join(command)}" in result.out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "name a command"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("train",), "the following arguments are required: CORPUS, --out"),
        (("train", "x", "--out", "y", "--steps", "5", "--epochs", "5"), "not allowed with"),
        (("train", "x", "--out", "y", "--steps", "0"), "--steps: must be at least 1"),
        (("train", "x", "--out", "y", "--max-eval-windows", "0"), "--max-eval-windows: must be at least 1"),
        (("train", "x", "--out", "y", "--lr", "nan"), "--lr: must be finite"),
        (("train", "x", "--out", "y", "--preset", "huge"), "invalid choice: 'huge'"),
        (("train", "x", "--out", "y", "--val-fraction", "1"), "must be at least 0 and below 1"),
        (("train", "x", "--out", "y", "--seed", "-1"), "--seed"),
        (("generate", "x"), "required: PROMPT"),
        (("generate", "x", "y", "--top-p", "0"), "must be above 0 and at most 1"),
        (("generate", "x", "y", "--max-tokens", "many"), "must be a whole number, got 'many'"),
        (("generate", "x", "y", "--temperature", "-1"), "must be at least 0"),
        (("evaluate", "x"), "required: CORPUS"),
        (("tokenizer",), "name an action"),
        (("tokenizer", "decode", "x", "-1"), ""),
        (("info", "--nonsense"), "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_usage_is_status_2_and_one_line(run: Any, arguments: tuple[str, ...], problem: str) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert result.err.startswith("soma-native: error: ") and result.err.count("\n") == 1
    assert problem in result.err
    assert result.out == ""


def failed(result: Result, *wanted: str) -> None:
    """Status 1, and the last line of standard error is an error of the command that holds all of `wanted`."""
    assert result.status == 1
    assert "Traceback" not in result.err
    last = result.err.rstrip("\n").split("\n")[-1]
    assert last.startswith("soma-native: error: ")
    for text in wanted:
        assert text in last


def test_version_and_info(run: Any) -> None:
    assert run("--version").out == f"soma-native {soma_native.__version__}\n"
    info = run("info", "--json").json
    assert info["version"] == soma_native.__version__
    assert info["isas"] == list(soma_native.available_isas())
    assert info["isa"] == soma_native.active_isa()
    assert info["threads"] == soma_native.get_num_threads()
    assert info["precision"] in {"float32", "bfloat16"}
    text = run("info").out
    assert all(str(info[name]) in text for name in ("version", "isa", "threads", "precision"))


def test_info_says_what_to_install_for_a_gpu(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOMA_CUDA_LIBRARY", raising=False)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    told = run("info", "--json").json["cuda"]
    problem = "needs the package soma-native-cuda13, which is not installed: pip install soma-native-cuda13"
    assert told == {"library": None, "driver": None, "products": None, "gpus": [], "problem": problem}
    assert f"none: --device cuda {problem}" in " ".join(run("info").out.split())


# train ---------------------------------------------------------------------------------------------------------------


def test_train_generate_evaluate(run: Any, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "model"
    result = run("train", corpus, "--out", out, "--steps", 4, "--json", *SMALL)
    report = result.json
    model, tok = soma_native.load(out)
    assert report["parameters"] == model.num_parameters
    assert report["vocab_size"] == tok.vocab_size == model.config.vocab_size
    assert model.config.max_seq_len == 16 and model.config.block == "gpt2"
    assert report["val_loss"] is not None, "a tenth is held out by default"
    assert report["epochs"][-1]["step"] == 4
    assert (out / "history.csv").exists()

    text = run("generate", out, "The Cat", "--max-tokens", 5, "--seed", 3)
    expected = soma_native.Generator(model, tok).generate("The Cat", max_tokens=5, seed=3)
    assert text.out == expected + "\n"
    assert run("generate", out, "The Cat", "--max-tokens", 5, "--seed", 3, "--json").json["text"] == expected
    assert run("generate", out, "The Cat", "--max-tokens", 0).out == "The Cat\n"
    greedy = soma_native.Generator(model, tok).generate("a", 4, temperature=0, repetition_penalty=2.0, stop=["dog"])
    flags = ("--max-tokens", 4, "--temperature", 0, "--repetition-penalty", 2, "--stop", "dog")
    assert run("generate", out, "a", *flags).out == greedy + "\n"

    measured = run("evaluate", out, corpus, "--json").json
    ids = np.array(tok.encode(TEXT))
    total = 0.0
    for begin in range(0, len(ids) - 1, 16):
        window = ids[begin : begin + 17]
        total += model.loss(window[None, :-1], window[None, 1:]) * (len(window) - 1)
    assert measured["pairs"] == len(ids) - 1
    assert math.isclose(measured["loss"], total / measured["pairs"], rel_tol=1e-5)
    assert math.isclose(measured["perplexity"], math.exp(measured["loss"]), rel_tol=1e-9)
    assert measured["bits_per_byte"] is None, "words lose case and punctuation"
    assert "not comparable" in run("evaluate", out, corpus).out
    assert f"{measured['loss']:.4f}" in run("evaluate", out, corpus).out


def test_a_validation_may_look_at_a_part(run: Any, corpus: Path, tmp_path: Path) -> None:
    command = ("train", corpus, "--val-fraction", "0.3", *SMALL)
    whole, part, most = (
        run(*command, "--steps", 2, "--out", tmp_path / f"{i}", "--json", *flags).json
        for i, flags in enumerate([(), ("--max-eval-windows", 1), ("--max-eval-windows", 10**6)])
    )
    assert whole["train_loss"] == part["train_loss"] == most["train_loss"]
    assert whole["val_loss"] == most["val_loss"] != part["val_loss"]
    again = (*command, "--out", tmp_path / "1", "--resume", "--json")
    assert run(*again).json["val_loss"] == part["val_loss"]


def test_training_in_bfloat16(run: Any, corpus: Path, tmp_path: Path) -> None:
    """The run has the precision of the option, differs from a float32 run, and keeps it when resumed."""
    losses = {}
    for precision in ("float32", "bfloat16"):
        flags = ("train", corpus, "--out", tmp_path / precision, "--precision", precision, "--json", *SMALL)
        report = run(*flags, "--steps", 4).json
        assert report["precision"] == precision
        losses[precision] = report["epochs"][-1]["train_loss"]
    assert losses["float32"] != losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert run("train", corpus, "--out", tmp_path / "bfloat16", "--resume", "--json").json["precision"] == "bfloat16"


def test_train_says_what_it_does(run: Any, corpus: Path, tmp_path: Path) -> None:
    result = run("train", corpus, "--out", tmp_path / "m", "--epochs", 2, *SMALL, "--val-fraction", "0.2", "--seed", 7)
    assert result.status == 0
    assert result.out.count("\n") == 1 and str(tmp_path / "m") in result.out
    assert "pairs" in result.err and "epoch 2/2" in result.err


def test_overfitting_is_said_once_and_again_at_the_end(
    run: Any, corpus: Path, tmp_path: Path, find_losses: Callable[..., None]
) -> None:
    find_losses(3.0, 2.0, 2.5, 2.6, 2.4)
    command = ("train", corpus, "--epochs", 5, "--lr", "0.01", "--val-fraction", "0.3", *SMALL)
    result = run(*command, "--out", tmp_path / "m")
    assert result.status == 0, result.err
    assert result.err.count("soma-native: over-fitting from step") == 1
    assert result.out.count("warning: over-fitting from step") == 1
    history = soma_native.History.from_json(tmp_path / "m" / "history.json")
    best = history.best
    assert best is history.records[1]
    lines = result.out.splitlines()
    saved = f"epoch {best['epoch']}, step {best['step']}"
    assert f"after {saved}: loss {best['train_loss']:.4f}, validation {best['val_loss']:.4f}" in lines[0]
    assert lines[1].startswith(f"validation was lowest at {saved}; that is the model saved, not the last (epoch 5,")
    assert "already finished" in run(*command, "--out", tmp_path / "m", "--resume").err


def test_the_same_command_gives_the_same_model(run: Any, corpus: Path, tmp_path: Path) -> None:
    def weights(name: str, *more: str) -> bytes:
        assert run("train", corpus, "--out", tmp_path / name, "--steps", 3, *SMALL, *more).status == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a") == weights("b") == weights("c", "--seed", "0")
    assert weights("d") != weights("e", "--seed", "1")


def test_folders_and_several_files(run: Any, tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("one two three four\nfive six\n\nseven eight")
    (tmp_path / "texts" / "deep" / "b.MD").write_text("nine ten eleven")
    (tmp_path / "texts" / "c.html").write_text("not this one")
    (tmp_path / "more").write_text("twelve thirteen")
    out = tmp_path / "tok.json"
    result = run("tokenizer", "train", tmp_path / "texts", tmp_path / "more", "--out", out, "--json").json
    assert result["vocab_size"] == 6 + 13
    for split, pairs in (("file", 8 + 3 + 2), ("line", 4 + 2 + 2 + 3 + 2), ("blank-line", 6 + 2 + 3 + 2)):
        arguments = (tmp_path / "texts", tmp_path / "more", "--out", tmp_path / split, "--steps", 1, "--split", split)
        assert run("train", *arguments, *SMALL, "--val-fraction", 0, "--json").json["pairs"] == pairs
    failed(run("tokenizer", "train", tmp_path / "texts" / "none", "--out", out), "none: no such file or folder")
    (tmp_path / "empty").mkdir()
    failed(run("train", tmp_path / "empty", "--out", tmp_path / "m"), "no .txt or .md file in this folder")


def test_resume_ends_where_an_unbroken_run_ends(run: Any, corpus: Path, tmp_path: Path) -> None:
    base = ("train", corpus, "--steps", 12, *SMALL, "--val-fraction", 0)
    assert run(*base, "--out", tmp_path / "whole").status == 0
    process = subprocess.Popen(
        [*PROGRAM, *map(str, base), "--out", str(tmp_path / "cut")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step  3/12" in line:  # anywhere after the first checkpoint
            process.kill()
            break
    process.wait()
    process.stderr.close()
    assert run(*base, "--out", tmp_path / "cut", "--resume").status == 0
    whole, cut = (soma_native.load(tmp_path / name)[0].parameters() for name in ("whole", "cut"))
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("number", "background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_ctrl_c_in_training_saves_and_says_where(
    corpus: Path, tmp_path: Path, number: signal.Signals, background: bool
) -> None:
    """`background`: Ctrl-C is ignored, as in a command that a shell script starts with `&`."""
    out = tmp_path / "model"
    command = [*PROGRAM, "train", str(corpus), "--out", str(out), "--epochs", "100000", *SMALL]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if background else None
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if background:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None and process.stdout is not None
    assert process.stderr.readline().startswith("train: ")
    while not process.stderr.readline().startswith("epoch"):
        pass
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == 128 + number
    assert stdout == ""
    assert "Traceback" not in stderr
    lines = stderr.strip().split("\n")
    assert lines[-1] == f"soma-native: interrupted; saved in {out}; --resume goes on from there"
    assert soma_native.load(out)[1].kind == "word"


# errors --------------------------------------------------------------------------------------------------------------


def test_errors_a_user_can_cause(run: Any, corpus: Path, trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good \xff bad")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    failed(run("train", tmp_path / "none.txt", "--out", tmp_path / "m"), "none.txt: no such file or folder")
    failed(run("train", bad, "--out", tmp_path / "m"), "bad.txt", "byte 5")
    failed(run("train", empty, "--out", tmp_path / "m"), "empty.txt: is empty")
    failed(run("train", os.devnull, "--out", tmp_path / "m"), f"{os.devnull}: is not an ordinary file")
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n")
    failed(run("train", blank, "--out", tmp_path / "m"), "blank.txt: has no letters")
    failed(run("train", corpus, "--out", corpus), "is a file where a folder is expected")
    failed(run("train", corpus, "--out", corpus / "below"), "cannot save here: Not a directory")
    failed(run("train", corpus, "--out", tmp_path / "m", "--resume"), "nothing to resume")
    failed(run("showcase", "--out", corpus), "is a file where a folder is expected")
    failed(run("generate", tmp_path / "none", "text"), "none: there is no such folder")
    failed(run("generate", corpus, "text"), "is not the folder of a saved model")
    failed(run("generate", tmp_path, "text"), f"{tmp_path}: holds no saved model")
    failed(run("tokenizer", "encode", tmp_path / "none.json", "text"), "none.json")
    failed(run("tokenizer", "train", empty, "--out", tmp_path / "t.json"), "empty.txt: is empty")


def test_values_that_cannot_work_are_bad_usage(run: Any, corpus: Path, trained: Path, tmp_path: Path) -> None:
    train = ("train", corpus, "--out", tmp_path / "m", "--tokenizer", "word", "--steps", 2)
    for arguments, problem in (
        ((*train, "--precision", "float16"), "--precision"),
        ((*train, "--vocab-size", 3), "--vocab-size must be at least 7"),
        ((*train, "--seq-len", 1 << 30), "--seq-len must be from 1 to"),
        ((*train, "--val-fraction", "0.9999"), "--val-fraction 0.9999 leaves no next-token pair to train on"),
        ((*train, "--val-fraction", "0.0001"), "--val-fraction 0.0001 holds out no next-token pair"),
        ((*train, "--bogus"), "--bogus; see soma-native train --help"),
        (("generate", trained, "text \udcff"), "PROMPT: is not UTF-8"),
        (("generate", trained, "text", "--stop", ""), "--stop"),
        (("evaluate", trained, corpus, "--seq-len", 17), "--seq-len 17: the model's context is 16"),
        (("tokenizer", "decode", trained, 10**6), "1000000 is out of range"),
        (("tokenizer", "train", corpus, "--out", tmp_path / "t.json", "--vocab-size", 3), "--vocab-size must be"),
    ):
        result = run(*arguments)
        assert result.status == 2, result.err
        assert problem in result.err


@pytest.mark.parametrize("name", ["SOMA_NUM_THREADS", "SOMA_ISA", "SOMA_PRECISION"])
def test_a_bad_environment_is_bad_usage(name: str) -> None:
    done = subprocess.run([*PROGRAM, "info"], capture_output=True, text=True, env={**os.environ, name: "many"})
    assert done.returncode == 2
    assert name in done.stderr and done.stderr.count("\n") == 1


def test_a_drawn_seed_is_reported_and_gives_the_same_text(run: Any, trained: Path) -> None:
    drawn = run("generate", trained, "the", "--max-tokens", 8, "--json").json
    again = run("generate", trained, "the", "--max-tokens", 8, "--json", "--seed", drawn["seed"]).json
    assert again["text"] == drawn["text"] and again["seed"] == drawn["seed"]


def test_the_prompt_from_standard_input(run: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the cät\n".encode()), encoding="ascii"))
    assert run("generate", trained, "-", "--max-tokens", 0).out == "the cät\n"


def test_a_run_of_steps_does_not_speak_of_epochs(run: Any, corpus: Path, tmp_path: Path) -> None:
    by_steps = run("train", corpus, "--out", tmp_path / "a", "--steps", 3, *SMALL)
    assert "step 3/3" in by_steps.err and "after step 3: loss" in by_steps.out
    assert "epoch" not in by_steps.err + by_steps.out
    by_epochs = run("train", corpus, "--out", tmp_path / "b", "--epochs", 1, *SMALL)
    assert "epoch 1/1  step" in by_epochs.err and "after epoch 1, step" in by_epochs.out


def test_a_damaged_model_is_named(run: Any, trained: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-5] ^= 64
    (broken / "model.safetensors").write_bytes(data)
    for command in (("generate", broken, "the"), ("evaluate", broken, broken / "history.csv")):
        failed(run(*command), "model.safetensors: tensor '", "checksum")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output(trained: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "generate", str(trained), "the", "--max-tokens", "2"], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr == b"soma-native: error: standard output: No space left on device\n"


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model whose vocabulary has no end of a document: its texts go on to `max_tokens`."""
    tok = soma_native.Tokenizer.train(["the cat"], kind="char", special_tokens=())
    shape = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 16}
    soma_native.save(tmp_path, soma_native.Model(soma_native.ModelConfig(vocab_size=tok.vocab_size, **shape)), tok)
    return tmp_path


def test_a_closed_pipe_is_quiet(endless: Path) -> None:
    command = [*PROGRAM, "generate", str(endless), "the ", "--max-tokens", "20000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(20).startswith(b"the ")
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_ctrl_c_while_generating(endless: Path) -> None:
    command = [*PROGRAM, "generate", str(endless), "the", "--max-tokens", "20000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out.endswith(b"\n") and err == b"soma-native: interrupted\n"


def test_output_that_is_not_utf_8(trained: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "generate", str(trained), "größe the", "--max-tokens", "2"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"gr??e the")  # the model may end its answer at once


# tokenizer -----------------------------------------------------------------------------------------------------------


def test_tokenizer_there_and_back(run: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "folder" / "tok.json"
    assert run("tokenizer", "train", corpus, "--out", out, "--kind", "char").status == 0
    tok = soma_native.Tokenizer.load(out)
    assert tok.kind == "char"
    encoded = run("tokenizer", "encode", out, "The cat's mat")
    assert [int(word) for word in encoded.out.split()] == tok.encode("The cat's mat")
    assert run("tokenizer", "encode", out, "cat", "--json").json == {
        "ids": tok.encode("cat"),
        "tokens": ["c", "a", "t"],
    }
    assert run("tokenizer", "decode", out, *encoded.out.split()).out == "The cat's mat\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("the mat"))
    ids = run("tokenizer", "encode", out).out
    monkeypatch.setattr(sys, "stdin", io.StringIO(ids))
    assert run("tokenizer", "decode", out, "--json").json == {"text": "the mat"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("5 six"))
    failed(run("tokenizer", "decode", out), "whole numbers")
    listed = run("tokenizer", "inspect", out, "--tokens", 3)
    assert "<UNK>" in listed.out and f"{tok.vocab_size} tokens" in listed.out
    assert run("tokenizer", "inspect", out, "--json").json["kind"] == "char"
