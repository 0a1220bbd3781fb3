"""The command as a program: signals, a folder in use, standard streams that are closed, full or of few characters."""

# ruff: noqa: F811 -- fixtures of test_cli are arguments here

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_cli import PROGRAM, SMALL, corpus, trained  # noqa: F401

import soma_native

pytestmark = pytest.mark.levels("bfloat16")

# Sends Ctrl-C just before a module is imported.
STARTS = """
import runpy, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
runpy.run_module("soma_native", run_name="__main__")
"""


@pytest.mark.parametrize(
    "module", ["soma_native.cli.main", "numpy", "soma_native._core", "argparse", "soma_native.cli.info"]
)
def test_ctrl_c_before_the_command_has_begun(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", STARTS, module], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "soma-native: interrupted\n")


def test_a_byte_order_mark_on_standard_input(run: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfthe cat"), encoding="ascii"))
    assert run("generate", trained, "-", "--max-tokens", 0).out == "the cat\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff7 8"))
    assert run("tokenizer", "decode", trained).status == 0


def test_an_empty_name_is_never_the_working_folder(run: Any, corpus: Path) -> None:
    before = os.listdir()
    for arguments, said in (
        (("train", corpus, "--out", ""), "--out must name"),
        (("showcase", "--out", ""), "--out must name"),
        (("tokenizer", "train", corpus, "--out", ""), "--out must name"),
        (("generate", "", "the"), "DIR must name"),
        (("evaluate", "", corpus), "DIR must name"),
        (("tokenizer", "encode", "", "the"), "PATH must name"),
    ):
        result = run(*arguments)
        assert (result.status, result.out) == (2, "") and said in result.err, result.err
    assert os.listdir() == before


# a run in its folder -------------------------------------------------------------------------------------------------


def begin(corpus: Path, out: Path, *ignored: signal.Signals) -> subprocess.Popen[str]:
    """Start an endless training and wait for its first record. Signals that are not `ignored` have their defaults."""
    command = [*PROGRAM, "train", str(corpus), "--out", str(out), "--epochs", "100000", *SMALL]
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for number in numbers:
        signal.signal(number, before[number])
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epoch"):
        assert line, "it ended before its first record"
    return process


def end(process: subprocess.Popen[str], *numbers: signal.Signals) -> tuple[int, str]:
    """Send these signals to a training. Returns its exit status and the last line of standard error."""
    for number in numbers:
        process.send_signal(number)
    err = process.communicate(timeout=120)[1]
    assert "Traceback" not in err
    return process.returncode, err.rstrip().split("\n")[-1]


@pytest.mark.parametrize("sent", [[signal.SIGHUP], [signal.SIGHUP] * 2, [signal.SIGHUP, signal.SIGTERM]])
def test_a_closed_terminal_saves(corpus: Path, tmp_path: Path, sent: list[signal.Signals]) -> None:
    status, said = end(begin(corpus, tmp_path / "model"), *sent)
    assert status in {128 + number for number in sent}
    assert said == f"soma-native: interrupted; saved in {tmp_path / 'model'}; --resume goes on from there"
    assert soma_native.load(tmp_path / "model")[1].kind == "word"


