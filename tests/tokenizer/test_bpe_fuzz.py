"""A fixed run of the checks of the fuzzer tests/fuzz/fuzz_tokenizer_json.py, on its seeds and on changes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
from fuzz_tokenizer_json import check, mutate, seeds

SEEDS = seeds()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_files_that_fuzzing_starts_from_are_read(seed: bytes) -> None:
    check(seed)


@pytest.mark.parametrize("part", range(4))
def test_a_changed_file_is_refused_or_read_as_tokenizers_reads_it(part: int) -> None:
    for number in range(150 * part, 150 * (part + 1)):
        check(mutate(SEEDS[number % len(SEEDS)], number))


def test_the_changes_leave_files_that_are_read_and_files_that_are_not() -> None:
    """Else the tests above would check only one of both outcomes."""
    changed = [mutate(SEEDS[-1], number) for number in range(200)]
    assert len({json.dumps(json.loads(data).get("normalizer")) for data in changed}) > 2
    assert sum(data not in SEEDS for data in changed) > 150
