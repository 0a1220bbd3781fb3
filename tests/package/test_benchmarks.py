"""The benchmark scripts: they run, check the results of what they time, and write records. No test checks a speed."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.mpi import mpiexec
from oracles import reference as ref

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bench_bpe  # noqa: E402
import bench_score  # noqa: E402
import bench_train  # noqa: E402
import common  # noqa: E402

from soma_native import Model, ModelConfig, Tokenizer, save  # noqa: E402


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def record(script: str, path: Path, *arguments: Any) -> dict[str, Any]:
    done = run(script, *arguments, "--threads", 1, "--json", path)
    assert done.returncode == 0, done.stderr
    written: dict[str, Any] = json.loads(path.read_text())
    machine, results = written["machine"], written["results"]
    assert {"cpu", "isa", "threads", "commit", "versions"} <= machine.keys()
    page = run("compare.py", "--markdown", path)
    assert page.returncode == 0, page.stderr
    for name in ("cpu", "isa", "threads", "commit"):
        assert f"- {name}: {machine[name]}\n" in page.stdout
    rows = [line for line in page.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(results)
    assert all(result["label"] in row for row, result in zip(rows[2:], results, strict=True))
    assert not [row for row in rows if row.count(" | ") != rows[0].count(" | ")]
    return written


@pytest.mark.parametrize("name", common.WORKLOADS)
def test_workloads_are_models_of_ours(name: str, block: str) -> None:
    w = common.WORKLOADS[name].as_block(block)
    assert common.parameter_shapes(w) == ref.parameter_shapes(ref.Config(**w.config.to_dict()))


def test_training_is_checked_against_torch_and_recorded(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "train.json"
    options = ("--modes", "fp32-eager", "--rounds", 2, "--steps", 2)
    results = record("bench_train.py", path, "--workloads", "showcase", *options)["results"]
    ours, theirs = results
    assert (ours["parameters"], theirs["parameters"]) == (771_968, 701_568)
    assert ours["check"]["worst_relative_difference"] < 1e-4
    assert len(theirs["ours_over_this"][ours["label"]]["rounds"]) == 2
    compared = run("compare.py", path, path)
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.count(" 1.00\n") == 2


@pytest.mark.levels()
def test_what_computes_something_else_is_not_timed() -> None:
    with pytest.raises(common.WorkerError, match="differ"):
        bench_train.check_losses("x", [4.0, 3.9], [4.0, 3.8], 2e-4)
    with pytest.raises(common.WorkerError, match="differ"):
        bench_train.check_losses("x", [float("nan")], [4.0], 2e-4)
    with pytest.raises(common.WorkerError, match="learn"):
        bench_train.check_curve("x", [4.0, 4.0, 4.0])
    with pytest.raises(common.WorkerError, match="learn"):
        bench_train.check_curve("x", [4.0, float("nan"), 3.0])


@pytest.mark.levels()
def test_a_worker_that_fails_says_why() -> None:
    options: dict[str, Any] = {"contender": "native", "workload": "showcase", "block": "soma", "mode": "float7"}
    options |= {"lr": 1e-3, "device": "cpu", "batch": 1, "seq_len": 8}
    with pytest.raises(common.WorkerError, match="float7"):
        common.Worker("train", "ours", options, threads=1)


@pytest.mark.levels()
def test_generation_is_recorded(tmp_path: Path) -> None:
    options = ("--formats", "--weights", "live", "int8", "--rounds", 1, "--seconds", 0.01, "--tokens", 8)
    results = record("bench_generate.py", tmp_path / "g.json", "--workloads", "showcase", *options)["results"]
    assert [r["task"] for r in results] == [task for task in ("prefill", "decode", "sample") for _ in range(2)]


@pytest.mark.levels()
def test_scoring_is_checked_against_transformers_and_recorded(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text("It isn't simple, is it?\nNo, 2 or 3 words.\n" * 50, encoding="utf-8")
    options = ("--preset", "nano-cpu", "--tokenizer", "char", "--characters", 1000, "--rounds", 1)
    results = record("bench_score.py", tmp_path / "s.json", text, *options)["results"]
    assert [r["label"].split()[0] for r in results] == ["soma_native"] * 2 + ["transformers"] * 2
    assert {r["tokens"] for r in results} == {1000}
    assert set(results[2]["ours_over_this"]) == {"soma_native float32", "soma_native bfloat16"}
    with pytest.raises(common.WorkerError, match="differs"):
        bench_score.check({"ours": [-1.0, -2.0], "theirs": [-1.0, -2.1]}, {"ours": "float32", "theirs": "fp32"})


@pytest.mark.levels()
def test_a_server_is_measured_and_recorded(tmp_path: Path) -> None:
    sizes = ("--preset", "showcase", "--clients", 2, "--tokens", 8, "--rounds", 1, "--crowd", 10, "--seconds", 0.4)
    results = record("bench_serve.py", tmp_path / "s.json", "--no-peer", *sizes)["results"]
    serve, engine, first, crowd = results
    assert serve["tokens_per_second"] > 0 and engine["ours_over_this"]["serve"]["rounds"] and first["milliseconds"] > 0
    assert crowd["right"] > 0 and crowd["alive"] and not crowd.keys() & {"wrong", "failed"}


@pytest.mark.levels()
def test_tokenizers_are_compared_and_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    text = tmp_path / "text.txt"
    text.write_text("It isn't über-simple, is it?\nNo, 2 or 3 words.\n" * 50, encoding="utf-8")
    results = record("bench_tokenizer.py", tmp_path / "t.json", "--text", text, "--rounds", 1)["results"]
    assert {(r["workload"], r["label"]) for r in results} >= {("word", "tokenizers"), ("byte", "soma_native")}


@pytest.mark.levels()
def test_trainings_are_compared_and_recorded(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It isn't über-simple, is it?\nNo, 2 or 3 words.\n" * 50, encoding="utf-8")
    options = ("--contenders", "soma_native", "rustbpe", "tokenizers", "--vocab-size", 280, "--rounds", 1)
    results = record("bench_tokenizer_training.py", tmp_path / "t.json", text, *options)["results"]
    assert [(r["label"], r["tokens"]) for r in results] == [("soma_native", 280), ("rustbpe", 280), ("tokenizers", 280)]
    assert run("compare.py", tmp_path / "t.json", tmp_path / "t.json").stdout.count(" 1.00\n") == 3


@pytest.mark.levels()
def test_byte_level_bpe_is_compared_and_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tiktoken")
    tokens = [bytes([i]) for i in range(256)] + [b" i", b"is", b" is", "ü".encode()]
    ranks = tmp_path / "cl100k_small.tiktoken"
    ranks.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)))
    text = tmp_path / "text.txt"
    text.write_text("It isn't über-simple, is it?\nNo, 2 or 3 words.\n" * 50, encoding="utf-8")
    options = ("--text", text, "--peers", "tiktoken", "tokenizers", "--rounds", 1)
    results = record("bench_bpe.py", tmp_path / "b.json", "--vocab", ranks, *options)["results"]
    found = [(r["task"], r["label"]) for r in results]
    ours = [(task, "soma_native") for task in ("first", "array", "list", "lines", "documents", "decode")]
    assert set(ours) < set(found)
    assert {("list", "tiktoken"), ("documents", "tokenizers"), ("decode", "tiktoken")} < set(found)
    assert [r["workload"] for r in results] == ["cl100k text.txt"] * len(results)

    Tokenizer.from_tiktoken(ranks, pattern="cl100k").save(tmp_path)
    options = ("--text", text, "--tasks", "lines", "documents", "--rounds", 1)
    results = record("bench_bpe.py", tmp_path / "o.json", "--vocab", tmp_path / "tokenizer.json", *options)["results"]
    names = ("soma_native", "tokenizers")
    assert [(r["task"], r["label"]) for r in results] == [(t, n) for t in ("lines", "documents") for n in names]

    with pytest.raises(SystemExit, match=r"tiktoken gives \[8\] at token 1, ours are \[7\]"):
        bench_bpe.check("tiktoken", [5, 8], [5, 7])


def test_quality_recipe_runs(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question\n" * 100, encoding="utf-8")
    result = record("quality_shakespeare.py", tmp_path / "q.json", text, "--steps", 30)["results"][0]
    assert result["curve"][-1]["step"] == 30
    assert result["curve"][-1]["validation_loss"] < 3.0


def test_recipes_are_trained_with_their_settings(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question\n" * 100, encoding="utf-8")
    options = ("--row", "small", "--seeds", 1, "--set", "steps=30", "warmup_steps=3", "--json", tmp_path / "q.json")
    assert run("quality_recipes.py", text, *options).returncode == 0
    (result,) = json.loads((tmp_path / "q.json").read_text())["results"]
    assert result["settings"]["steps"] == 30 and result["settings"]["optimizer"] == "muon"
    assert result["best"] <= result["last"] and result["best"] < 3.0
    assert result["flops"] > 30 * 12 * 64 * 6 * 7e5


def test_local_steps_are_compared_with_a_sum_in_every_step(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question\n" * 100, encoding="utf-8")
    options = ("--seeds", 1, "--steps", 12, "--batch-size", 4, "--ranks", 2, "--sync-every", 0, 6, "--context", 16)
    done = run("quality_diloco.py", text, *options, "--json", tmp_path / "q.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "q.json").read_text())["results"]
    assert [result["sync_every"] for result in results] == [0, 6]
    assert results[1]["megabytes"] < results[0]["megabytes"] / 2
    assert results[1]["link"] < results[0]["link"]
    assert all(result["best"] < 4.0 for result in results)


@pytest.mark.levels("bfloat16")
def test_the_plain_command_runs_beside_its_peer(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question\n" * 100, encoding="utf-8")
    done = run("quality_plain.py", text, "--minutes", 0.05, "--threads", 1, "--json", tmp_path / "q.json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "q.json").read_text())["results"]
    for side in ("ours", "nanogpt"):
        assert 0 < result[side]["best"] <= result[side]["last"]


def test_healing_is_measured_on_every_end_of_a_prompt(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the houses of the world, and größere Häuser of a carpenter called Noah\n" * 9, encoding="utf-8")
    tok = Tokenizer.train(text, kind="bpe", vocab_size=330)
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "max_seq_len": 256}
    save(tmp_path / "m", Model(ModelConfig(tok.vocab_size, **sizes), seed=0), tok)
    done = run("quality_healing.py", tmp_path / "m", text, "--prompts", 5)
    assert done.returncode == 0, done.stderr
    rows = {line.rpartition("  ")[0].strip().split("  ")[0]: line for line in done.stdout.splitlines()}
    assert {"space", "half a word", "a word that goes on"} <= rows.keys(), done.stdout
    assert "inf" not in done.stdout and "nan" not in done.stdout


def test_bfloat16_is_compared_with_float32_step_by_step(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question\n" * 100, encoding="utf-8")
    result = record("quality_bfloat16.py", tmp_path / "q.json", text, "--steps", 25)["results"][0]
    assert len(result["float32"]) == len(result["bfloat16"]) == 25
    assert result["float32"] != result["bfloat16"]
    assert result["float32"][-1] < result["float32"][0]
    assert 0 < result["largest_difference"] < 0.005
    assert "no rate in common" in run("compare.py", tmp_path / "q.json", tmp_path / "q.json").stderr


@pytest.mark.levels()
def test_compare_refuses_what_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    done = run("compare.py", path, path)
    assert done.returncode != 0
    assert "not a record" in done.stderr


@pytest.mark.levels()
def test_a_page_of_records_names_machines_and_has_the_newest_first(tmp_path: Path) -> None:
    machine = {"cpu": "A", "cores": 2, "threads": 2, "isa": "avx2", "commit": "abc", "versions": {"torch": "2.13.0"}}
    ours = {"workload": "a|b", "label": "soma_native x", "tokens_per_second": 1234.6, "rounds": [1000.0, 1300.0]}
    peer = {"workload": "a|b", "label": "torch y", "tokens_per_second": 617.3, "rounds": [600.0, 700.0]}
    peer["ours_over_this"] = {"soma_native x": {"median": 2.0, "min": 1.5, "max": 2.25, "rounds": [1.5, 2.25]}}
    losses = {"workload": "baby", "label": "soma_native", "largest_difference": 0.00199, "steps": 500}
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, day, benchmark, results in zip(
        paths, ("2026-01-31", "2026-02-01"), ("train", "quality"), ([ours, peer], [losses]), strict=True
    ):
        dated = {**machine, "time": f"{day}T12:00:00Z"}
        path.write_text(json.dumps({"benchmark": benchmark, "machine": dated, "results": results}))
    lines = run("compare.py", "--markdown", *paths).stdout.splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## quality, 2026-02-01", "## train, 2026-01-31"]
    for line in ("- cpu: A", "- threads: 2", "- isa: avx2", "- commit: abc", "- versions: torch 2.13.0"):
        assert lines.count(line) == 2
    assert "| baby | soma_native | 500 | 0.199% | - |" in lines
    assert "| a\\|b | soma_native x | 1,235 | 1,000 to 1,300 | 2 | - |" in lines
    assert "| a\\|b | torch y | 617 | 600 to 700 | 2 | soma_native x: 2.00 (1.50-2.25) |" in lines


@pytest.mark.levels()
def test_a_page_needs_records(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[]")
    done = run("compare.py", "--markdown", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "list.json is not a record" in done.stderr
    assert "--markdown RECORD" in run("compare.py", "--markdown").stderr


def test_flops_count_every_matrix_product() -> None:
    """Doubling the vocabulary adds 6 V d for the head; nothing else depends on the vocabulary."""
    w = common.WORKLOADS["nano-cpu"]
    c = w.config
    twice = replace(w, config=replace(c, vocab_size=2 * c.vocab_size))
    assert twice.flops_per_token - w.flops_per_token == 6 * c.vocab_size * c.d_model


@pytest.mark.levels()
def test_texts_at_once_are_those_one_by_one(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "engine.json"
    sizes = ("--sequences", 3, "--prompt", 4, "--tokens", 5, "--rounds", 2)
    results = record("bench_engine.py", path, "--workloads", "showcase", "--weights", "int8", *sizes)["results"]
    alone, at_once, _, peer = results
    assert at_once["ours_over_this"] == {} and alone["ours_over_this"] and peer["ours_over_this"]
    assert (alone["label"], peer["label"]) == ("soma_native one by one", "llama.cpp at once")


def test_ranks_and_threads_take_turns(tmp_path: Path) -> None:
    mpiexec()
    options = ("--workloads", "nano-cpu", "--rounds", 1, "--steps", 4, "--precision", "float32")
    done = run("bench_ranks.py", *options, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert result["ranks"][0] > 0 and result["threads"][0] > 0
    assert result["losses"]["2"] == pytest.approx(result["losses"]["1"], rel=1e-4)
