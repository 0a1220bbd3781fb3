"""Errors of the command that a user can mend, and how a message is made one line."""

from __future__ import annotations

PROGRAM = "soma-native"


class CommandError(Exception):
    """An error that a user can mend. The command prints its text as one line; exit status 1."""


class UsageError(Exception):
    """Arguments that do not go together. The command prints its text with a hint at --help; exit status 2."""


def one_line(text: str) -> str:
    """`text` without line breaks, so that an error is one line."""
    return " ".join(text.split())
