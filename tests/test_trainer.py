"""Training: what is learned and recorded, checkpoints, resuming bit for bit after every kind of end, and refusals."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from soma_native import _core
from soma_native.batches import Windows
from soma_native.callbacks import InterruptGuard
from soma_native.data import TokenStore
from soma_native.trainer import mean_loss
from soma_native.training_state import STATE_FILE

NAMES = ["cat", "dog", "hen", "cow", "owl", "fox", "bee", "ant"]
SENTENCES = [f"the {a} saw the {b} and the {b} ran" + " away" * (i % 3) for i, a in enumerate(NAMES) for b in NAMES]
WORDS = soma.Tokenizer.train(SENTENCES, kind="word", vocab_size=30)


def make_model(seed: int = 0, block: str = "soma", **overrides: int) -> soma.Model:
    shape = {"vocab_size": WORDS.vocab_size, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_seq_len": 16}
    return soma.Model(soma.ModelConfig(**{**shape, **overrides}, block=block), seed=seed)


def make_trainer(model_seed: int = 0, **settings: Any) -> soma.Trainer:
    return soma.Trainer(make_model(model_seed), WORDS, soma.TrainConfig(**{"epochs": 3, "lr": 1e-2, **settings}))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug of the machine, and flushing takes longer than the training of such models."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def weights(model: soma.Model) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.parameters().items()}


def losses(history: soma.History) -> list[tuple[Any, ...]]:
    """The records without what a clock decides."""
    return [(r["epoch"], r["step"], r["train_loss"], r["val_loss"], r["lr"]) for r in history.records]


def at_step(step: int, action: Callable[[], object]) -> Callable[[soma.Event], None]:
    def callback(event: soma.Event) -> None:
        if event.kind == "step" and event.step == step:
            action()

    return callback


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


# --- what is learned and recorded


@pytest.mark.parametrize("block", ["soma", "gpt2"])
def test_training_learns_the_sentences(block: str) -> None:
    model = make_model(block=block)
    history = soma.Trainer(model, WORDS, soma.TrainConfig(epochs=15, lr=1e-2)).fit(SENTENCES)
    first, last = history.records[0], history.records[-1]
    assert len(history.records) == 15
    assert math.log(WORDS.vocab_size) + 0.1 > first["train_loss"] > 2 * last["train_loss"]
    assert history.stop_reason == "finished"
    assert history.data["train"]["pairs"] == sum(len(text.split()) - 1 for text in SENTENCES)


def test_train_loss_of_an_epoch_is_the_mean_over_its_pairs() -> None:
    texts = ["the cat", *SENTENCES, "the owl and the fox ran " * 3]  # lengths differ, so a mean of means would not do
    trainer = make_trainer(lr=1e-30, weight_decay=0.0, batch_size=3, epochs=1)  # weights stay what they are
    history = trainer.fit(texts)
    total = pairs = 0.0
    for text in texts:
        ids = np.array([WORDS.encode(text)], np.int32)
        for at in range(0, ids.shape[1] - 1, 16):
            window = ids[:, at : at + 17]
            count = window.shape[1] - 1
            total += (
                trainer.model.loss(np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])) * count
            )
            pairs += count
    assert history.records[0]["train_loss"] == pytest.approx(total / pairs, rel=1e-5)
    assert trainer.evaluate(texts) == pytest.approx(total / pairs, rel=1e-5)


def test_accumulated_micro_batches_are_one_large_batch() -> None:
    whole = make_trainer(batch_size=64, epochs=8).fit(SENTENCES)
    for size, parts in ((16, 4), (24, 3)):  # 24 + 24 + 16: parts need not be equal
        split = make_trainer(batch_size=size, grad_accumulation=parts, epochs=8).fit(SENTENCES)
        assert [r["step"] for r in split.records] == list(range(1, 9))
        np.testing.assert_allclose(
            [r["train_loss"] for r in split.records], [r["train_loss"] for r in whole.records], rtol=1e-4
        )


def test_records_say_where_and_how_fast() -> None:
    trainer = make_trainer(epochs=2, schedule="constant", warmup_steps=0, batch_size=8)
    history = trainer.fit(SENTENCES)
    assert [(r["epoch"], r["step"], r["val_loss"], r["lr"]) for r in history.records] == [
        (1, 8, None, 1e-2),
        (2, 16, None, 1e-2),
    ]
    assert all(r["tokens_per_second"] > 0 for r in history.records)
    assert 0 < history.records[0]["seconds"] < history.records[1]["seconds"]
    assert trainer.history is history


def test_steps_and_eval_every_decide_the_records() -> None:
    assert [r["step"] for r in make_trainer(epochs=None, steps=25).fit(SENTENCES).records] == [*range(3, 25, 3), 25]
    by_five = make_trainer(epochs=2, eval_every=5).fit(SENTENCES)
    assert [(r["epoch"], r["step"]) for r in by_five.records] == [(1, 5), (2, 10), (2, 15), (2, 16)]


def test_random_sampling_draws_full_windows_of_a_long_text() -> None:
    seen: list[tuple[int, int]] = []
    trainer = make_trainer(epochs=None, steps=6, sampling="random", batch_size=4, seq_len=12)
    real = trainer.model.loss_and_grad

    def watched(ids: Any, targets: Any, normalizer: int | None = None) -> float:
        seen.append(ids.shape)
        assert (targets >= 0).all()
        assert normalizer == ids.size
        return real(ids, targets, normalizer=normalizer)

    trainer.model.loss_and_grad = watched  # type: ignore[method-assign]
    trainer.fit([" ".join(SENTENCES)])
    assert seen == [(4, 12)] * 6


def test_the_same_settings_give_the_same_bits() -> None:
    trainers = [make_trainer(seed=seed) for seed in (0, 0, 1)]
    results = [(losses(trainer.fit(SENTENCES)), weights(trainer.model)) for trainer in trainers]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_a_second_fit_goes_on_from_the_weights() -> None:
    trainer = make_trainer(epochs=5)
    first = trainer.fit(SENTENCES)
    second = trainer.fit(SENTENCES)
    assert second.records[0]["train_loss"] < first.records[0]["train_loss"]
    assert trainer.history is second is not first


# --- validation


def test_validation_loss_is_that_of_the_validation_texts() -> None:
    trainer = make_trainer(epochs=2, batch_size=4)
    history = trainer.fit(SENTENCES[8:], validation=SENTENCES[:8])
    assert history.records[-1]["val_loss"] == pytest.approx(trainer.evaluate(SENTENCES[:8]), rel=1e-6)
    assert history.data["validation"]["documents"] == 8


def test_val_fraction_holds_documents_out() -> None:
    history = make_trainer(val_fraction=0.25).fit(SENTENCES)
    assert history.data["train"]["documents"] == 48
    assert history.data["validation"]["documents"] == 16
    assert all(record["val_loss"] is not None for record in history.records)


def test_validation_can_be_limited() -> None:
    store = TokenStore.encode(SENTENCES, WORDS)
    windows = Windows(store, 16)
    model = make_model()
    forward = model.loss
    shapes: list[int] = []
    model.loss = lambda ids, targets: (shapes.append(len(ids)), forward(ids, targets))[1]  # type: ignore[method-assign]
    mean_loss(model, windows, batch_size=8, limit=12)
    assert shapes == [8, 4]


def test_overfitting_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    rng = np.random.default_rng(0)
    nonsense = [" ".join(rng.choice(NAMES, 10)) for _ in range(16)]  # nothing in it carries over
    trainer = make_trainer(epochs=60, lr=3e-2)

    def listen(event: soma.Event) -> None:
        if event.kind == "warning":
            heard.append(event.message)

    with caplog.at_level(logging.WARNING, "soma_native"):
        history = trainer.fit(nonsense[:8], validation=nonsense[8:], callbacks=listen)
    turn = history.overfit_from
    assert turn is not None
    assert history.warnings == heard
    assert f"over-fitting from step {turn['step']} " in heard[-1]
    assert "over-fitting" in caplog.text


def test_early_stopping_ends_the_training_and_the_folder_has_the_best(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nonsense = [" ".join(rng.choice(NAMES, 10)) for _ in range(16)]
    folder = tmp_path / "run"
    trainer = make_trainer(epochs=60, lr=3e-2, patience=3, checkpoint_dir=folder)
    history = trainer.fit(nonsense[:8], validation=nonsense[8:])
    assert history.stop_reason == "early stopping"
    assert history.best is not None
    assert history.records[-1]["epoch"] == history.best["epoch"] + 3 < 60
    assert history.checkpoint == str(folder)
    model, tok = soma.load(folder)
    assert soma.Trainer(model, tok).evaluate(nonsense[8:]) == pytest.approx(history.best["val_loss"], rel=1e-6)
    assert trainer.evaluate(nonsense[8:]) > history.best["val_loss"]
    assert soma.History.from_json(folder / "history.json").to_dict() == history.to_dict()
    assert len((folder / "history.csv").read_text().splitlines()) == len(history.records) + 1


def test_the_latest_model_is_kept_when_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(val_fraction=0.2, keep_best=False, checkpoint_dir=tmp_path)
    trainer.fit(SENTENCES)
    assert weights(soma.load(tmp_path)[0]) == weights(trainer.model)


# --- stopping and resuming


@pytest.fixture(scope="module", params=["epoch", "random"])
def uninterrupted(request: pytest.FixtureRequest) -> tuple[dict[str, Any], soma.History, dict[str, bytes]]:
    settings = {
        "epochs": 4, "batch_size": 3, "grad_accumulation": 2, "seq_len": 7, "sampling": request.param, "seed": 5,
        "val_fraction": 0.2, "eval_every": 6,
    }  # fmt: skip
    trainer = make_trainer(**settings)
    history = trainer.fit(SENTENCES)
    return settings, history, weights(trainer.model)


ENDS: dict[str, Callable[[soma.Trainer], object]] = {
    "stop": lambda trainer: trainer.stop(),
    "ctrl-c": lambda trainer: interrupt(),
    "crash": lambda trainer: 1 / 0,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", [1, 12, 17])
def test_resuming_goes_on_bit_for_bit(
    uninterrupted: tuple[dict[str, Any], soma.History, dict[str, bytes]], tmp_path: Path, end: str, step: int
) -> None:
    settings, expected, expected_weights = uninterrupted
    settings = {**settings, "checkpoint_dir": tmp_path, "checkpoint_every": 1 if step == 1 else 5}
    first = make_trainer(**settings)
    callback = at_step(step, lambda: ENDS[end](first))
    if end == "stop":
        assert first.fit(SENTENCES, callbacks=callback).stop_reason == "stopped"
    else:
        if end == "crash" and step == 1:
            callback = at_step(2, lambda: ENDS[end](first))
        with pytest.raises(KeyboardInterrupt if end == "ctrl-c" else ZeroDivisionError):
            first.fit(SENTENCES, callbacks=callback)
    assert first.history.checkpoint == str(tmp_path)

    second = make_trainer(model_seed=99, **settings, resume=True)  # weights and moments come from the checkpoint
    history = second.fit(SENTENCES)
    assert losses(history) == losses(expected)
    assert weights(second.model) == expected_weights
    assert history.stop_reason == "finished"


def test_resume_from_the_folder_alone(
    uninterrupted: tuple[dict[str, Any], soma.History, dict[str, bytes]], tmp_path: Path
) -> None:
    settings, expected, expected_weights = uninterrupted
    first = make_trainer(**settings, checkpoint_dir=tmp_path / "run")
    first.fit(SENTENCES, callbacks=at_step(9, first.stop))
    (tmp_path / "run").rename(tmp_path / "moved")
    again = soma.Trainer.resume(tmp_path / "moved", checkpoint_every=50)
    assert losses(again.fit(SENTENCES)) == losses(expected)
    assert weights(again.model) == expected_weights
    assert again.history.checkpoint == str(tmp_path / "moved")


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    first = make_trainer(checkpoint_dir=tmp_path)
    expected = losses(first.fit(SENTENCES))
    again = soma.Trainer.resume(tmp_path)
    steps: list[int] = []
    assert losses(again.fit(SENTENCES, callbacks=at_step(25, lambda: steps.append(1)))) == expected
    assert not steps
    assert weights(again.model) == weights(first.model)


def test_a_constant_rate_can_be_trained_for_longer(tmp_path: Path) -> None:
    settings = {"schedule": "constant", "warmup_steps": 2}
    long = make_trainer(epochs=4, **settings)
    expected = losses(long.fit(SENTENCES))
    make_trainer(epochs=2, checkpoint_dir=tmp_path, **settings).fit(SENTENCES)
    longer = make_trainer(epochs=4, checkpoint_dir=tmp_path, resume=True, **settings)
    assert losses(longer.fit(SENTENCES)) == expected
    assert weights(longer.model) == weights(long.model)


@pytest.mark.parametrize(
    ("settings", "texts", "message"),
    [
        ({"lr": 0.5}, SENTENCES, r"lr \(0.01 there, 0.5 here\)"),
        ({"epochs": 4}, SENTENCES, r"number of steps \(epochs, steps\) \(24 there, 32 here\)"),
        ({"betas": (0.8, 0.9)}, SENTENCES, r"betas \(\[0.9, 0.95\] there, \[0.8, 0.9\] here\)"),
        ({"sampling": "random"}, SENTENCES, r"sampling \(epoch there, random here\)"),
        ({}, [*SENTENCES[1:], SENTENCES[0]], "differs in: training texts"),
        ({"val_fraction": 0.1, "epochs": 3}, SENTENCES, "val_fraction .*validation texts"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, settings: dict[str, Any], texts: list[str], message: str) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    before = (tmp_path / STATE_FILE).read_bytes()
    trainer = make_trainer(checkpoint_dir=tmp_path, resume=True, **settings)
    untouched = weights(trainer.model)
    with pytest.raises(ValueError, match=message):
        trainer.fit(texts)
    assert weights(trainer.model) == untouched
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_another_model_is_not_resumed(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    config = soma.TrainConfig(epochs=3, lr=1e-2, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"differs in: model \(.*'d_ff': 32.* there, .*'d_ff': 64.* here\)"):
        soma.Trainer(make_model(d_ff=64), WORDS, config).fit(SENTENCES)


def test_another_isa_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES, callbacks=lambda event: event.trainer.stop())
    before = soma.active_isa()
    _core.set_isa("scalar")
    try:
        with caplog.at_level(logging.WARNING, "soma_native"):
            history = soma.Trainer.resume(tmp_path).fit(SENTENCES)
    finally:
        _core.set_isa(before)
    assert history.stop_reason == "finished"
    assert (f"the run began on {before}; on scalar it goes on" in caplog.text) == (before != "scalar")


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        make_trainer(checkpoint_dir=tmp_path, resume=True).fit(SENTENCES)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        soma.Trainer.resume(tmp_path / "none")


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.99])
def test_a_damaged_state_is_found_and_changes_nothing(tmp_path: Path, where: float) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    path = tmp_path / STATE_FILE
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)
    trainer = make_trainer(checkpoint_dir=tmp_path, resume=True)
    untouched = weights(trainer.model)
    with pytest.raises(soma.CheckpointError, match=STATE_FILE):
        trainer.fit(SENTENCES)
    assert weights(trainer.model) == untouched


def test_a_truncated_state_is_found(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(soma.CheckpointError, match=STATE_FILE):
        soma.Trainer.resume(tmp_path)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import test_trainer as t
    left, armed = int(sys.argv[2]), False
    def arm(event):
        global armed
        armed = armed or event.kind == "checkpoint"  # from the second save on
    def dying(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            global left
            left -= armed
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(os, name, call)
    os.fsync = lambda descriptor: None
    for name in ("rename", "replace", "unlink"):
        dying(name)
    t.make_trainer(checkpoint_dir=sys.argv[1], checkpoint_every=2, **t.KILL_SETTINGS).fit(t.SENTENCES, callbacks=arm)
"""
KILL_SETTINGS: dict[str, Any] = {"val_fraction": 0.2, "eval_every": 3, "batch_size": 16}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_run_killed_while_saving_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = make_trainer(**KILL_SETTINGS)
    expected = losses(whole.fit(SENTENCES))
    script = textwrap.dedent(KILLED.format(tests=str(Path(__file__).parent)))
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / str(calls)), str(calls)])
        for calls in (8, 10, 15, 18)  # model in force, model and no state, state half in force, state in force
    ]
    for process in processes:
        assert process.wait() == -signal.SIGKILL
    for folder in tmp_path.iterdir():
        again = soma.Trainer.resume(folder)
        assert losses(again.fit(SENTENCES)) == expected
        assert weights(again.model) == weights(whole.model)


