"""Profiles a training step: the time of each operation, and its share of the machine's limits.

The share is that of a roofline model (Williams, Waterman and Patterson 2009). An operation's arithmetic and its bytes
each take a least time at the measured ceilings; the share is the longer of the two divided by the time it took. The
bandwidth is measured by a loop over the same number of bytes, so operands that fit a cache are compared with the cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from soma_native.core import _core
from soma_native.model.model import Model
from soma_native.optim.adamw import AdamW
from soma_native.profiling.workloads import Workload, training_batches

WARM_UP = 3  # steps until every buffer is allocated and every page touched
LEAST_STEPS = 5


class Stepper:
    """Training steps of a workload, one at a time: forward, backward, clipping, AdamW."""

    def __init__(self, workload: Workload, precision: str = "auto", device: str = "cpu") -> None:
        self.workload = workload
        self.model = Model(workload.config, precision=precision, device=device)
        self._optimizer = AdamW(self.model, lr=1e-3)
        self._batches = training_batches(workload, 8)
        self._done = 0

    def step(self) -> float:
        """Take one step. Returns its seconds."""
        ids, targets = self._batches[self._done % len(self._batches)]
        self._done += 1
        begin = time.perf_counter()
        self.model.loss_and_grad(ids, targets)
        self._optimizer.step()
        return time.perf_counter() - begin

    def warm_up(self, seconds: float) -> int:
        """Take the first steps. Returns the number of further steps that fit into `seconds`."""
        probe = [self.step() for _ in range(WARM_UP)][-1]
        return max(LEAST_STEPS, round(seconds / probe))


def time_steps(stepper: Stepper, steps: int | None = None, seconds: float = 3.0) -> list[float]:
    """Seconds of each of `steps` steps (None: as many as fit into `seconds`), after a warm-up."""
    fitting = stepper.warm_up(seconds)
    return [stepper.step() for _ in range(steps or fitting)]


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second of a loop that reads, or updates, the same `bytes` of memory again and again."""

    bytes: int
    read: float
    update: float


