"""A GGUF in llama.cpp: the same ids, logits within rounding, the same greedy text, for every shape and type."""

from __future__ import annotations

import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soma_native
from helpers.llama_cpp import LlamaCpp, greedy_text
from helpers.numerics import relative_error
from oracles.bpe_patterns import CHARACTERS, random_text
from soma_native.checkpoint.architectures import ARCHITECTURES
from soma_native.checkpoint.gguf import export_gguf
from soma_native.checkpoint.gguf_vocabulary import PROVEN
from soma_native.model.config import ModelConfig
from soma_native.model.model import Model
from soma_native.tokenizer.tokenizer import Tokenizer

SOURCE = random.Random(0)
AWKWARD = [random_text(SOURCE).replace("\0", "") for _ in range(200)]
TRAINING = [random_text(SOURCE).replace("\0", "") for _ in range(600)]
PATTERNS = [(pattern, ignore) for pattern, names in PROVEN.items() for ignore in names]

GPT2, LLAMA = {"block": "gpt2"}, {"block": "llama", "n_kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "llama, one head of keys": {**LLAMA, "n_kv_heads": 1, "head_dim": 32},
    "qwen3": {**LLAMA, "qk_norm": True},
    "qwen3, wide heads": {**LLAMA, "qk_norm": True, "n_kv_heads": 4, "head_dim": 24},
}
# The largest relative error of one rounding: float16 has 11 bits; 8 bits and a scale keep a 127th of the largest of 32.
ROUNDOFF = {"f32": 2.0**-11, "f16": 2.0**-11, "q8_0": 2.0**-7}


def tolerance(dtype: str) -> float:
    """Norm-wise relative error of logits. Independent errors add up like the root of their number; twice that.

    llama.cpp keeps keys and values of two layers in float16, and GPT-2's activation in a table. With smaller weights,
    it rounds both operands of 15 products.
    """
    return 2 * ROUNDOFF[dtype] * float(np.sqrt({"f32": 6}.get(dtype, 30)))


def make_model(vocab_size: int, **shape: Any) -> Model:
    """A model whose attention and norms matter, and whose greedy choice is clear."""
    config = ModelConfig(vocab_size=vocab_size, d_model=64, n_layers=2, n_heads=4, d_ff=96, max_seq_len=48, **shape)
    model = Model(config, seed=0, precision="float32")
    rng = np.random.default_rng(1)
    for array in model.parameters().values():
        array[...] += rng.normal(0, 0.15, array.shape).astype(np.float32)
    return model


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(TRAINING, "bpe", 320)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_logits_are_ours_within_rounding(dtype: str, shape: str, tied: bool, tok: Tokenizer, tmp_path: Path) -> None:
    model = make_model(tok.vocab_size, tied_head=tied, **SHAPES[shape])
    path = export_gguf(tmp_path / "model.gguf", model, tok, dtype)
    ids = np.random.default_rng(0).integers(0, tok.vocab_size, 40)
    with LlamaCpp(path) as there:
        assert relative_error(there.forward(ids.tolist(), tok.vocab_size), model.forward(ids)) < tolerance(dtype)


