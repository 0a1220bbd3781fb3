"""How a run of `train` begins: from a folder, with a tokenizer that exists, by a classic recipe, or by a plan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from soma_native.cli import new_run
from soma_native.cli import plan as plan_command
from soma_native.cli import train as train_command
from soma_native.planning.speed import Speed
from soma_native.training.recipes import CLASSICS
from soma_native.training.state import read_state

TEXT = "the cat saw the dog and the dog ran. " * 40
SMALL = ("--seq-len", 16, "--batch-size", 4, "--steps", 3)
CLASSIC = ("--preset", "nano-cpu", *SMALL)


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed((8e5, 4.8e6), (2e10, 4e10), (0.02, 0.1), "sse", 1, "float32")
    monkeypatch.setattr(new_run, "measure_speed", lambda *_, **__: speed)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def base(run: Any, text: Path, tmp_path: Path) -> Path:
    """The folder of a model with the tokenizer bpe."""
    folder = tmp_path / "base"
    options = ("--tokenizer", "bpe", "--vocab-size", 270)
    assert run("train", text, "--out", folder, *CLASSIC, *options).status == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config_of(folder: Path) -> dict[str, Any]:
    return read_state(folder)[0].config


# --from --------------------------------------------------------------------------------------------------------------


def test_a_model_is_trained_further_on_another_text(run: Any, base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the dog saw the cat. " * 60, encoding="utf-8")
    before = files(base)
    same = ("--preset", "nano-cpu", "--tokenizer", "bpe", "--vocab-size", 270)  # what the model has may be said
    result = run("train", other, "--out", tmp_path / "more", "--from", base, "--steps", 8, *same)
    assert result.status == 0, result.err
    assert files(base) == before
    (first, tok), (second, same) = soma.load(base), soma.load(tmp_path / "more")
    assert first.config == second.config and tok.encode(TEXT) == same.encode(TEXT)
    ids = tok.encode(other.read_text(encoding="utf-8"))[:16]
    assert second.loss(ids[:-1], ids[1:]) < first.loss(ids[:-1], ids[1:])
    assert config_of(tmp_path / "more")["lr"] < soma.TrainConfig(optimizer="muon").lr


def test_a_folder_is_not_trained_over_itself_unasked(run: Any, base: Path, text: Path) -> None:
    before = files(base)
    result = run("train", text, "--out", base, "--from", base, *SMALL)
    assert result.status == 1 and "--overwrite" in result.err
    assert files(base) == before
    assert run("train", text, "--out", base, "--from", base, *SMALL, "--overwrite").status == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--preset", "5m"), "--preset 5m: the model of"),
        (("--vocab-size", 300), "has 270: leave the option out"),
        (("--recipe", "soma"), "--recipe cannot be given with --from"),
        (("--tokenizer", "char"), "--tokenizer char"),
    ],
    ids=str,
)
def test_what_a_model_has_already_is_refused(
    run: Any, base: Path, text: Path, tmp_path: Path, options: tuple[Any, ...], said: str
) -> None:
    result = run("train", text, "--out", tmp_path / "more", "--from", base, *options)
    assert result.status == 2 and said in result.err
    assert not (tmp_path / "more").exists()


def test_a_folder_without_a_tokenizer_is_refused(run: Any, base: Path, text: Path, tmp_path: Path) -> None:
    soma.save(tmp_path / "bare", soma.load(base)[0], None)
    result = run("train", text, "--out", tmp_path / "more", "--from", tmp_path / "bare", *SMALL)
    assert result.status == 1 and "bare: " in result.err and "tokenizer" in result.err


def test_a_folder_that_does_not_exist_is_named(run: Any, text: Path, tmp_path: Path) -> None:
    result = run("train", text, "--out", tmp_path / "more", "--from", tmp_path / "nowhere", *SMALL)
    assert result.status == 1 and "nowhere: there is no such folder" in result.err
    assert not (tmp_path / "more").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(run: Any, base: Path, text: Path, tmp_path: Path) -> None:
    soma.save(tmp_path / "bare", soma.load(base)[0], None)
    large = soma.Tokenizer.train([TEXT], "bpe", 275)
    large.save(tmp_path / "large.json")
    options = ("--from", tmp_path / "bare", "--tokenizer", tmp_path / "large.json", *SMALL)
    result = run("train", text, "--out", tmp_path / "more", *options)
    assert result.status == 2 and f"large.json: has {large.vocab_size} tokens, and the model 270" in result.err
    assert not (tmp_path / "more").exists()


def test_patience_without_validation_names_the_option(run: Any, base: Path, text: Path, tmp_path: Path) -> None:
    for options in (CLASSIC, ("--from", base, *SMALL)):
        result = run("train", text, "--out", tmp_path / "m", "--patience", 2, "--val-fraction", 0, *options)
        assert result.status == 2 and "--patience needs validation: give a --val-fraction above 0" in result.err


def test_help_says_how_a_run_begins_from_what_exists(run: Any) -> None:
    said = " ".join(run("train", "--help").out.split())
    for words in (" train more.txt --from my_model ", " --tokenizer tokenizer.json ", "with --from, 0.3 of the usual"):
        assert words in said


def test_windows_longer_than_the_model_are_refused(run: Any, base: Path, text: Path, tmp_path: Path) -> None:
    result = run("train", text, "--out", tmp_path / "more", "--from", base, "--seq-len", 17, "--steps", 1)
    assert result.status == 2 and "--seq-len must be from 1 to 16" in result.err


def test_a_config_that_was_edited_is_taken_where_the_model_is_the_same_and_else_named(
    run: Any, base: Path, text: Path, tmp_path: Path
) -> None:
    path = base / "config.json"
    config = json.loads(path.read_text())
    command = ("train", text, "--out", tmp_path / "more", "--from", base, *SMALL)
    path.write_text(json.dumps({**config, "n_head": 2}))
    result = run(*command)
    assert (
        result.status == 1 and "config.json: was changed since it was saved, and says n_heads 2 (trained" in result.err
    )
    assert not (tmp_path / "more").exists()
    path.write_text(json.dumps({**config, "note": "mine"}))
    assert run(*command).status == 0
    weights = base / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    result = run(*command[:3], tmp_path / "other", *command[4:])
    assert result.status == 1 and "model.safetensors: tensor " in result.err and "checksum" in result.err


# --tokenizer FILE|DIR ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_tokenizer_that_exists_is_used(run: Any, base: Path, text: Path, tmp_path: Path, name: str) -> None:
    for folder, options in (("classic", CLASSIC), ("planned", SMALL)):
        result = run("train", text, "--out", tmp_path / folder, "--tokenizer", base / name, *options, "--json")
        assert result.status == 0, result.err
        assert result.json["vocab_size"] == 270
        assert soma.load(tmp_path / folder)[1].encode(TEXT) == soma.load(base)[1].encode(TEXT)


def test_a_kind_is_no_file(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("char").write_text("no tokenizer", encoding="utf-8")
    assert run("train", text, "--out", "m", "--tokenizer", "char", *CLASSIC).status == 0
    assert run("train", text, "--out", "n", "--tokenizer", "./char", *CLASSIC).status == 1


def test_a_tokenizer_that_is_none_is_bad_usage(run: Any, base: Path, text: Path, tmp_path: Path) -> None:
    result = run("train", text, "--out", tmp_path / "m", "--tokenizer", "words", *SMALL)
    assert result.status == 2 and "--tokenizer words: is neither a kind (word, char, byte, bpe)" in result.err
    result = run("train", text, "--out", tmp_path / "m", "--tokenizer", base, "--vocab-size", 300, *SMALL)
    assert result.status == 2 and "--vocab-size cannot be given with --tokenizer" in result.err


def test_a_run_goes_on_with_its_own_tokenizer_alone(run: Any, base: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert run("train", text, "--out", out, "--tokenizer", base, *CLASSIC).status == 0
    assert run("train", text, "--out", out, "--tokenizer", base, "--resume").status == 0
    soma.Tokenizer.train([TEXT], "bpe", 265).save(tmp_path / "other.json")
    result = run("train", text, "--out", out, "--tokenizer", tmp_path / "other.json", "--resume")
    assert result.status == 2 and "other.json: this run has another" in result.err


# recipes, plans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSICS)
def test_a_classic_recipe_brings_its_settings(run: Any, text: Path, tmp_path: Path, name: str) -> None:
    preset, recipe = CLASSICS[name]
    result = run("train", text, "--out", tmp_path / "m", "--recipe", name, "--steps", 1, "--batch-size", 2)
    assert result.status == 0, result.err
    config = config_of(tmp_path / "m")
    want = soma.TrainConfig(**{**recipe.settings(), "epochs": None, "steps": 1, "batch_size": 2}).to_dict()
    kept = want.keys() - {"checkpoint_dir", "val_fraction"}
    assert {key: config[key] for key in kept} == {key: want[key] for key in kept}
    assert soma.load(tmp_path / "m")[0].config.d_model == soma.ModelConfig.preset(preset).d_model
    assert run("train", text, "--out", tmp_path / "m", "--recipe", name, "--steps", 1, "--resume").status == 2


def test_a_plan_is_said_kept_and_followed(run: Any, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    result = run("train", text, "--out", out, "--preset", "1m", "--seed", 5, *SMALL)
    assert result.status == 0, result.err
    assert "model: 1m" in result.err and "regularisation" in result.err
    events = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    (plan,) = (event for event in events if event["event"] == "plan")
    assert plan["preset"] == "1m" and plan["training"]["optimizer"] == config_of(out)["optimizer"] == "muon"
    assert config_of(out)["seed"] == 5
    assert soma.load(out)[0].config.block == "llama"


def test_the_command_of_a_run_by_time_goes_on_with_resume(run: Any, text: Path, tmp_path: Path) -> None:
    command = ("train", text, "--out", tmp_path / "m", "--preset", "1m", "--seq-len", 16, "--minutes", 0.02)
    assert run(*command).status == 0
    assert config_of(tmp_path / "m")["minutes"] == 0.02
    result = run(*command, "--resume")
    assert result.status == 0, result.err


def test_a_run_goes_on_from_a_folder_with_the_two_files_of_gpt2(run: Any, text: Path, tmp_path: Path) -> None:
    tok = soma.Tokenizer.train(text, kind="bpe", vocab_size=300)
    config = soma.ModelConfig(
        vocab_size=tok.vocab_size, d_model=16, n_layers=1, n_heads=2, d_ff=32, max_seq_len=16, block="gpt2"
    )
    folder = tmp_path / "theirs"
    soma.save(folder, soma.Model(config), None)
    tok.save(tmp_path / "tokenizer.json")
    described = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in described["model"]["merges"]]
    vocabulary = {**described["model"]["vocab"], **{each["content"]: each["id"] for each in described["added_tokens"]}}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    assert soma.load(folder)[1].encode("the cat") == tok.encode("the cat")
    result = run("train", text, "--from", folder, "--steps", 2, "--out", tmp_path / "m")
    assert result.status == 0, result.err
    assert soma.load(tmp_path / "m")[1].encode("the cat") == tok.encode("the cat")


def test_the_plan_alone_trains_nothing(run: Any, text: Path, tmp_path: Path) -> None:
    result = run("plan", text, "--minutes", 4)
    assert result.status == 0 and "time: 4 minutes" in result.out
    assert run("plan", text, "--json").json["training"]["minutes"] <= 10
    assert run("plan", text, "--minutes", 0).status == 2
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "1m", "--steps", 2, "--batch-size", 3, "--seq-len", 32, "--dropout", 0.25, "--optimizer", "adamw"),
        ("--tokenizer", "bpe", "--vocab-size", 270, "--epochs", 1, "--preset", "1m", "--val-fraction", 0.3),
        ("--from", "base", "--steps", 2, "--lr", 1e-3, "--seed", 4),
        ("--tokenizer", "base", "--preset", "1m", "--seq-len", 16, "--steps", 2, "--schedule", "linear"),
        ("--recipe", "nanogpt", "--steps", 2, "--max-eval-windows", 3),
        ("--preset", "showcase", "--steps", 2, "--precision", "float32", "--patience", 9),
    ],
    ids=str,
)
def test_a_plan_takes_the_options_of_train_and_is_followed(
    run: Any, text: Path, base: Path, tmp_path: Path, options: tuple[Any, ...]
) -> None:
    options = tuple(base if option == "base" else option for option in options)
    plan = run("plan", text, *options, "--json").json
    assert run("train", text, "--out", tmp_path / "m", *options).status == 0
    model, tok = soma.load(tmp_path / "m")
    trained = config_of(tmp_path / "m")
    assert {**plan["training"], "checkpoint_dir": trained["checkpoint_dir"]} == trained
    assert model.config.to_dict() == {**plan["model"], "vocab_size": tok.vocab_size}
    assert plan["tokenizer"] == tok.kind


def test_every_option_of_train_that_changes_the_run_is_one_of_plan() -> None:
    parsers = argparse.ArgumentParser().add_subparsers()
    for command in (train_command, plan_command):
        command.add_parser(parsers)
    train, plan = ({action.dest for action in parsers.choices[name]._actions} for name in ("train", "plan"))
    assert train - plan == {"out", "resume", "overwrite", "checkpoint_minutes"} and not plan - train


def test_the_speed_is_that_of_the_precision_and_the_optimizer_of_the_run(
    run: Any, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def measure(*of: str, device: str) -> Speed:
        asked.append(of)  # type: ignore[arg-type]
        return Speed((8e5, 4.8e6), (2e10, 4e10), (0.02, 0.1), "sse", 1, "float32")

    monkeypatch.setattr(new_run, "measure_speed", measure)
    for options in ((), ("--optimizer", "adamw", "--precision", "float32"), ("--preset", "showcase", "--minutes", 1)):
        assert run("plan", text, *options).status == 0
    assert asked == [("auto", "muon"), ("float32", "adamw"), ("auto", "adamw")]
