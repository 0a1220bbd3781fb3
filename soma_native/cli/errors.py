"""What a user can cause and mend, and how it is said in one line."""

from __future__ import annotations

PROGRAM = "soma-native"


class CommandError(Exception):
    """Something a user can cause and mend; its text is the one line they see."""


class UsageError(Exception):
    """Arguments that do not go together; shown with the usage, exit status 2."""


def one_line(text: str) -> str:
    """`text` without line breaks, so that an error is one line."""
    return " ".join(text.split())