def test_the_tolerance_would_show_rows_in_another_order(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither order serves both: llama's rows are interleaved, those of qwen3 are not."""
    ids = np.random.default_rng(0).integers(0, tok.vocab_size, 40)
    one, other = ARCHITECTURES["llama"], ARCHITECTURES["qwen3"]
    monkeypatch.setitem(ARCHITECTURES, "llama", one._replace(gguf=other.gguf))
    monkeypatch.setitem(ARCHITECTURES, "qwen3", other._replace(gguf=one.gguf))
    for qk_norm in (False, True):
        model = make_model(tok.vocab_size, **{**LLAMA, "qk_norm": qk_norm})
        with LlamaCpp(export_gguf(tmp_path / "model.gguf", model, tok, "f32")) as there:
            error = relative_error(there.forward(ids.tolist(), tok.vocab_size), model.forward(ids))
        assert error > 2 * tolerance("q8_0")


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("dtype", ROUNDOFF)
def test_greedy_text_is_ours(dtype: str, shape: str, tok: Tokenizer, tmp_path: Path) -> None:
    """The head knows what follows each token, so rounding changes no choice; the text ends at the end token."""
    model = make_model(tok.vocab_size, tied_head=False, **SHAPES[shape])
    text = " the cat sat on the cat."
    ids = [*tok.encode(text), *tok.encode("<|endoftext|>", "all")]
    before, after = ids[:-1], ids[1:]
    head = next(name for name in model.parameters() if name.startswith("lm_head"))
    weights = model.parameters()[head]
    weights[...] = 0.0
    weights[:64] = np.eye(64, dtype=np.float32)  # the logits are then the hidden states
    hidden = model.forward(np.array(before))[:, :64].astype(np.float64)
    wanted = np.full((len(after), tok.vocab_size), -10.0)
    wanted[np.arange(len(after)), after] = 10.0
    weights[...] = np.linalg.lstsq(hidden, wanted, rcond=None)[0].T
    path = export_gguf(tmp_path / "model.gguf", model, tok, dtype)
    ours = soma_native.Generator(model, tok).generate(" the", max_tokens=30, temperature=0)
    assert ours == text
    assert " the" + greedy_text(path, " the", 30, 48) == text


@pytest.mark.parametrize(("pattern", "ignore_merges"), PATTERNS)
def test_ids_of_awkward_texts(pattern: str, ignore_merges: bool, tmp_path: Path) -> None:
    tok = Tokenizer.train(TRAINING, "bpe", 1500, ["<|end|>", "<t>"], pattern=pattern)
    if ignore_merges:
        tok = with_settings(tok, tmp_path, lambda model: model.update(ignore_merges=True))
    compare(tok, tmp_path, AWKWARD)


def test_chunks_that_are_tokens_without_a_merge(tmp_path: Path) -> None:
    """They are taken whole with llama-3's name, and never with the name that merges."""
    tok = Tokenizer.train(["zq zq zq"] * 9, "bpe", 260, pattern="llama3")
    whole = with_settings(tok, tmp_path, lambda model: model["merges"].remove("z q"), ignore_merges=True)
    merged = with_settings(whole, tmp_path, lambda model: None, ignore_merges=False)
    assert len(whole.encode("zq")) == 1 and len(merged.encode("zq")) == 2
    compare(whole, tmp_path, ["zq", " zq zq", *AWKWARD])
    compare(merged, tmp_path, ["zq", " zq zq", *AWKWARD])


def test_ids_of_ranks_are_those_of_their_merges(tmp_path: Path) -> None:
    """tiktoken takes whole chunks; where each token has a merge, merging gives the same."""
    trained = Tokenizer.train(TRAINING, "bpe", 900, ())
    lines = [base64.b64encode(trained.decode_bytes([i])) + b" %d\n" % i for i in range(trained.vocab_size)]
    (tmp_path / "ranks.tiktoken").write_bytes(b"".join(lines))
    tok = Tokenizer.from_tiktoken(tmp_path / "ranks.tiktoken", pattern="gpt2", special_tokens={"<|endoftext|>": 900})
    compare(tok, tmp_path, AWKWARD)


def test_ids_of_characters_and_bytes(tmp_path: Path) -> None:
    characters = Tokenizer.train(["".join(CHARACTERS) + "<|UNKendoftext|>"], "char")
    known = ["".join(random.Random(i).choices(CHARACTERS, k=30)) for i in range(200)]
    compare(characters, tmp_path, [text.replace("\0", "") for text in known])
    compare(Tokenizer.train(["ab"], "byte"), tmp_path, AWKWARD)
    ascii = Tokenizer.train(["abc <UNK>"], "char", special_tokens=["<UNK>"])  # without any merge
    compare(ascii, tmp_path, ["<><>a", "cab b"])
    with LlamaCpp(tmp_path / "model.gguf") as there:
        assert there.encode("aéb") == [i for i in ascii.encode("aéb") if i != ascii.token_to_id("<UNK>")]


def smallest(vocab_size: int, **shape: Any) -> Model:
    sizes = {"vocab_size": vocab_size, "d_model": 4, "n_layers": 1, "n_heads": 1, "d_ff": 4, "max_seq_len": 8}
    return Model(ModelConfig(**{**sizes, "block": "gpt2", **shape}))


def with_settings(tok: Tokenizer, folder: Path, change: Any, **settings: Any) -> Tokenizer:
    """The tokenizer with another `model` in its file."""
    path = tok.save(folder / "changed.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document["model"])
    document["model"].update(settings)
    path.write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.load(path)


def compare(tok: Tokenizer, folder: Path, texts: list[str]) -> None:
    """Compare the ids of texts, without special tokens and with them."""
    path = export_gguf(folder / "model.gguf", smallest(tok.vocab_size + 3), tok, "f32")
    marked = [a + token + b for token, (a, b) in itertools.product(tok.special_tokens, itertools.pairwise(texts[:20]))]
    with LlamaCpp(path) as there:
        wrong = [text for text in texts + marked if there.encode(text) != tok.encode(text)]
        assert not wrong
        special = [t for t in marked if there.encode(t, special=True) != tok.encode(t, allowed_special="all")]
        assert not special
