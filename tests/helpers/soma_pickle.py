"""Makes pickles as the reference does: a dict with objects of three classes, which may be of any module."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import numpy as np

SPECIAL = ("<PAD>", "<UNK>", "<START>", "<END>", "<BOS>", "<EOS>")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "x_1", "café", "42")
NAMES = ("SOMALGMConfig", "SOMASequenceBlock", "SOMATokenInteraction")


def classes(module: str = "__main__") -> dict[str, Any]:
    """The three classes in a module, which is made if it is missing."""
    place = sys.modules.setdefault(module, types.ModuleType(module))
    made = {name: type(name, (), {"__module__": module}) for name in NAMES}
    for name, kind in made.items():
        setattr(place, name, kind)
    return made


def thing(kind: Any, **attributes: Any) -> Any:
    made = kind()
    made.__dict__.update(attributes)
    return made


def reference(
    module: str = "__main__", d_model: int = 12, n_layers: int = 2, n_heads: int = 3, d_ff: int = 20, longest: int = 10
) -> dict[str, Any]:
    """A trained model of the reference."""
    kinds, rng = classes(module), np.random.default_rng(0)
    words = [*SPECIAL, *WORDS]
    size = len(words)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.5, shape)

    def interaction() -> Any:
        weights = {name: normal(d_model, d_model) for name in ("W_q", "W_k", "W_v", "W_o")}
        sizes = {"d_model": d_model, "n_heads": n_heads, "d_k": d_model // n_heads}
        return thing(kinds["SOMATokenInteraction"], **sizes, **weights)

    sizes = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_ff": d_ff, "max_seq_len": longest}
    training = {"learning_rate": 0.01, "decay": np.float64(0.5), "betas": (0.9, 0.99), "epochs": np.int64(3)}
    return {
        "config": thing(kinds["SOMALGMConfig"], vocab_size=3000, **sizes, **training, name=None),
        "vocab": {word: i for i, word in enumerate(words)},
        "id_to_token": dict(enumerate(words)),
        "vocab_size": size,
        "embeddings": normal(size, d_model),
        "pos_embeddings": normal(longest, d_model),
        "blocks": [
            thing(
                kinds["SOMASequenceBlock"],
                token_interaction=interaction(),
                W1=normal(d_model, d_ff),
                b1=normal(d_ff),
                W2=normal(d_ff, d_model),
                b2=normal(d_model),
            )
            for _ in range(n_layers)
        ],
        "output_proj": normal(d_model, size),
        "trained": True,
    }


def dumps(saved: Any, protocol: int = 4) -> bytes:
    """The pickle of a model."""
    return pickle.dumps(saved, protocol)


def logits(saved: dict[str, Any], ids: Any) -> Any:
    """The mathematics of the reference, in float64: (T, V)."""

    def norm(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    x = saved["embeddings"][ids] + saved["pos_embeddings"][: len(ids)]
    for block in saved["blocks"]:
        attention = block.token_interaction
        q, k, v = (x @ getattr(attention, name) for name in ("W_q", "W_k", "W_v"))
        heads = []
        for start in range(0, attention.d_model, attention.d_k):
            part = slice(start, start + attention.d_k)
            scores = q[:, part] @ k[:, part].T / np.sqrt(attention.d_k) - 1e9 * np.triu(np.ones((len(ids),) * 2), 1)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        x = norm(x + np.concatenate(heads, -1) @ attention.W_o)
        x = norm(x + np.maximum(0, x @ block.W1 + block.b1) @ block.W2 + block.b2)
    return x @ saved["output_proj"]