# --- Ctrl-C, stop, errors


def test_ctrl_c_inside_the_update_is_put_off_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = soma.AdamW.step

    def step(self: soma.AdamW, lr: float | None = None) -> float:
        norm = real(self, lr)
        if self.step_count == 5:
            interrupt()
        return norm

    monkeypatch.setattr(soma.AdamW, "step", step)
    trainer = make_trainer(checkpoint_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES)
    monkeypatch.undo()
    assert trainer.history.stop_reason == "interrupted"
    whole = make_trainer()
    expected = losses(whole.fit(SENTENCES))
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == expected
    assert weights(again.model) == weights(whole.model)


def test_ctrl_c_says_where_it_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "soma_native"), pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES, callbacks=at_step(3, interrupt))
    assert f"interrupted after step 3 of 24; saved in {tmp_path}" in caplog.text
    assert weights(soma.load(tmp_path)[0]) == weights(trainer.model)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_validation_saves_the_steps_before_it(tmp_path: Path) -> None:
    whole = make_trainer(val_fraction=0.2, eval_every=5)
    expected = losses(whole.fit(SENTENCES))
    trainer = make_trainer(val_fraction=0.2, eval_every=5, checkpoint_dir=tmp_path)
    forward = trainer.model.loss
    calls: list[int] = []

    def loss(ids: Any, targets: Any) -> float:
        calls.append(1)
        if len(calls) == 4:  # of two batches each time
            interrupt()
        return forward(ids, targets)

    trainer.model.loss = loss  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES)
    assert len(calls) == 4
    assert [record["step"] for record in trainer.history.records] == [5]
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == expected
    assert weights(again.model) == weights(whole.model)


