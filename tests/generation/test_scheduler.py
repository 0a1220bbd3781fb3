"""What the scheduler of an engine asks of its decoder."""

from __future__ import annotations

from typing import Any

from test_engine import make

import soma_native as soma


class Recorder:
    """A decoder that remembers how many steps each call may take."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.steps: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def grow(self, *arguments: Any) -> Any:
        self.steps.append(arguments[-1])
        return self.decoder.grow(*arguments)


def test_the_first_token_comes_alone() -> None:
    """Nobody waits for a first piece until several tokens are there."""
    model, tok = make()
    with soma.Engine(model, tok) as engine:
        scheduler = engine._thread._scheduler
        scheduler._decoder = recorder = Recorder(scheduler._decoder)
        engine.submit("The cat", max_tokens=5, seed=1).result()
    assert recorder.steps[0] == 1 and recorder.steps[1] > 1
