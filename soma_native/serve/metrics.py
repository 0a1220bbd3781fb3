"""Counts what the server does, and says it in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# Name after the prefix, kind, help. Labels are given where the value is.
_FAMILIES = (
    ("requests_total", "counter", "Requests that were answered, by path and status."),
    ("requests_in_flight", "gauge", "Requests that are being answered."),
    ("clients_gone_total", "counter", "Requests whose client went away before the answer's end."),
    ("prompt_tokens_total", "counter", "Tokens of prompts that were read."),
    ("generated_tokens_total", "counter", "Tokens that were generated."),
    ("sequences_running", "gauge", "Texts that are being generated."),
    ("sequences_waiting", "gauge", "Texts that wait for their turn."),
    ("request_seconds", "histogram", "Time from a request to the end of its answer."),
    ("first_token_seconds", "histogram", "Time from a request to the first token of its answer."),
)  # fmt: skip

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, gauges and histograms of one server. Used from its event loop alone."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, _Labels], float] = defaultdict(float)
        self._histograms: defaultdict[tuple[str, _Labels], list[float]] = defaultdict(
            lambda: [0.0] * (len(_BOUNDS) + 2)  # below each bound, above all, the sum
        )

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter or gauge."""
        self._values[name, tuple(sorted(labels.items()))] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._values[name, tuple(sorted(labels.items()))] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a time to a histogram."""
        histogram = self._histograms[name, tuple(sorted(labels.items()))]
        histogram[bisect.bisect_left(_BOUNDS, seconds)] += 1
        histogram[-1] += seconds

    def text(self) -> str:
        """All values, as Prometheus reads them."""
        return "".join(f"{line}\n" for family in _FAMILIES for line in self._family(*family))

    def _family(self, name: str, kind: str, help: str) -> Iterator[str]:
        yield f"# HELP soma_{name} {help}"
        yield f"# TYPE soma_{name} {kind}"
        for (of, labels), value in sorted(self._values.items()):
            if of == name:
                yield _sample(name, labels, value)
        for (of, labels), (*counts, total) in sorted(self._histograms.items()):
            if of == name:
                seen = 0.0
                for bound, count in zip((*map(str, _BOUNDS), "+Inf"), counts, strict=True):
                    seen += count
                    yield _sample(f"{name}_bucket", (*labels, ("le", bound)), seen)
                yield _sample(f"{name}_sum", labels, total)
                yield _sample(f"{name}_count", labels, seen)


def _sample(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"soma_{name}{f'{{{said}}}' if said else ''} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
