"""Small models for tests of `Engine`."""

from __future__ import annotations

from typing import Any

import soma_native as soma

TEXTS = ["The cat sat on the mat.", "A dog ate the cat's food, and the cat said: no!", "Grüße, 世界 🌍!"]


def make(kind: str = "byte", max_seq_len: int = 64, block: str = "soma", **special: Any) -> tuple[soma.Model, Any]:
    """A random model with large weights, so that some tokens are much likelier than others.

    Bytes and words have no token that ends a text.
    """
    tok = soma.Tokenizer.train(TEXTS, kind=kind, **special)
    config = soma.ModelConfig(
        vocab_size=tok.vocab_size, d_model=16, n_layers=2, n_heads=2, d_ff=32, max_seq_len=max_seq_len, block=block
    )
    model = soma.Model(config, seed=3, precision="float32")
    for name, array in model.parameters().items():
        model.write(name, 20 * array)
    return model, tok
