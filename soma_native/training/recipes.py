"""How each preset is trained where nothing else is said; the sizes of the models stand in model/presets.py."""

from __future__ import annotations

from typing import NamedTuple

VAL_FRACTION = 0.1  # held out where the command holds out a part


class Recipe(NamedTuple):
    """What goes with a preset.

    Attributes:
        tokenizer: kind of the tokenizer.
        words, merges: most tokens of one of kind "word" and of kind "bpe"; the others take what the text has.
        batch_size, lr: as in `TrainConfig`.
        epochs: times through the texts.
    """

    tokenizer: str
    words: int
    merges: int
    batch_size: int
    lr: float
    epochs: int = 20

    def vocab_size(self, kind: str) -> int | None:
        """Most tokens of a tokenizer of this kind; None where there is no limit."""
        return {"word": self.words, "bpe": self.merges}.get(kind)


RECIPES = {
    # In the middle of what works on its 400 sentences: with batches of 32, learning rates from 4e-3 to 8e-3 end between
    # 0.27 and 0.21, and seeds differ by 0.01. Half the batch needs 3e-3 and ends no lower, in an eighth more time.
    "showcase": Recipe("word", 3000, 1024, 32, 5e-3),
    "improved": Recipe("word", 8000, 8000, 16, 1e-3),
    "full": Recipe("word", 60000, 60000, 4, 3e-4),
    # nanoGPT's own; the others were chosen by the same rule, smaller steps for wider models.
    "nano-cpu": Recipe("char", 3000, 3000, 12, 1e-3),
    "baby": Recipe("char", 3000, 3000, 16, 1e-3),
    "gpt2-124m": Recipe("word", 50257, 50257, 4, 3e-4),
}
