"""Training settings: those of the classic presets, and what a planned run takes against over-fitting.

The sizes of the models are in model/presets.py; planning/plan.py chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

VAL_FRACTION = 0.1  # the command's default of the part that is held out for validation


class Recipe(NamedTuple):
    """The tokenizer and the training settings of a classic preset.

    Attributes:
        tokenizer: kind of the tokenizer.
        words, merges: largest vocabulary of kind "word" and of kind "bpe"; the other kinds have no limit.
        batch_size, lr: as in `TrainConfig`.
        epochs: times through the texts.
        others: more settings of `TrainConfig`; "steps" takes the place of epochs.
    """

    tokenizer: str
    words: int
    merges: int
    batch_size: int
    lr: float
    epochs: int = 20
    others: Mapping[str, Any] = MappingProxyType({})

    def settings(self) -> dict[str, Any]:
        """All settings of `TrainConfig`."""
        length = {} if "steps" in self.others else {"epochs": self.epochs}
        return {"batch_size": self.batch_size, "lr": self.lr, **length, **self.others}

    def vocab_size(self, kind: str) -> int | None:
        """Largest vocabulary of a tokenizer of this kind; None means no limit."""
        return {"word": self.words, "bpe": self.merges}.get(kind)


RECIPES = {
    # On its 400 sentences, batches of 32 with learning rates of 4e-3 to 8e-3 end at losses of 0.27 to 0.21; seeds
    # differ by 0.01. Half the batch needs 3e-3 and an eighth more time, and ends no lower.
    "showcase": Recipe("word", 3000, 1024, 32, 5e-3),
    "improved": Recipe("word", 8000, 8000, 16, 1e-3),
    "full": Recipe("word", 60000, 60000, 4, 3e-4),
    # nanoGPT's settings. The others follow the same rule: smaller learning rates for wider models.
    "nano-cpu": Recipe("char", 3000, 3000, 12, 1e-3),
    "baby": Recipe("char", 3000, 3000, 16, 1e-3),
    "gpt2-124m": Recipe("word", 50257, 50257, 4, 3e-4),
}

# By name, with the preset that each was made for.
CLASSICS = {
    "nanogpt": (
        "nano-cpu",
        Recipe("char", 3000, 3000, 12, 1e-3, others={
            "steps": 2000, "betas": (0.9, 0.99), "min_lr": 1e-4, "sampling": "random",
        }),
    ),
    "soma": ("showcase", RECIPES["showcase"]),
}  # fmt: skip


def regularisation(epochs: float, steps: int, parameters_a_token: float) -> dict[str, Any]:
    """The settings of `TrainConfig` against over-fitting, for a text that is seen so many times in so many steps.

    Measured on tinyshakespeare's characters (docs/LOG.md): with 1.5 epochs little decay is best, and with five epochs
    dropout does not pay yet. A model of fewer parameters than the text has tokens over-fits later. An average over a
    fortieth of the steps gains 2% before the rate has fallen, when a run may be stopped, and costs 0.1% at its end.
    """
    average = {"ema": round(min(_LONGEST_AVERAGE, 1 - 40 / steps), 4)} if steps >= _AVERAGED_FROM else {}
    crowded = epochs * min(1.0, parameters_a_token)
    return average | next(settings for most, settings in _REGULARISATION if crowded <= most)


_AVERAGED_FROM = 100  # steps; a run with teachers is no such run
_LONGEST_AVERAGE = 0.995
_REGULARISATION: tuple[tuple[float, dict[str, Any]], ...] = (
    (2.0, {"weight_decay": 0.1}),
    (6.0, {"weight_decay": 0.3}),
    (15.0, {"weight_decay": 0.5, "dropout": 0.1}),
    (40.0, {"weight_decay": 1.0, "dropout": 0.2}),
    (math.inf, {"weight_decay": 1.0, "dropout": 0.3, "token_mask": 0.1}),
)
