"""Bits per byte of a validation: the loss in nats a token, divided by the bytes that the predicted tokens spell."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native as soma
from helpers.training import SENTENCES, WORDS, make_model
from soma_native.cli.progress import ProgressDisplay
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.tokenizer.byte_lengths import byte_lengths
from soma_native.training.evaluate import predicted_bytes

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

TEXT = "näher, \U0001f600 ging's nicht — 東京!\n"
TEXTS = [TEXT * 9, TEXT[3:] * 5, TEXT]
TOKENIZERS = {
    "byte": soma.Tokenizer.train(TEXTS, kind="byte"),
    "char": soma.Tokenizer.train(TEXTS, kind="char"),
    "bpe": soma.Tokenizer.train(TEXTS, kind="bpe", vocab_size=280),
}


def first_bytes(tok: soma.Tokenizer, text: str) -> int:
    return len(tok.decode_bytes(tok.encode(text)[:1]))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_each_id_has_the_bytes_that_it_decodes_to(kind: str) -> None:
    tok = TOKENIZERS[kind]
    lengths = byte_lengths(tok)
    ids = tok.encode(TEXT)
    assert lengths.shape == (tok.vocab_size,)
    assert lengths[ids].sum() == len(TEXT.encode())
    assert [lengths[tok.token_to_id(token)] for token in tok.special_tokens] == [0] * len(tok.special_tokens)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("end", [None, "auto"])
def test_a_record_has_the_loss_in_bits_for_each_byte(kind: str, end: str | None) -> None:
    tok = TOKENIZERS[kind]
    config = soma.TrainConfig(steps=2, end_of_document=end)
    record = soma.Trainer(make_model(vocab_size=tok.vocab_size), tok, config).fit(TEXTS, validation=TEXTS).records[-1]
    ends = len(TEXTS) if end and tok.special_tokens else 0
    pairs = sum(len(tok.encode(text)) - 1 for text in TEXTS) + ends
    size = sum(len(text.encode()) - first_bytes(tok, text) for text in TEXTS)
    assert record["val_loss"] is not None
    assert record["val_bits_per_byte"] == pytest.approx(record["val_loss"] * pairs / size / math.log(2), rel=1e-12)


def test_evaluate_says_the_loss_and_bits_of_the_last_record(tmp_path: Path, run: Any) -> None:
    tok = TOKENIZERS["bpe"]
    config = soma.TrainConfig(steps=2, end_of_document=None, checkpoint_dir=tmp_path / "run")
    model = make_model(vocab_size=tok.vocab_size)
    record = soma.Trainer(model, tok, config).fit(TEXTS, validation=TEXTS[:1]).records[-1]
    (tmp_path / "held_out.txt").write_text(TEXTS[0], encoding="utf-8")
    measured = run("evaluate", tmp_path / "run", tmp_path / "held_out.txt", "--json").json
    assert measured["loss"] == record["val_loss"]
    assert measured["bits_per_byte"] == pytest.approx(record["val_bits_per_byte"], rel=1e-12)


@pytest.mark.parametrize("limit", [None, 1, 3])
def test_only_bytes_of_the_windows_that_are_validated_count(limit: int | None) -> None:
    tok = TOKENIZERS["char"]
    windows = Windows(TokenStore.encode(TEXTS, tok), 10)
    targets = [t[t >= 0] for _, t in windows.in_order(2, limit)]
    spelled = tok.decode(np.concatenate(targets).tolist())
    assert predicted_bytes(windows, tok, limit) == (sum(map(len, targets)), len(spelled.encode()))


def test_there_are_none_where_bytes_do_not_compare() -> None:
    def windows(texts: list[str], tok: soma.Tokenizer, end: str | None = None) -> Windows:
        return Windows(TokenStore.encode(texts, tok, end), 8)

    char = TOKENIZERS["char"]
    assert predicted_bytes(windows(TEXTS, char), char) is not None
    assert predicted_bytes(windows(TEXTS, char), None) is None
    assert predicted_bytes(windows(["the cat ran"], WORDS), WORDS) is None
    assert predicted_bytes(windows([TEXT + "unknown: q"], char), char) is None
    assert predicted_bytes(windows(["n", "g"], char, "auto"), char) is None, "ends of documents spell nothing"
    ids = TokenStore.from_arrays([[3, 4, 0]])  # 0 is <UNK>
    assert predicted_bytes(Windows(ids, 8), char) is None
    other = TokenStore.from_arrays([[3, 4, char.vocab_size]])
    assert predicted_bytes(Windows(other, 8), char) is None


def test_bits_stand_beside_the_loss_everywhere(tmp_path: Path, run: Any) -> None:
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    out = tmp_path / "run"
    result = run(
        "train", tmp_path / "text.txt", "--out", out, "--preset", "nano-cpu", "--tokenizer", "char", "--steps", 2,
        "--batch-size", 4, "--seq-len", 16,
    )  # fmt: skip
    last = soma.History.from_json(out / "history.json").best
    assert last is not None and last["val_bits_per_byte"] is not None
    said = f"validation {last['val_loss']:.4f} ({last['val_bits_per_byte']:.4f} bits/byte)"
    assert said in result.err and said in result.out
    with open(out / "history.csv", newline="") as file:
        assert float([*csv.DictReader(file)][-1]["val_bits_per_byte"]) == pytest.approx(last["val_bits_per_byte"])


def test_the_bar_shows_bits() -> None:
    tok = TOKENIZERS["char"]
    stream = io.StringIO()
    trainer = soma.Trainer(make_model(vocab_size=tok.vocab_size), tok, soma.TrainConfig(steps=3, eval_every=1))
    with ProgressDisplay(stream, live=True) as display:
        trainer.fit(TEXTS, validation=TEXTS, callbacks=[display])
        assert "bits/byte)" in display._validation


def test_a_run_of_an_older_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = TOKENIZERS["char"]
    real = soma.History.to_dict

    def older(self: soma.History) -> dict[str, Any]:
        records = [{k: v for k, v in record.items() if k != "val_bits_per_byte"} for record in self.records]
        return json.loads(json.dumps(real(self) | {"format": 1, "records": records}))  # type: ignore[no-any-return]

    config = soma.TrainConfig(steps=4, eval_every=1, val_fraction=0.2, checkpoint_dir=tmp_path)
    first = soma.Trainer(make_model(vocab_size=tok.vocab_size), tok, config)
    with monkeypatch.context() as patch:
        patch.setattr(soma.History, "to_dict", older)
        first.fit(TEXTS, callbacks=lambda event: event.step == 2 and first.stop())
    records = soma.Trainer.resume(tmp_path).fit(TEXTS).records
    assert [record["val_bits_per_byte"] is None for record in records] == [True, True, False, False]
