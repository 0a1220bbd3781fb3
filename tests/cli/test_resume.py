"""`train --resume` with other options than those of the run: the error names each of them, and nothing is lost."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from soma_native.cli import train
from soma_native.cli.main import main

LINES = ("the cat sat on the mat", "a dog ate the food of the cat", "the mat said no", "the food and the dog said yes")
RUN = {
    "--split": "line", "--preset": "nano-cpu", "--tokenizer": "word", "--vocab-size": 15, "--steps": 6,
    "--batch-size": 4, "--seq-len": 16, "--lr": 0.01, "--val-fraction": 0.2, "--max-eval-windows": 3,
    "--precision": "float32", "--seed": 3, "--optimizer": "adamw", "--schedule": "cosine",
    "--dropout": 0.1, "--patience": 50, "--teachers": 0,
}  # fmt: skip
# What each option is given otherwise, and what the error says of it.
OTHERWISE = {
    "corpus": ("other.txt", "other.txt: this run has other texts"),
    "split": ("file", "--split file: this run has line"),
    "preset": ("showcase", "--preset showcase: this run has nano-cpu"),
    "tokenizer": ("char", "--tokenizer char: this run has word"),
    "vocab_size": (8, "--vocab-size 8: this run has 15"),
    "epochs": (3, "--epochs 3: this run has 6 steps"),
    "steps": (7, "--steps 7: this run has 6"),
    "batch_size": (2, "--batch-size 2: this run has 4"),
    "seq_len": (8, "--seq-len 8: this run has 16"),
    "lr": (0.5, "--lr 0.5: this run has 0.01"),
    "optimizer": ("muon", "--optimizer muon: this run has adamw"),
    "schedule": ("wsd", "--schedule wsd: this run has cosine"),
    "dropout": (0.3, "--dropout 0.3: this run has 0.1"),
    "teachers": (1, "--teachers 1: this run has 0"),
    "patience": (2, "--patience 2: this run has 50"),
    "minutes": (2, "--minutes 2: this run has 6 steps"),
    "val_fraction": (0.5, "--val-fraction 0.5: this run has 0.2"),
    "max_eval_windows": (1, "--max-eval-windows 1: this run has 3"),
    "precision": ("bfloat16", "--precision bfloat16: this run has float32"),
    "sync_every": (2, "--sync-every 2: this run was begun without it"),
    "seed": (4, "--seed 4: this run has 3"),
}
ANY_RUN = {
    "help",
    "json",
    "out",
    "resume",
    "overwrite",
    "checkpoint_minutes",
    "source",  # the model that a run began with
    "device",  # a run may go on on any
    "recipe",  # its settings are compared
}  # options that say nothing of what is trained


def flags(options: dict[str, Any]) -> list[Any]:
    return [word for pair in options.items() for word in pair]


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "other.txt").write_text("\n".join(LINES * 7))
    path = folder / "text.txt"
    path.write_text("\n".join(LINES * 8))
    return path


@pytest.fixture(scope="module")
def begun(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which every option was given."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", str(corpus), "--out", str(out), *map(str, flags(RUN))]) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_option_of_train_is_tested_here() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    train.add_parser(commands)
    assert {action.dest for action in commands.choices["train"]._actions} == OTHERWISE.keys() | ANY_RUN


@pytest.mark.parametrize("name", OTHERWISE)
def test_an_option_given_otherwise_is_named(run: Any, corpus: Path, begun: Path, name: str) -> None:
    value, said = OTHERWISE[name]
    options = {"--split": "line"} if name == "corpus" else {"--split": "line", option(name): value}
    texts = corpus.parent / value if name == "corpus" else corpus
    before = files(begun)
    result = run("train", texts, "--out", begun, "--resume", *flags(options))
    assert result.status == 2 and result.out == ""
    last = result.err.splitlines()[-1]
    begin = f"soma-native: error: cannot resume the run in {begun}: "
    assert last.startswith(begin)
    named, mend = last.removeprefix(begin).split(". Give what this run has, or leave the option out; ")
    assert named.removeprefix(f"{corpus.parent}/") == said, "this difference and no other"
    assert "another --out" in mend and "--overwrite" in mend
    assert (f"on other texts, give --from {begun} and another --out" in mend) == (name == "corpus")
    assert files(begun) == before


def test_all_that_differs_is_named_at_once(run: Any, corpus: Path, begun: Path) -> None:
    names = OTHERWISE.keys() - {"corpus", "epochs", "minutes"}
    result = run("train", corpus, "--out", begun, "--resume", *flags({option(n): OTHERWISE[n][0] for n in names}))
    assert result.status == 2
    assert [name for name in names if OTHERWISE[name][1] not in result.err] == []


@pytest.mark.parametrize("options", [RUN, {"--split": "line"}, {"--split": "line", "--preset": "nano-cpu"}], ids=len)
def test_the_same_options_or_none_go_on(run: Any, corpus: Path, begun: Path, options: dict[str, Any]) -> None:
    assert run("train", corpus, "--out", begun, "--resume", "--json", *flags(options)).json["stop_reason"] == "finished"


def test_a_finished_run_says_how_its_model_learns_more(run: Any, corpus: Path, begun: Path) -> None:
    said = run("train", corpus, "--out", begun, "--resume", "--split", "line").err
    assert f"already finished: all 6 steps are done; to train the model on other texts, give --from {begun} and" in said


def test_a_run_of_epochs_has_epochs(run: Any, corpus: Path, tmp_path: Path) -> None:
    command = ("train", corpus, "--out", tmp_path / "run", "--preset", "nano-cpu", "--tokenizer", "word")
    assert run(*command, "--epochs", 2).status == 0
    assert "--steps 3: this run has 2 epochs." in run(*command, "--resume", "--steps", 3).err
    assert "--epochs 3: this run has 2." in run(*command, "--resume", "--epochs", 3).err


def test_most_tokens_are_compared_with_what_the_texts_give(run: Any, corpus: Path, begun: Path, tmp_path: Path) -> None:
    resume = ("train", corpus, "--split", "line", "--resume")
    assert "--vocab-size 16: this run has 15." in run(*resume, "--out", begun, "--vocab-size", 16).err
    all_words = {**RUN, "--vocab-size": 100}
    assert run("train", corpus, "--out", tmp_path / "run", *flags(all_words)).status == 0
    assert run(*resume, "--out", tmp_path / "run", "--vocab-size", 1000).status == 0


def test_a_run_that_was_trained_in_two_precisions_says_both(
    run: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMA_PRECISION", "bfloat16")
    assert run("train", corpus, "--out", tmp_path / "run", *flags({**RUN, "--precision": "auto"})).status == 0
    resume = ("train", corpus, "--out", tmp_path / "run", "--resume", "--split", "line", "--precision")
    assert run(*resume, "auto").status == 0
    wanted = "--precision bfloat16: this run has bfloat16, and float32 to validate."
    assert wanted in run(*resume, "bfloat16").err
