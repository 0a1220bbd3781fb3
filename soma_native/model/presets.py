"""The named model sizes, as fields of a ModelConfig. Their training settings are in training/recipes.py."""

from __future__ import annotations

from typing import Any

_FIELDS = ("block", "vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
_TABLE = (
    # name        block   vocab  d_model  layers  heads  d_ff  context
    ("showcase", "soma", 576, 128, 3, 4, 512, 256),
    ("improved", "soma", 8000, 256, 4, 4, 1024, 512),
    ("full", "soma", 60000, 768, 12, 12, 3072, 1024),
    ("nano-cpu", "gpt2", 65, 128, 4, 4, 512, 64),
    ("baby", "gpt2", 65, 384, 6, 6, 1536, 256),
    ("gpt2-124m", "gpt2", 50257, 768, 12, 12, 3072, 1024),
    ("1m", "llama", 1024, 128, 4, 4, 352, 256),
    ("5m", "llama", 1024, 256, 6, 4, 704, 256),
    ("10m", "llama", 1024, 384, 6, 6, 1024, 256),
    ("30m", "llama", 8192, 512, 8, 8, 1408, 512),
    ("124m", "llama", 50257, 768, 12, 12, 2048, 1024),
)
PRESETS: dict[str, dict[str, Any]] = {name: dict(zip(_FIELDS, sizes, strict=True)) for name, *sizes in _TABLE}
for _name, _tied in {"1m": False, "5m": False, "10m": False, "30m": True, "124m": True}.items():
    PRESETS[_name] |= {"qk_norm": True, "tied_head": _tied}

# The tokenizer gives the size of the vocabulary. These presets have an upper limit.
LARGEST_VOCAB = {"improved": 8000, "full": 60000}
