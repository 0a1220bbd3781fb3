"""The warning about texts that kind "word" does not suit: it drops marks, and some scripts have no spaces."""

from __future__ import annotations

from soma_native.core import _core

_MUCH = 0.01  # of the letters and marks of the texts


def loss_warning(losses: _core.WordLosses, unknown: float = 0.0) -> str | None:
    """The warning about the losses of kind "word"; None where they are small.

    Args:
        losses: the counts of the texts.
        unknown: the share of their words that become <UNK>, if it is known and no other warning names it.

    >>> losses = _core.WordLosses()
    >>> losses.add(["nai\u0308f de\u0301ja\u0300"], 0)
    >>> print(loss_warning(losses).partition(";")[0])
    kind word does not suit these texts: it drops 27.3% of their letters and marks
    """
    letters = max(losses.letters, 1)
    dropped = losses.marks / (letters + losses.marks)
    found = []
    if dropped > _MUCH:
        found.append(
            f"it drops {dropped:.1%} of their letters and marks; combining marks are in no word, and "
            f"{losses.broken!r} is read as {losses.read!r}"
        )
    if losses.unspaced / letters > _MUCH:
        clause = "" if found else f", and a whole clause such as {losses.clause!r} counts as one word"
        found.append(f"{losses.unspaced / letters:.1%} of their letters are of scripts without spaces{clause}")
    if not found:
        return None
    if unknown:
        found.append(f"{unknown:.1%} of the words become <UNK>")
    return f"kind word does not suit these texts: {'; '.join(found)}. A tokenizer of kind bpe keeps all of a text"