def test_nohup_goes_on_when_the_terminal_closes(corpus: Path, tmp_path: Path) -> None:
    process = begin(corpus, tmp_path / "model", signal.SIGHUP)
    assert end(process, signal.SIGHUP, signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_a_second_training_is_refused_while_the_first_lives(run: Any, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = begin(corpus, out)
    train = ("train", corpus, "--out", out, "--steps", 2, *SMALL)
    for command in (train, (*train, "--overwrite"), (*train, "--resume"), ("showcase", "--out", out)):
        refused = run(*command)
        assert (refused.status, refused.out) == (1, "")
        assert f"{out}: a run works in it already (process {first.pid})" in refused.err
        assert refused.err.count("\n") == 1
    first.kill()
    first.communicate()
    assert run(*train, "--overwrite").status == 0, "an ended run holds no folder"
    assert not (out / ".soma-training").exists()


def test_what_a_folder_holds_is_replaced_only_when_asked_for(run: Any, corpus: Path, tmp_path: Path) -> None:
    out, train = tmp_path / "model", ("train", corpus, "--steps", 2, *SMALL, "--out")
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert run(*train, out).status == 0, "other files do not count"
    files = {path: path.read_bytes() for path in out.iterdir()}
    refused = run(*train, out)
    assert refused.status == 1 and "holds a training run: --resume goes on with it, --overwrite" in refused.err
    assert refused.err.count("\n") == 1
    (out / "training_state.safetensors").unlink()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "history.json"):
        refused = run(*train, out)
        assert refused.status == 1 and "which training would replace" in refused.err
        for path in [path for path in out.iterdir() if path.name != name]:
            path.unlink()
        assert f"holds {name}" in run(*train, out).err
        assert [path.name for path in out.iterdir()] == [name]
        for path, data in files.items():
            path.write_bytes(data)
        (out / "training_state.safetensors").unlink()
    assert run(*train, out, "--overwrite", "--seed", 5).status == 0
    assert (out / "model.safetensors").read_bytes() != files[out / "model.safetensors"]
    assert (out / "notes.txt").read_text() == "mine"
    both = run(*train, out, "--overwrite", "--resume")
    assert both.status == 2 and "not allowed with" in both.err


def test_a_showcase_replaces_a_showcase_alone(run: Any, trained: Path) -> None:
    before = (trained / "model.safetensors").read_bytes()
    refused = run("showcase", "--out", trained)
    assert refused.status == 1 and f"{trained}: holds a model of no showcase (config.json)" in refused.err
    assert (trained / "model.safetensors").read_bytes() == before


# standard streams ----------------------------------------------------------------------------------------------------


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command line of the shell; PROGRAM is the command."""
    return subprocess.run(
        ["sh", "-c", line.replace("PROGRAM", " ".join(PROGRAM))],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_training_needs_no_standard_streams(corpus: Path, tmp_path: Path, closed: str) -> None:
    if "/dev/full" in closed and not os.path.exists("/dev/full"):
        closed = "2>&-"
    out = tmp_path / "model"
    done = shell(f"PROGRAM train {corpus} --out {out} --steps 2 {' '.join(SMALL)} --json {closed}")
    assert (done.returncode, done.stderr if "2>" in closed else b"") == (0, b"")
    assert soma_native.load(out)[1].kind == "word", "no message went into a file of the model"
    if ">&-" not in closed.replace("2>&-", ""):
        assert json.loads(done.stdout)["out"] == str(out)


def test_a_reader_of_messages_that_goes_away_ends_no_training(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    options = ["--epochs", "20", "--val-fraction", "0"]  # nothing held out: the last epoch is the one saved
    command = [*PROGRAM, "train", str(corpus), "--out", str(out), *options, *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stderr is not None and process.stdout is not None
    process.stderr.readline()
    process.stderr.close()
    assert b"after epoch 20" in process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0


def test_a_command_fails_quietly_where_its_messages_go_nowhere(tmp_path: Path) -> None:
    for line, status in (("generate none the 2>&-", 1), ("train 2>&-", 2), ("evaluate none none <&- >&- 2>&-", 1)):
        done = shell(f"cd {tmp_path} && PROGRAM {line}")
        assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
    for line in ("tokenizer encode none <&-", "tokenizer decode none <&-"):
        done = shell(f"cd {tmp_path} && PROGRAM {line}")
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_written_is_an_error(corpus: Path, tmp_path: Path, unbuffered: str) -> None:
    train = f"train {corpus} --out {tmp_path / 'model'} --steps 2 {' '.join(SMALL)}"
    for line in (train, f"{train} --overwrite --json", "info", "info --json", "--help", "train --help", "--version"):
        done = shell(f"PROGRAM {line} > /dev/full", PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 1, line
        assert done.stderr.endswith(b"soma-native: error: standard output: No space left on device\n")
        assert done.stderr.count(b"error") == 1 and b"Exception" not in done.stderr
    assert soma_native.load(tmp_path / "model")[1].kind == "word"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_holds_every_character_on_every_stream(trained: Path, encoding: str) -> None:
    prompt = "größe 日本語 😀 the"
    done = shell(f"PROGRAM generate {trained} '{prompt}' --max-tokens 0 --json", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    text = done.stdout.decode(encoding)
    assert json.loads(text)["prompt"] == prompt
    assert ("größe" in text) == (encoding == "utf-8")
    latin = shell(f"PROGRAM generate {trained} größe --max-tokens 0 --json", PYTHONIOENCODING=encoding).stdout
    assert ("größe" in latin.decode(encoding)) == (encoding != "ascii")


def in_ascii(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command where neither the locale nor the streams have more than ASCII."""
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, env={**os.environ, **environment})