def test_ctrl_c_before_the_first_step_leaves_the_folder_alone(tmp_path: Path) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(model_seed=1, checkpoint_dir=tmp_path).fit(
            SENTENCES, callbacks=lambda event: interrupt() if event.kind == "start" else None
        )
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_ctrl_c_without_a_folder_says_that_nothing_was_saved(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer()
    with caplog.at_level(logging.WARNING, "soma_native"), pytest.raises(KeyboardInterrupt):
        trainer.fit(SENTENCES, callbacks=at_step(3, interrupt))
    assert "nothing was saved" in caplog.text
    assert trainer.history.checkpoint is None


def test_a_program_that_handles_ctrl_c_keeps_doing_so() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with InterruptGuard():
            interrupt()
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_stop_from_another_thread() -> None:
    trainer = make_trainer(epochs=100_000)
    reached = threading.Event()
    thread = threading.Thread(target=lambda: (reached.wait(), trainer.stop()))
    thread.start()
    history = trainer.fit(SENTENCES, callbacks=at_step(20, reached.set))
    thread.join()
    assert history.stop_reason == "stopped"


def test_fit_works_in_a_thread_of_its_own() -> None:
    histories: list[soma.History] = []
    thread = threading.Thread(target=lambda: histories.append(make_trainer().fit(SENTENCES)))
    thread.start()
    thread.join()
    assert losses(histories[0]) == losses(make_trainer().fit(SENTENCES))


def poison(model: soma.Model) -> None:
    next(iter(model.parameters().values()))[...] = np.nan


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path, checkpoint_every=4)
    files: dict[str, bytes] = {}

    def break_it() -> None:
        files.update({path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()})
        poison(trainer.model)

    with pytest.raises(FloatingPointError, match=r"step 7: the loss is nan; the last good checkpoint, in .* lower lr"):
        trainer.fit(SENTENCES, callbacks=at_step(6, break_it))
    assert STATE_FILE in files
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    again = soma.Trainer.resume(tmp_path)
    assert losses(again.fit(SENTENCES)) == losses(make_trainer().fit(SENTENCES))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(FloatingPointError, match=r"step 6: .* not finite"):
        trainer.fit(SENTENCES, callbacks=at_step(6, lambda: poison(trainer.model)))
    assert all(np.isfinite(array).all() for array in soma.load(tmp_path)[0].parameters().values())


