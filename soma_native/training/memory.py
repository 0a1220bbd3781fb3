"""Memory: what a training run takes, and what is free. Both are compared before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from soma_native.core import _core
from soma_native.model.config import ModelConfig

logger = logging.getLogger("soma_native")

COMFORTABLE = 0.8  # part of the free memory that a run may take without a warning
_FLOAT = 4


def training_memory(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    precision: str,
    optimizer: str = "muon",
    average: bool = False,
    teachers: Iterable[ModelConfig] = (),
    *,
    best: bool = True,
    device: str = "cpu",
    ranks: int = 1,
    first: bool = False,
) -> int:
    """Bytes that a model and its training take; nothing is allocated. The texts are not counted.

    A parameter takes 16 bytes (value, gradient, two moments), and 12 in a matrix of Muon. The rest are the buffers of a
    step, which the core has planned, and an estimate of what its threads take.

    Args:
        config: of the model.
        batch: windows in a micro-batch.
        seq_len: tokens in the longest of them.
        precision: of training steps, "float32" or "bfloat16".
        optimizer: "muon" or "adamw".
        average: whether the weights are averaged.
        teachers: the models whose probabilities are learned from.
        best: whether a copy of the best weights is kept, which lies in the host's memory.
        device: whose memory is meant.
        ranks: that share the moments out, equally as far as this knows. On a GPU only second moments are shared.
        first: whether this is the rank that collects the moments at a save.

    >>> config = ModelConfig(vocab_size=64, d_model=64, n_layers=2, n_heads=2, d_ff=128, max_seq_len=32)
    >>> small, large = (training_memory(config, batch, 32, "float32") for batch in (1, 100))
    >>> small < large
    True
    """
    teachers = tuple(teachers)
    hidden = _core.multiplied_parameters(config.core) - config.vocab_size * config.d_model
    moments = 2 * config.num_parameters - (hidden if optimizer == "muon" else 0)
    floats = _core.training_floats(config.core, precision, optimizer == "muon", batch, seq_len, len(teachers), device)
    if device == "cpu":
        floats -= moments * (ranks - 1) // ranks
        sent = config.num_parameters + config.num_parameters // 16  # updated weights; and of gradients a bucket
        floats += (ranks > 1) * (sent + first * moments)  # which rank 0 gathers at a save
    else:
        floats -= (moments - config.num_parameters) * (ranks - 1) // ranks
    floats += (average + (best and device == "cpu")) * config.num_parameters
    floats += sum(_core.teacher_floats(teacher.core, precision, batch, seq_len, device) for teacher in teachers)
    return _FLOAT * floats


def free_memory(root: Path = Path("/"), device: str = "cpu", *, ranks: int = 1, own: bool = True) -> int | None:
    """Bytes that this process can still take: what the system has, or its cgroup or `ulimit -v` allows, if less.

    Memory of files that were read counts as free, since the system gives it back. Swap does not.

    Args:
        root: the folder in which `proc` and `sys` lie.
        device: whose memory is meant. A GPU's is what its driver says.
        ranks: processes that share what the system and the cgroup have.
        own: whether `ulimit -v` counts, which each process has for itself.

    Returns:
        None where the system does not say, as on any but Linux.
    """
    if (free := _core.free_bytes(device)) is not None:
        return free
    found = [free // ranks for free in (*_of_system(root / "proc/meminfo"), *_of_cgroups(root))]
    found += _of_limit(root / "proc/self/statm") if own else ()
    return max(0, min(found)) if found else None


def require_memory(needed: int, free: int | None, batch: int, seq_len: int, ranks: int = 1) -> None:
    """Compare what a run has yet to take with what is free, in bytes; None is unknown. `ranks` of one machine take it.

    Raises:
        ValueError: less is free. The message says how much, and how to need less.
    """
    if free is None or needed <= COMFORTABLE * free:
        return
    who, fewer = ("training", "") if ranks == 1 else (f"training on {ranks} ranks of one machine", "fewer ranks, ")
    if needed > free:
        raise ValueError(
            f"{who} needs {size_text(needed)} of memory, and {size_text(free)} are free: take {fewer}a smaller batch "
            f"(it has {batch} windows), shorter windows (of {seq_len} tokens), or a smaller model"
        )
    logger.warning(
        "%s needs %s of memory, and %s are free: %sa smaller batch (it has %d windows), shorter windows (of %d "
        "tokens), or a smaller model needs less", who, size_text(needed), size_text(free), fewer, batch, seq_len,
    )  # fmt: skip


def size_text(size: float) -> str:
    """Bytes as a person reads them, in two digits or three."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:.{1 if size < 10 * unit else 0}f} {name}"


def _of_system(file: Path) -> Iterator[int]:
    for line in _lines(file):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) << 10


def _of_limit(file: Path) -> Iterator[int]:
    """What the limit of addresses (ulimit -v) leaves beside those that are taken, with a tenth for stacks and heaps."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            for line in _lines(file):
                yield int(0.9 * (most - int(line.split()[0]) * resource.getpagesize()))
    except (ImportError, AttributeError):  # another system than Unix
        return


def _of_cgroups(root: Path) -> Iterator[int]:
    """What each cgroup between this process and the root allows (v2, and the memory controller of v1)."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            yield from _of_cgroup(place, *(names if controllers else ("memory.max", "memory.current", "inactive_file")))
            if place == base:
                break


def _of_cgroup(folder: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    most, now = (next(_lines(folder / name), "") for name in (limit, used))
    if most.isdecimal() and now.isdecimal():  # a group without a limit says "max", or 2^63 in v1
        stat = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
        yield int(most) - int(now) + int(stat.get(reclaimable, 0))


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file of the system; none where it cannot be read."""
    try:
        yield from file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
