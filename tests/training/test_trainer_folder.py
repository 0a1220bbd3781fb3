"""What a training run does to its folder: what it writes there, what it leaves alone, who else may train into it."""

from __future__ import annotations

from pathlib import Path

import pytest

import soma_native as soma
from helpers.training import SENTENCES, at_step, losses, make_trainer, weights

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

# --- stop() that comes before the first step, or too late


def test_stop_before_fit_stops_it_without_a_step(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = make_trainer(checkpoint_dir=tmp_path)
    before = weights(trainer.model)
    trainer.stop()
    history = trainer.fit(SENTENCES)
    assert (history.stop_reason, history.records, history.checkpoint) == ("stopped", [], None)
    assert weights(trainer.model) == before
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files, "no untrained model in another's place"
    assert losses(trainer.fit(SENTENCES)) == losses(make_trainer().fit(SENTENCES)), "one stop stops one fit"


def test_stop_counts_for_the_fit_that_it_came_in(tmp_path: Path) -> None:
    trainer = make_trainer()
    history = trainer.fit(SENTENCES, callbacks=at_step(24, trainer.stop))  # the last step
    assert history.stop_reason == "finished"
    assert trainer.fit(SENTENCES).stop_reason == "finished"
    trainer.stop()
    with pytest.raises(ValueError, match="no next-token pair"):
        trainer.fit(["one"])
    assert trainer.fit(SENTENCES).stop_reason == "finished"


def test_stop_before_a_resumed_fit_leaves_the_run_where_it_is(tmp_path: Path) -> None:
    first = make_trainer(checkpoint_dir=tmp_path)
    first.fit(SENTENCES, callbacks=at_step(5, first.stop))
    again = soma.Trainer.resume(tmp_path)
    again.stop()
    assert again.fit(SENTENCES).stop_reason == "stopped"
    assert losses(soma.Trainer.resume(tmp_path).fit(SENTENCES)) == losses(make_trainer().fit(SENTENCES))
