"""Runs the command soma-native in this process; the fixture `run` of conftest.py gives it to tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from soma_native.cli.main import main


class Result:
    """Status and output of one command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Status and output of the command with these arguments."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit:
        status = int(exit.code or 0)
    return Result(status, *capsys.readouterr())
