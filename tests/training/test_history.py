"""The history of a training run: the best record, over-fitting, its files and plot, and the progress display."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import soma_native as soma
from soma_native.cli.progress import ProgressDisplay, record_line
from soma_native.training.callbacks import Event
from soma_native.training.history import FIELDS


def history_of(losses: list[tuple[float, float | None]]) -> soma.History:
    history = soma.History()
    for step, (train, val) in enumerate(losses, start=1):
        history.records.append(
            {
                "epoch": step, "step": 10 * step, "train_loss": train, "val_loss": val, "seconds": 0.1 * step,
                "tokens_per_second": 1234.5, "lr": 1e-3,
                "val_bits_per_byte": None if val is None else val / 2,
            }
        )  # fmt: skip
    return history


@pytest.mark.parametrize(
    ("losses", "turn"),
    [
        ([(3, 3.1), (2, 2.5), (1, 2.6), (0.5, 2.7)], 20),  # training falls, validation rises
        ([(3, 3.1), (2, 2.5), (1, 2.6), (0.5, 2.7), (0.4, 2.51)], 20),  # its last value is not below its lowest
        ([(6.1, 5.9838), (6.0, 5.9887), (5.9, 5.9945)], None),  # a rise below 1% is noise, as during warm-up
        ([(3, 3.1), (2, 2.5), (1, 2.6)], None),  # one evaluation is not enough
        ([(3, 3.1), (2, 2.5), (1, 2.6), (0.5, 2.7), (0.4, 2.4)], None),  # a new lowest value follows
        ([(3, 3.1), (2, 2.5), (2.2, 2.6), (2.1, 2.7)], None),  # both rise: not over-fitting, but a bad step size
        ([(3, None), (2, None), (1, None)], None),
        ([], None),
    ],
)
def test_overfitting_is_found_where_it_turns(losses: list[tuple[float, float | None]], turn: int | None) -> None:
    record = history_of(losses).overfit_from
    assert (record and record["step"]) == turn


def test_best_is_the_first_of_the_lowest() -> None:
    best = history_of([(3, 2.0), (2, None), (1, 1.5), (1, 1.5)]).best
    assert best is not None
    assert best["step"] == 30
    assert history_of([(3, None)]).best is None


def test_bad_evaluations_are_counted_since_the_last_gain() -> None:
    history = history_of([(3, 3.0), (2, 2.0), (1, 2.5), (1, 1.95), (1, 1.94)])
    assert history.bad_evaluations() == 0
    assert history.bad_evaluations(min_delta=0.1) == 3


def test_json_keeps_everything(tmp_path: Path) -> None:
    history = history_of([(3.123456789012345, None), (0.1 + 0.2, 2.5)])
    history.data = {"train": {"pairs": 7}}
    history.warnings = ["careful"]
    history.stop_reason = "finished"
    history.to_json(tmp_path / "history.json")
    assert soma.History.from_json(tmp_path / "history.json").to_dict() == history.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


def test_a_history_of_an_older_version_is_read(tmp_path: Path) -> None:
    history = history_of([(3.5, None), (2.25, 2.5)])
    old = history.to_dict() | {"format": 1}
    old["records"] = [{k: v for k, v in record.items() if k != "val_bits_per_byte"} for record in history.records]
    (tmp_path / "history.json").write_text(json.dumps(old))
    read = soma.History.from_json(tmp_path / "history.json").records
    assert [record.pop("val_bits_per_byte") for record in read] == [None, None]  # type: ignore[misc]
    assert read == old["records"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as a history"),
        (b"\xff", "cannot be read as a history"),
        (b"[]", "not a history"),
        (b'{"format": 99}', "format 99 of a history is not known"),
        (b'{"format": 2, "records": [{"step": 1}]}', r"a record of a history has the keys \['step'\]"),
        (b'{"format": 1, "records": [{"step": 1}]}', r"a record of a history has the keys \['step', 'val_bits"),
    ],
)
def test_a_damaged_history_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "history.json"
    path.write_bytes(content)
    with pytest.raises(soma.CheckpointError, match=message) as caught:
        soma.History.from_json(path)
    assert "history.json" in str(caught.value)
    with pytest.raises(FileNotFoundError):
        soma.History.from_json(tmp_path / "none.json")


def test_csv_has_a_line_for_each_record(tmp_path: Path) -> None:
    history = history_of([(3.5, None), (2.25, 2.5)])
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_loss"] for row in rows] == ["", "2.5"]
    assert tuple(rows[0]) == FIELDS
    assert [float(row["train_loss"]) for row in rows] == [3.5, 2.25]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.json"
    history_of([(3, None)]).to_json(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        history_of([(3, None), (2, None)]).to_json(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_plot_draws_both_curves_and_the_turn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = history_of([(3, 3.1), (2, 2.5), (1, 2.6), (0.5, 2.7)])
    history.plot(tmp_path / "loss.png")
    picture = (tmp_path / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    history_of([(3, None), (2, None)]).plot(tmp_path / "plain.png")
    assert (tmp_path / "plain.png").read_bytes() != picture


def test_plot_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no records"):
        soma.History().plot(tmp_path / "loss.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"soma-native\[plot\]"):
        history_of([(3, None)]).plot(tmp_path / "loss.png")


# --- the display


def small_trainer(**settings: object) -> tuple[soma.Trainer, list[str]]:
    texts = [
        f"the {name} sat on the mat and looked at the {name}" for name in ["cat", "dog", "hen", "cow", "owl", "fox"]
    ]
    tok = soma.Tokenizer.train(texts, kind="word", vocab_size=40)
    shape = {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8, "max_seq_len": 16}
    model = soma.Model(soma.ModelConfig(vocab_size=tok.vocab_size, **shape), seed=0)
    return soma.Trainer(model, tok, soma.TrainConfig(**{"epochs": 3, "batch_size": 2, **settings})), texts  # type: ignore[arg-type]


def test_without_a_terminal_there_are_plain_lines() -> None:
    trainer, texts = small_trainer()
    stream = io.StringIO()
    with ProgressDisplay(stream) as progress:
        history = trainer.fit(texts, validation=texts[:2], callbacks=[progress])
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert lines[0] == "train: 6 documents, 72 tokens, 66 pairs in 6 windows"
    assert lines[1].startswith("validation: 2 documents")
    assert [line.split("  ")[:2] for line in lines[2:]] == [[f"epoch {n}/3", f"step {3 * n}/9"] for n in (1, 2, 3)]
    for line, record in zip(lines[2:], history.records, strict=True):
        assert f"loss {record['train_loss']:.4f}  validation {record['val_loss']:.4f}  lr" in line
        assert "tokens/s" in line
    assert "left" in lines[2]
    assert "left" not in lines[4]


def test_in_a_terminal_there_is_a_bar() -> None:
    trainer, texts = small_trainer()
    stream = io.StringIO()
    with ProgressDisplay(stream, live=True) as progress:
        trainer.fit(texts, callbacks=[progress])
    shown = stream.getvalue()
    assert "\x1b" in shown
    assert "9/9" in shown
    assert "tokens/s" in shown
    assert "epoch 3/3  step 9/9  loss" in shown


@pytest.mark.parametrize("live", [False, True])
def test_a_warning_is_shown_once(
    live: bool, capsys: pytest.CaptureFixture[str], find_losses: Callable[..., None]
) -> None:
    from soma_native.cli.main import _log_to_stderr

    find_losses(3.0, 3.5, 3.6)
    trainer, texts = small_trainer(lr=1e-2)
    handler = _log_to_stderr()
    try:
        with ProgressDisplay(sys.stderr, live=live) as progress:
            trainer.fit(texts, validation=texts[:2], callbacks=[progress])
    finally:
        logging.getLogger("soma_native").removeHandler(handler)
    assert capsys.readouterr().err.count("soma-native: over-fitting from step 3 (epoch 1)") == 1


def test_the_display_says_why_training_ended_early() -> None:
    trainer, texts = small_trainer()
    stream = io.StringIO()

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 4:
            trainer.stop()

    trainer.fit(texts, callbacks=[stop, ProgressDisplay(stream)])
    assert "ended after step 4 of 9: stopped" in stream.getvalue()


def test_a_long_silence_is_broken_without_a_terminal() -> None:
    trainer, _ = small_trainer()
    stream = io.StringIO()
    display = ProgressDisplay(stream)
    for seconds in (10.0, 31.0, 45.0, 62.0):
        display.on_step(Event("step", trainer, trainer.history, 5, 9, 1, 3, 1.5, 1e-3, 1.0, seconds, 8.0, None))
    assert stream.getvalue().splitlines() == ["step 5/9  loss 1.5000  8 tokens/s"] * 2


def test_record_line_tells_long_times_in_hours() -> None:
    record = history_of([(3.5, 2.5)]).records[0]
    record["seconds"] = 3700.0
    assert record_line(record, 2, 20, left=3700.0).endswith("  1:01:40, 1:01:40 left")
