"""A training step taken apart: what each operation costs, and how near it comes to what this machine can do.

The share of a ceiling is that of a roofline (Williams, Waterman and Patterson 2009): the least time that an operation's
arithmetic or its bytes take at the measured ceilings, whichever is longer, by the time it took. Bytes are compared with a
loop that streams over as many bytes again and again, so what may stay in a cache is held against that cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import soma_native
from soma_native import _core
from soma_native.model import Model
from soma_native.optimizer import AdamW
from soma_native.workloads import Workload, training_batches

WARM_UP = 3  # steps until every buffer exists and every page has been touched
LEAST_STEPS = 5


class Stepper:
    """Training steps of a workload, one at a time: forward, backward, clipping, AdamW."""

    def __init__(self, workload: Workload, precision: str = "auto") -> None:
        self.workload = workload
        self.model = Model(workload.config, precision=precision)
        self._optimizer = AdamW(self.model, lr=1e-3)
        self._batches = training_batches(workload, 8)
        self._done = 0

    def step(self) -> float:
        """Take one step; its seconds."""
        ids, targets = self._batches[self._done % len(self._batches)]
        self._done += 1
        begin = time.perf_counter()
        self.model.loss_and_grad(ids, targets)
        self._optimizer.step()
        return time.perf_counter() - begin

    def warm_up(self, seconds: float) -> int:
        """Take the first steps; how many more fit into `seconds`."""
        probe = [self.step() for _ in range(WARM_UP)][-1]
        return max(LEAST_STEPS, round(seconds / probe))


def time_steps(stepper: Stepper, steps: int | None = None, seconds: float = 3.0) -> list[float]:
    """Seconds of each of `steps` steps (None: as many as fit into `seconds`), after some to warm up."""
    fitting = stepper.warm_up(seconds)
    return [stepper.step() for _ in range(steps or fitting)]


@dataclass
class Op:
    """One operation of one shape in a mean step; the amounts are those of ops/profiled_ops.h."""

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
    bound: str = ""  # the ceiling that binds: "fma", "bf16", "memory" or "cache"

    def add(self, record: _core.OpRecord, weight: float) -> None:
        """Add a record that counts `weight` times."""
        for name in ("calls", "seconds", "products", "flops", "read", "written"):
            setattr(self, name, getattr(self, name) + weight * getattr(record, name))

    def hold_against(self, ceilings: _core.Ceilings, precision: str) -> None:
        """Find the least time and what binds it."""
        # Products rounded to bfloat16 may as well be computed by single-precision multiply-adds.
        fast = "bf16" if precision == "bfloat16" and ceilings.bf16 > ceilings.fma else "fma"
        arithmetic = self.products / getattr(ceilings, fast) + self.flops / ceilings.fma
        largest = ceilings.bandwidths[-1]
        moved = self.read + self.written
        if not self.calls or not moved:
            self.least_seconds, self.bound = arithmetic, fast
            return
        at = min(ceilings.bandwidths, key=lambda b: abs(math.log(b.bytes * self.calls / moved)))
        traffic = moved / (at.update if self.written > 0.1 * self.read else at.read)
        if arithmetic >= traffic:
            self.bound = fast if self.products else "fma"
        else:
            self.bound = "memory" if at.bytes == largest.bytes else "cache"
        self.least_seconds = max(arithmetic, traffic)


@dataclass
class Profile:
    """The mean of the faster half of some steps: those that other programs disturbed least."""

    workload: Workload
    precision: str
    isa: str
    threads: int
    steps: int
    seconds: float  # of a step
    ceilings: _core.Ceilings
    ops: list[Op]

    @property
    def outside(self) -> float:
        """Seconds of a step in no operation."""
        return self.seconds - sum(op.seconds for op in self.ops)

    def groups(self) -> list[tuple[str, float, float]]:
        """(group, seconds, share of the ceilings) by falling time."""
        names = dict.fromkeys(op.group for op in self.ops)
        sums = []
        for name in names:
            inside = [op for op in self.ops if op.group == name]
            seconds = sum(op.seconds for op in inside)
            sums.append((name, seconds, sum(op.least_seconds for op in inside) / seconds))
        return sorted(sums, key=lambda item: -item[1])


def profile_steps(stepper: Stepper, steps: int | None = None, seconds: float = 4.0) -> Profile:
    """Measure the ceilings, then `steps` steps (None: as many as fit into `seconds`) op by op."""
    model = stepper.model
    ceilings = _core.measure_ceilings()
    fitting = stepper.warm_up(seconds)
    taken: list[tuple[float, list[_core.OpRecord]]] = []
    model._core.profile(True)
    try:
        for _ in range(steps or fitting):
            taken.append((stepper.step(), model._core.take_profile()))
    finally:
        model._core.profile(False)
    taken.sort(key=lambda step: step[0])
    kept = taken[: (len(taken) + 1) // 2]
    return Profile(
        stepper.workload,
        model.precision,
        soma_native.active_isa(),
        soma_native.get_num_threads(),
        len(kept),
        sum(took for took, _ in kept) / len(kept),
        ceilings,
        _mean_ops([records for _, records in kept], ceilings, model.precision),
    )


def _mean_ops(steps: list[list[_core.OpRecord]], ceilings: _core.Ceilings, precision: str) -> list[Op]:
    ops: dict[Any, Op] = {}
    for record in (record for records in steps for record in records):
        shape = tuple(size for size in record.shape if size)
        op = ops.setdefault((record.op, shape), Op(record.op, record.group, shape))
        op.add(record, 1 / len(steps))
    for op in ops.values():
        op.hold_against(ceilings, precision)
    return sorted(ops.values(), key=lambda op: -op.seconds)


def verdict(profile: Profile, groups: Iterable[tuple[str, float, float]] | None = None) -> str:
    """One sentence on what bounds the step."""
    bounds = {}
    parts = []
    for name, seconds, share in groups or profile.groups():
        inside = [op for op in profile.ops if op.group == name]
        weights: dict[str, float] = {}
        for op in inside:
            weights[op.bound] = weights.get(op.bound, 0.0) + op.least_seconds
        bounds[name] = max(weights, key=lambda bound: weights[bound])
        if seconds >= 0.02 * profile.seconds:
            where = {"fma": "FMA", "bf16": "bf16"}.get(bounds[name], f"{bounds[name]}-bandwidth")
            parts.append(f"{seconds / profile.seconds:.0%} in {name} at {share:.0%} of the {where} ceiling")
    parts.append(f"{profile.outside / profile.seconds:.0%} outside ops")
    return "; ".join(parts)
