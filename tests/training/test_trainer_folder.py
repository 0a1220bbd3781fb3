"""The folder of a training run: its files, files that stay unchanged, and the lock against a second run."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import soma_native as soma
from helpers.child import run_child
from helpers.training import SENTENCES, at_step, losses, make_trainer, weights

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

# --- stop() before the first step or after the last


def test_stop_before_fit_stops_it_without_a_step(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = make_trainer(checkpoint_dir=tmp_path)
    before = weights(trainer.model)
    trainer.stop()
    history = trainer.fit(SENTENCES)
    assert (history.stop_reason, history.records, history.checkpoint) == ("stopped", [], None)
    assert weights(trainer.model) == before
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files, "an untrained model replaces no other"
    assert losses(trainer.fit(SENTENCES)) == losses(make_trainer().fit(SENTENCES)), "one stop stops one fit"


def test_stop_counts_for_the_fit_that_it_came_in(tmp_path: Path) -> None:
    trainer = make_trainer()
    history = trainer.fit(SENTENCES, callbacks=at_step(24, trainer.stop))  # the last step
    assert history.stop_reason == "finished"
    assert trainer.fit(SENTENCES).stop_reason == "finished"
    trainer.stop()
    with pytest.raises(ValueError, match="no next-token pair"):
        trainer.fit([""])
    assert trainer.fit(SENTENCES).stop_reason == "finished"


def test_stop_before_a_resumed_fit_leaves_the_run_where_it_is(tmp_path: Path) -> None:
    first = make_trainer(checkpoint_dir=tmp_path)
    first.fit(SENTENCES, callbacks=at_step(5, first.stop))
    again = soma.Trainer.resume(tmp_path)
    again.stop()
    assert again.fit(SENTENCES).stop_reason == "stopped"
    assert losses(soma.Trainer.resume(tmp_path).fit(SENTENCES)) == losses(make_trainer().fit(SENTENCES))


# --- one run at a time


def test_two_trainers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = make_trainer(checkpoint_dir=tmp_path / "run")
    refusals: list[str] = []

    def second() -> None:
        with pytest.raises(soma.CheckpointError, match="a run works in it already") as refused:
            make_trainer(checkpoint_dir=tmp_path / "." / "run").fit(SENTENCES)
        refusals.append(str(refused.value))

    def elsewhere() -> None:
        code = """
tok = soma.Tokenizer.train(["ab cd"], kind="char")
soma.Trainer(small_model(), tok, soma.TrainConfig(checkpoint_dir="run")).fit(["ab cd"])
"""
        refusals.append(run_child(code, tmp_path).stderr)

    def in_a_thread() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    for other in (in_a_thread, elsewhere):
        first.fit(SENTENCES, callbacks=at_step(3, other))
    assert len(refusals) == 2 and all(f"(process {os.getpid()}" in said for said in refusals)
    assert weights(first.model) == weights(soma.load(tmp_path / "run")[0])
    second_trainer = make_trainer(checkpoint_dir=tmp_path / "run")
    assert second_trainer.fit(SENTENCES).checkpoint, "the folder is free again"
    assert not (tmp_path / "run" / ".soma-training").exists()


def test_a_run_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no next-token pair"):
        make_trainer(checkpoint_dir=tmp_path / "run").fit([""])
    assert not (tmp_path / "run").exists()


def test_a_child_of_a_run_may_train_elsewhere_but_not_there(tmp_path: Path) -> None:
    """A forked child has a copy of the parent's list of held folders, but holds none itself."""
    code = """
texts = ["the cat sat on the mat"] * 4
tok = soma.Tokenizer.train(texts, kind="word")
def trainer():
    config = soma.ModelConfig(vocab_size=tok.vocab_size, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=16)
    return soma.Trainer(soma.Model(config), tok, soma.TrainConfig(steps=3, checkpoint_dir="run"))
def fork(event):
    if event.kind == "step" and event.step == 1:
        pid = os.fork()
        if pid == 0:
            try:
                trainer().fit(texts)
            except soma.CheckpointError as error:
                os._exit(7 if "a run works in it already" in str(error) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(os.path.exists("run/.soma-training"))
soma.set_num_threads(1)
trainer().fit(texts, callbacks=fork)
"""
    done = run_child(code, tmp_path)
    assert done.stdout.split() == ["7", "True"], done.stderr


def test_a_file_system_without_locks_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES).checkpoint == str(tmp_path)


def test_a_model_that_will_be_replaced_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path)
    soma.save(tmp_path, trainer.model, trainer.tokenizer)
    with caplog.at_level(logging.WARNING, "soma_native"):
        trainer.fit(SENTENCES)
    assert "holds a model (config.json), which the first checkpoint will replace" in caplog.text
