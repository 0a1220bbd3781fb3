"""`soma-native bench`: times training steps; with --profile, times each operation of a step."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from soma_native.cli.arguments import add_command, add_device, integer
from soma_native.cli.output import print_json, print_table
from soma_native.model.config import PRECISIONS
from soma_native.profiling.profile import Profile, Stepper, profile_steps, time_steps, verdict
from soma_native.profiling.workloads import WORKLOADS
from soma_native.system import active_isa, get_num_threads, set_num_threads

_NOTES = """\
A step is forward, backward, clipping and AdamW on a batch of synthetic text. Stop all other programs first.

With --profile, each op is compared with the limits of this machine, for the instruction set and threads in use. They
are measured before and after: multiply-adds in registers, in single precision (FMA) and in bfloat16, and streaming over
memory of the size of the op's operands. "bound" names the limit that the op meets first, "ceiling" is the share of this
limit that it reaches. Letters after matmul name the transposed operands: nn is forward, nt the gradient of the data, tn
the gradient of the weights (for the output head nt, nn and tn). The shape of a matmul is rows x columns x depth, the
shape of attention batch x length x heads x size. Times are means over the faster half of the steps."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "bench",
        run,
        "time a training step, or with --profile each of its operations",
        "bench --profile nano-cpu --precision bfloat16 --threads 2",
        _NOTES,
    )
    parser.add_argument("workload", metavar="WORKLOAD", choices=list(WORKLOADS), help=", ".join(WORKLOADS))
    parser.add_argument("--profile", action="store_true", help="time, rate and share of this machine's limits per op")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of matrix products (default: auto)")
    add_device(parser)
    parser.add_argument("--threads", type=integer(1, 1024), metavar="N", help="threads (default: the library's)")
    parser.add_argument("--steps", type=integer(1), metavar="N", help="steps to time (default: some seconds of steps)")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = get_num_threads()
    if count is not None:
        set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def run(arguments: argparse.Namespace) -> None:
    """Time or profile the workload, and print the result."""
    with _threads(arguments.threads):
        stepper = Stepper(WORKLOADS[arguments.workload], arguments.precision, arguments.device)
        if arguments.profile:
            _print_profile(profile_steps(stepper, arguments.steps), arguments.json)
        else:
            _print_times(stepper, time_steps(stepper, arguments.steps), arguments.json)


def _print_times(stepper: Any, times: list[float], as_json: bool) -> None:
    median = statistics.median(times)
    result = {
        "workload": stepper.workload.to_dict(),
        "parameters": stepper.model.num_parameters,
        "precision": stepper.model.precision,
        "isa": active_isa(),
        "threads": get_num_threads(),
        "steps": len(times),
        "tokens_per_second": stepper.workload.tokens / median,
        "gflops": stepper.workload.tokens * stepper.workload.flops_per_token / median / 1e9,
        "ms_per_step": {"median": 1e3 * median, "min": 1e3 * min(times), "max": 1e3 * max(times)},
    }
    if as_json:
        print_json(result)
        return
    spread = f"{1e3 * median:,.2f} ({1e3 * min(times):,.2f} to {1e3 * max(times):,.2f})"
    rows = [
        ("tokens/s", f"{result['tokens_per_second']:,.0f}"),
        ("ms per step: median (min to max)", spread),
        ("GFLOP/s", f"{result['gflops']:,.1f}"),
        ("steps", len(times)),
    ]
    print_table(_title(stepper.workload, stepper.model.precision, stepper.model.device), ("measure", "value"), rows)


def _title(workload: Any, precision: str, device: str) -> str:
    batch = f"{workload.name}, {workload.config.block} block, batch {workload.batch} x {workload.seq_len}"
    where = f"{active_isa()}, threads: {get_num_threads()}" if device == "cpu" else device
    return f"{batch}, {precision}, {where}"


def _print_profile(profile: Profile, as_json: bool) -> None:
    if as_json:
        print_json(_document(profile))
        return
    ceilings = profile.ceilings
    memory = ceilings.bandwidths[-1]
    print(_title(profile.workload, profile.precision, profile.device))
    print(
        f"ceilings: FMA {ceilings.fma / 1e9:,.0f} GFLOP/s, bf16 {ceilings.bf16 / 1e9:,.0f} GFLOP/s, memory "
        f"{memory.read / 1e9:.1f} GB/s read, {memory.update / 1e9:.1f} GB/s updated"
    )
    sizes = ", ".join(f"{_bytes(b.bytes)} {b.read / 1e9:.0f}/{b.update / 1e9:.0f}" for b in ceilings.bandwidths)
    print(f"GB/s read/updated over {sizes}\n")
    print_table("", ("op", "shape", "calls", "ms", "share", "GFLOP/s", "GB/s", "ceiling", "bound"), _rows(profile))
    rate = profile.workload.tokens / profile.seconds
    print(f"\n{1e3 * profile.seconds:,.2f} ms a step, {rate:,.0f} tokens/s. {verdict(profile)}.")


def _bytes(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KB"


def _rows(profile: Profile) -> Iterator[tuple[str, ...]]:
    for op in profile.ops:
        yield (
            op.op,
            " x ".join(map(str, op.shape)),
            f"{op.calls:.0f}",
            f"{1e3 * op.seconds:.3f}",
            f"{op.seconds / profile.seconds:.1%}",
            f"{(op.products or op.flops) / op.seconds / 1e9:,.1f}",
            f"{(op.read + op.written) / op.seconds / 1e9:.1f}",
            f"{op.least_seconds / op.seconds:.0%}",
            op.bound,
        )
    outside = f"{1e3 * profile.outside:.3f}", f"{profile.outside / profile.seconds:.1%}"
    yield "outside ops", "", "", *outside, "", "", "", ""


def _document(profile: Profile) -> dict[str, Any]:
    return {**dataclasses.asdict(profile), "outside_seconds": profile.outside, "verdict": verdict(profile)}