def test_texts_of_the_command_line_may_be_utf8_in_any_locale(trained: Path, tmp_path: Path) -> None:
    prompt = "größe 日本語 the"
    made = in_ascii("generate", str(trained), prompt, "--max-tokens", "0", "--stop", "ß!", "--json")
    assert json.loads(made.stdout)["prompt"] == prompt, made.stderr
    tok = soma_native.Tokenizer.train([prompt], kind="byte")
    tok.save(tmp_path / "t.json")
    for action in ("encode", "inspect"):
        done = in_ascii("tokenizer", action, str(tmp_path / "t.json"), prompt)
        assert " ".join(map(str, tok.encode(prompt))).encode() in done.stdout, done.stderr
    for arguments, name in (
        (["generate", str(trained), "\udce4"], "PROMPT"),
        (["generate", str(trained), "the", "--stop", "\udce4"], "--stop"),
        (["tokenizer", "encode", str(trained), "\udce4"], "TEXT"),
        (["tokenizer", "inspect", str(trained), "\udce4"], "TEXT"),
    ):
        done = in_ascii(*arguments)
        assert done.returncode == 2 and f"{name}: is not UTF-8; see".encode() in done.stderr, done.stderr


def test_messages_of_few_characters_tell_names_apart(tmp_path: Path) -> None:
    for name, said in (("größe.txt", rb"gr\xf6\xdfe.txt"), ("日.txt", rb"\u65e5.txt")):
        done = shell(f"PROGRAM tokenizer train {tmp_path / name} --out {tmp_path}", PYTHONIOENCODING="ascii")
        assert done.returncode == 1 and said in done.stderr and b"?" not in done.stderr


def test_a_model_of_another_program_is_not_joined_unasked(run: Any, corpus: Path, tmp_path: Path) -> None:
    for name in ("model.Q4_0.gguf", "pytorch_model-00001-of-00002.bin"):
        out = tmp_path / name / "out"
        out.mkdir(parents=True)
        (out / name).write_bytes(b"weights")
        train = ("train", corpus, "--out", out, "--steps", 1, *SMALL)
        for command in (train, ("showcase", "--out", out), ("tokenizer", "train", corpus, "--out", out)):
            refused = run(*command)
            assert refused.status == 1 and name in refused.err, refused.err
            assert [path.name for path in out.iterdir()] == [name]
        assert run(*train, "--overwrite").status == 0
        assert (out / name).read_bytes() == b"weights"


def test_messages_leave_out_what_only_python_can_do(run: Any, trained: Path, tmp_path: Path) -> None:
    model, tok = soma_native.load(trained)
    soma_native.save(tmp_path / "changed", model, tok)
    config = tmp_path / "changed" / "config.json"
    config.write_text(config.read_text() + "\n")
    soma_native.save(tmp_path / "bare", model, None)
    for name, problem, recipe in (
        ("changed", f"{config}: is not the file that was saved with model.safetensors", "verify=False"),
        ("bare", "tokenizer.json: is missing", "load_model"),
    ):
        with pytest.raises(soma_native.CheckpointError, match=recipe) as error:
            soma_native.load(tmp_path / name)
        for command in (("generate", tmp_path / name, "the"), ("evaluate", tmp_path / name, config)):
            result = run(*command)
            assert result.status == 1 and problem in result.err
            assert recipe not in result.err and result.err.count("\n") == 1
        assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