def test_a_gradient_that_is_not_finite_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    real = trainer.model.loss_and_grad
    calls: list[int] = []

    def broken(ids: Any, targets: Any, normalizer: int | None = None) -> float:
        loss = real(ids, targets, normalizer=normalizer)
        calls.append(1)
        if len(calls) == 4:
            next(iter(trainer.model.gradients().values()))[...] = np.inf
        return loss

    monkeypatch.setattr(trainer.model, "loss_and_grad", broken)
    with pytest.raises(FloatingPointError, match="training stopped in step 4"):
        trainer.fit(SENTENCES)
    assert all(np.isfinite(array).all() for array in trainer.model.parameters().values())
    assert not any(array.any() for array in trainer.model.gradients().values())


def test_another_run_in_the_folder_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    with caplog.at_level(logging.WARNING, "soma_native"):
        make_trainer(checkpoint_dir=tmp_path).fit(SENTENCES)
    assert "holds another training run" in caplog.text


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(soma.CheckpointError, match="/proc/nowhere"):
        make_trainer(checkpoint_dir="/proc/nowhere").fit(SENTENCES)


# --- arguments


def test_texts_without_a_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"texts has no next-token pair: all 2 document\(s\)"):
        make_trainer().fit(["cat", "dog"])
    with pytest.raises(ValueError, match="validation has no documents"):
        make_trainer().fit(SENTENCES, validation=[])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"validation and val_fraction=0.1: give one of the two"):
        make_trainer(val_fraction=0.1).fit(SENTENCES, validation=SENTENCES[:2])
    with pytest.raises(ValueError, match="patience=2 needs validation data"):
        make_trainer(patience=2).fit(SENTENCES)
    with pytest.raises(ValueError, match="warmup_steps=50: must be at least 0 and below the 24 steps"):
        make_trainer(warmup_steps=50).fit(SENTENCES)


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the model only 10: make the model with vocab_size="):
        soma.Trainer(make_model(vocab_size=10), WORDS)
    with pytest.raises(ValueError, match="seq_len=17: allowed is 1 to 16"):
        make_trainer(seq_len=17)
    with pytest.raises(TypeError, match="config is dict: expected a TrainConfig"):
        soma.Trainer(make_model(), WORDS, {"epochs": 3})  # type: ignore[arg-type]


