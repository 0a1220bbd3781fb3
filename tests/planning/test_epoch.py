"""The epochs of plans, against the batches that the sampler really makes."""

from __future__ import annotations

import numpy as np
import pytest

import soma_native as soma
from soma_native.data.samplers import EpochSampler
from soma_native.data.token_store import TokenStore
from soma_native.data.windows import Windows
from soma_native.planning.corpus import Corpus, survey
from soma_native.planning.epoch import epoch_of

RNG = np.random.default_rng(0)
LENGTHS = {
    "one short": [200],
    "one long": [20_000],
    "lines": RNG.integers(1, 80, 4000).tolist(),
    "pages": RNG.integers(1, 2000, 300).tolist(),
    "less than a pool": RNG.integers(1, 300, 70).tolist(),
    "few": [1, 2, 5, 30, 60],
    "book and note": [50_000, 10],
}


@pytest.mark.parametrize("fraction", [0.0, 0.1])
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("name", LENGTHS)
def test_an_epoch_has_the_steps_and_tokens_of_the_sampler(name: str, batch: int, fraction: float) -> None:
    texts = ["".join(RNG.choice(list("abcdef "), length)) for length in LENGTHS[name]]
    tok = soma.Tokenizer.train(texts, kind="char")
    store = TokenStore.encode(texts, tok, "auto")
    if fraction:
        store = store.split(fraction)[0]
    windows = Windows(store, 64)
    sampler = EpochSampler(windows, batch, seed=0, fresh=True)
    padded = sum(ids.size for step in range(sampler.steps_per_epoch) for ids, _ in sampler.batches(step))
    epoch = epoch_of(survey(texts), 1.0, 64, batch, fraction)
    assert epoch.steps == pytest.approx(sampler.steps_per_epoch, rel=0.02, abs=1)
    assert epoch.pairs == pytest.approx(store.pairs, rel=0.02)
    assert epoch.padded == pytest.approx(padded, rel=0.05)
    assert (epoch.batch, epoch.longest) == (min(batch, windows.most), windows.lengths.max())


def test_a_text_too_short_to_hold_out_a_part_is_trained_on_whole() -> None:
    assert epoch_of(Corpus(1, 2, 2, 2), 1.0, 64, 8, 0.1).pairs == 2


def test_texts_of_single_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="no document of two tokens: give longer texts"):
        epoch_of(Corpus(2, 2, 2, 2, lengths=((1, 2),)), 1.0, 64, 8, 0.0, end=False)
