"""The emulation of CUDA finds a mistake of each kind, names its place, and lets right kernels pass in every order."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(os.environ["SOMA_CUDA_EMULATED"]) / "soma_cuda_mistakes"
SOURCE = (Path(__file__).parent / "mistakes.cu").read_text(encoding="utf-8").splitlines()
ORDERS = [("forward", 1), ("backward", 1), *(("shuffled", seed) for seed in range(1, 6))]

# What the message says of each mistake. A race may also be seen as a read of what nobody wrote yet.
MESSAGES = {
    "divergent_barrier": "waits for others that have ended or wait elsewhere",
    "two_barriers": "wait for the block at different places",
    "lane_outside_its_mask": "the lane is not in its own mask",
    "value_from_outside_the_mask": r"lane \d+, which is not in the mask",
    "lane_missing": "lane 3 of the mask has ended",
    "masks_differ": "with different masks|lane is not in its own mask",
    "race_in_shared_memory": "a race: |nobody wrote",
    "race_of_rounds": "a race: ",
    "race_in_a_warp": "a race: ",
    "race_of_blocks": r"a race: the thread writes where block \(\d, 0, 0\), thread 0",
    "race_of_a_sum": "a race: ",
    "unwritten_shared_memory": "reads memory that nobody wrote",
    "unwritten_memory": "reads memory that nobody wrote",
    "past_the_end": r"leaves device memory, \d+ bytes past the end of 256 bytes",
    "past_shared_memory": "leaves its array of shared memory",
    "much_shared_memory": "takes 49156 bytes of shared memory",
    "memory_of_the_host": "uses memory of the host",
    "misaligned_load": "access to 8 bytes is not aligned",
    "misaligned_copy": "access to 16 bytes is not aligned",
    "misaligned_row": "access to 16 bytes is not aligned",
    "copy_awaited_too_late": "copy is under way that nobody awaited",
    "copy_of_others_without_a_barrier": "copy is under way that nobody awaited|a race: |nobody wrote",
    "copy_never_awaited": "ends with a copy that it has not awaited",
}
OF_THE_HOST = {
    "host_reads": "the host reads or writes device memory",
    "host_writes_while_a_kernel_waits": "the host reads or writes device memory",
    "copy_past_the_end": "a copy reads outside device memory: 260 bytes",
    "copy_after_release": "a copy reads device memory that was released",
    "released_twice": "was released before",
    "released_before_use": "uses device memory that was released",
    "another_stream_without_an_event": "reads memory that nobody wrote",
}


def run(name: str, order: str, seed: int) -> subprocess.CompletedProcess[str]:
    """One kernel of mistakes.cu in a process of its own, which a mistake ends."""
    return subprocess.run([PROGRAM, name, order, str(seed)], capture_output=True, text=True, timeout=60)


@functools.cache
def lines_of(kernel: str) -> list[int]:
    """The lines with the mistake of a kernel, or of the function it calls."""
    begin = next(n for n, line in enumerate(SOURCE, 1) if re.search(rf"void {kernel}\(", line))
    if called := re.search(r"\{ (\w+)<", SOURCE[begin - 1]):
        return lines_of(called[1])
    found = (n for n in range(begin, len(SOURCE) + 1) if "// mistake" in SOURCE[n - 1])
    return [next(found)]


def test_every_mistake_is_planted_and_listed() -> None:
    listed = subprocess.run([PROGRAM, "list"], capture_output=True, text=True, check=True).stdout.split()
    assert set(listed) == {*MESSAGES, *OF_THE_HOST, "right"}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_mistake_of_a_kernel_is_found_in_every_order(name: str) -> None:
    for order, seed in ORDERS:
        done = run(name, order, seed)
        assert done.returncode < 0, (order, seed, done.stdout)
        assert re.search(f"^CUDA emulation: .*(?:{MESSAGES[name]})", done.stderr), done.stderr
        assert re.search(rf"in kernel .*\b{name}, block \(\d+, 0, 0\), thread \d+\n", done.stderr), done.stderr
        named = {int(line) for line in re.findall(r"mistakes\.cu:(\d+)", done.stderr)}
        assert named & set(lines_of(name)), (lines_of(name), done.stderr)


@pytest.mark.parametrize("name", OF_THE_HOST)
def test_a_mistake_of_the_host_is_found(name: str) -> None:
    for order, seed in ORDERS:
        done = run(name, order, seed)
        assert done.returncode < 0, (order, seed, done.stdout)
        assert OF_THE_HOST[name] in done.stderr


@pytest.mark.parametrize("name", ["right", "host_right"])
def test_what_is_right_passes_in_every_order(name: str) -> None:
    for order, seed in ORDERS:
        done = run(name, order, seed)
        assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", ""), (order, seed)