@dataclass(frozen=True)
class Ceilings:
    """The limits of a device: of this machine with the instruction set and threads in use, or of a GPU."""

    fma: float  # floating-point operations per second in single precision
    bf16: float  # the same for products of bfloat16, summed in single precision
    bandwidths: tuple[Bandwidth, ...]  # by rising size

    @classmethod
    def measure(cls, device: str = "cpu") -> Ceilings:
        """Measure the ceilings. Takes about a second and 256 MB; on a GPU at most 800 MB there.

        A GPU's are what its copies and its own products reach.
        """
        found = _core.measure_ceilings(device)
        return cls(found.fma, found.bf16, tuple(Bandwidth(b.bytes, b.read, b.update) for b in found.bandwidths))

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each figure, because other programs can only lower a figure."""
        pairs = zip(self.bandwidths, other.bandwidths, strict=True)
        bandwidths = tuple(Bandwidth(a.bytes, max(a.read, b.read), max(a.update, b.update)) for a, b in pairs)
        return Ceilings(max(self.fma, other.fma), max(self.bf16, other.bf16), bandwidths)

    def products(self, precision: str) -> tuple[str, float]:
        """Name and value of the ceiling of matrix products. bfloat16 may be multiplied in single precision too."""
        if precision == "bfloat16" and self.bf16 > self.fma:
            return "bf16", self.bf16
        return "FMA", self.fma

    def traffic(self, size: float, written: bool) -> tuple[str, float]:
        """Name and value of the bandwidth of an operation whose operands have `size` bytes."""
        at = min(self.bandwidths, key=lambda b: abs(math.log(b.bytes / size)))
        return "memory" if at is self.bandwidths[-1] else "cache", at.update if written else at.read


@dataclass
class Op:
    """One operation of one shape in a mean step. ops/profiled_ops.h defines the amounts."""

    op: str
    group: str
    shape: tuple[int, ...]
    calls: float = 0.0
    seconds: float = 0.0
    products: float = 0.0
    flops: float = 0.0
    read: float = 0.0
    written: float = 0.0
    least_seconds: float = 0.0  # at the ceilings
    bound: str = ""  # the ceiling that binds: "FMA", "bf16", "memory" or "cache"

    def add(self, record: _core.OpRecord, weight: float) -> None:
        """Add a record that counts `weight` times."""
        for name in ("calls", "seconds", "products", "flops", "read", "written"):
            setattr(self, name, getattr(self, name) + weight * getattr(record, name))

    def hold_against(self, ceilings: Ceilings, precision: str) -> None:
        """Compute the least time, and the ceiling that sets it."""
        fast, rate = ceilings.products(precision)
        arithmetic = self.products / rate + self.flops / ceilings.fma
        moved = self.read + self.written
        level, bandwidth = ceilings.traffic(moved / self.calls, self.written > 0.1 * self.read)
        if arithmetic >= moved / bandwidth:
            self.least_seconds, self.bound = arithmetic, fast if self.products else "FMA"
        else:
            self.least_seconds, self.bound = moved / bandwidth, level


@dataclass(frozen=True)
class Group:
    """Ops of one kind: their time in a step, their share of the ceilings, and the ceiling that binds most of it."""

    name: str
    seconds: float
    share: float
    bound: str


@dataclass
class Profile:
    """The mean over the faster half of the steps, which other programs disturbed least."""

    workload: Workload
    precision: str
    isa: str
    threads: int
    steps: int
    seconds: float  # of a step
    ceilings: Ceilings
    ops: list[Op]
    device: str = "cpu"

    @property
    def outside(self) -> float:
        """Seconds of a step outside operations."""
        return self.seconds - sum(op.seconds for op in self.ops)

    def groups(self) -> list[Group]:
        """The groups of ops, by falling time."""
        groups = []
        for name in dict.fromkeys(op.group for op in self.ops):
            inside = [op for op in self.ops if op.group == name]
            least: dict[str, float] = {}
            for op in inside:
                least[op.bound] = least.get(op.bound, 0.0) + op.least_seconds
            seconds = sum(op.seconds for op in inside)
            groups.append(Group(name, seconds, sum(least.values()) / seconds, max(least, key=lambda b: least[b])))
        return sorted(groups, key=lambda group: -group.seconds)


def profile_steps(stepper: Stepper, steps: int | None = None, seconds: float = 4.0) -> Profile:
    """Profile `steps` steps (None: as many as fit into `seconds`). Measures the ceilings before and after."""
    model = stepper.model
    fitting = stepper.warm_up(seconds)
    before = Ceilings.measure(model.device)
    taken: list[tuple[float, list[_core.OpRecord]]] = []
    model._core.profile(True)
    try:
        for _ in range(steps or fitting):
            taken.append((stepper.step(), model._core.take_profile()))
    finally:
        model._core.profile(False)
    ceilings = before.best(Ceilings.measure(model.device))
    taken.sort(key=lambda step: step[0])
    kept = taken[: (len(taken) + 1) // 2]
    return Profile(
        stepper.workload,
        model.precision,
        _core.active_isa(),
        _core.get_num_threads(),
        len(kept),
        sum(took for took, _ in kept) / len(kept),
        ceilings,
        mean_ops([records for _, records in kept], ceilings, model.precision),
        model.device,
    )


def mean_ops(steps: Sequence[Iterable[_core.OpRecord]], ceilings: Ceilings, precision: str) -> list[Op]:
    """The ops of a mean step, by falling time."""
    ops: dict[Any, Op] = {}
    for record in (record for records in steps for record in records):
        shape = tuple(size for size in record.shape if size)
        op = ops.setdefault((record.op, shape), Op(record.op, record.group, shape))
        op.add(record, 1 / len(steps))
    for op in ops.values():
        op.hold_against(ceilings, precision)
    return sorted(ops.values(), key=lambda op: -op.seconds)


def verdict(profile: Profile) -> str:
    """One sentence with each group's share of the step and of its ceiling."""
    parts = []
    for group in profile.groups():
        if group.seconds >= 0.02 * profile.seconds:
            limit = group.bound + " bandwidth" * (group.bound in ("cache", "memory"))
            parts.append(f"{group.seconds / profile.seconds:.0%} in {group.name} at {group.share:.0%} of {limit}")
    parts.append(f"{profile.outside / profile.seconds:.0%} outside ops")
    return "; ".join(parts)
