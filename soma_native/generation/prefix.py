"""How much two lists of tokens have in common at their beginning, and what of it a row of the decoder may keep."""

from __future__ import annotations

LEAST_PIECE = 16  # tokens: a shorter piece of a prompt would not be rounded as the whole prompt is


def kept_length(held: list[int], context: list[int], rounds: bool) -> int:
    """How much of what a row holds may stay for another context: the last token of this is read in any case.

    With `rounds`, tokens of a context below `LEAST_PIECE` are read in another way than those of a longer one.
    """
    length = shared_length(held, context[:-1])
    return 0 if rounds and length < LEAST_PIECE else length


def shared_length(a: list[int], b: list[int]) -> int:
    """The length of the longest common beginning. Slices are compared, at the speed of C."""
    least, most = 0, min(len(a), len(b))
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if a[least:middle] == b[least:middle] else (least, middle - 1)
    return least