def test_a_vocabulary_that_is_too_small_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "soma_native"):
        history = make_trainer(epochs=1).fit([*SENTENCES, "zebras and lions and other beasts"])
    assert history.data["train"]["unknown_tokens"] == 4
    assert "<UNK>" not in caplog.text  # less than a hundredth
    with caplog.at_level(logging.WARNING, "soma_native"):
        make_trainer(epochs=1).fit(["zebras and lions and other beasts"])
    assert "66.7% of the tokens of the train data are <UNK>" in caplog.text


def test_events_come_in_order(tmp_path: Path) -> None:
    kinds: list[str] = []
    calls: list[tuple[str, int]] = []

    class Listener(soma.Callback):
        def on_step(self, event: soma.Event) -> None:
            calls.append(("step", event.step))

        def on_epoch(self, event: soma.Event) -> None:
            calls.append(("epoch", event.epoch))

    class Duck:
        def on_end(self, event: soma.Event) -> None:
            calls.append((event.message, event.step))

    trainer = make_trainer(epochs=2, batch_size=32, checkpoint_dir=tmp_path, checkpoint_every=2)
    trainer.fit(SENTENCES, callbacks=[lambda event: kinds.append(event.kind), Listener(), Duck()])
    assert kinds == [
        "start", "step", "step", "evaluate", "epoch", "checkpoint", "step", "step", "evaluate", "epoch", "checkpoint",
        "end",
    ]  # fmt: skip
    assert calls == [
        ("step", 1), ("step", 2), ("epoch", 1), ("step", 3), ("step", 4), ("epoch", 2), ("finished", 4),
    ]  # fmt: skip


def test_events_carry_what_happened() -> None:
    events: list[soma.Event] = []
    trainer = make_trainer(epochs=1, batch_size=32)
    trainer.fit(SENTENCES, callbacks=events.append)
    start, step = events[0], events[1]
    assert math.isnan(start.loss)
    assert (step.step, step.total_steps, step.epoch, step.epochs, step.trainer) == (1, 2, 1, 1, trainer)
    assert step.loss > 0
    assert step.grad_norm > 0
    assert step.tokens_per_second > 0
    assert [event.record for event in events if event.kind == "evaluate"] == trainer.history.records


@pytest.mark.parametrize("callback", [3, "step", object(), soma.Callback])
def test_what_is_no_callback_is_refused(callback: object) -> None:
    with pytest.raises(TypeError, match="callbacks contains"):
        make_trainer().fit(SENTENCES, callbacks=[callback])
