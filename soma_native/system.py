"""What computes on this machine: the instruction set in use, the number of threads, and the GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import SupportsIndex

from soma_native._checks import integer
from soma_native.core import _core
from soma_native.version import __version__

__all__ = ["Gpu", "active_isa", "available_isas", "cuda_driver", "get_num_threads", "gpus", "set_num_threads"]

CUDA_PACKAGE = "soma-native-cuda13"

active_isa, available_isas, get_num_threads = _core.active_isa, _core.available_isas, _core.get_num_threads


def set_num_threads(n: SupportsIndex) -> None:
    """Set the number of threads that compute, 1 to 1024, for all models of this process.

    Raises:
        TypeError: `n` is not an integer.
        ValueError: `n` is out of range.
        RuntimeError: `n` is above 1, and this process was forked from one that had computed in parallel.
    """
    _core.set_num_threads(integer("n", n, 1, 1024))


@dataclass(frozen=True)
class Gpu:
    """A GPU, as its driver describes it.

    Attributes:
        device: its name as a device of models, such as "cuda" or "cuda:1".
        name: of the product.
        memory: all of it, in bytes.
        compute_capability: of the chip, such as "9.0".
    """

    device: str
    name: str
    memory: int
    compute_capability: str


def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, at least one. None of their memory is taken.

    Raises:
        RuntimeError: why there is none: what is not installed, too old, or not there.
    """
    open_cuda()
    try:
        found = _core.gpus()
    except RuntimeError as error:
        raise RuntimeError(f"cannot be used: {error}") from None
    return tuple(
        Gpu(f"cuda:{number}" if number else "cuda", name, memory, f"{capability // 10}.{capability % 10}")
        for number, (name, memory, capability) in enumerate(found)
    )


def cuda_driver() -> str | None:
    """The newest CUDA that the NVIDIA driver knows, such as "13.0"; None without a driver.

    Raises:
        RuntimeError: the library for GPUs is not installed, or not that of this version.
    """
    open_cuda()
    version = _core.gpu_driver()
    return f"{version // 1000}.{version % 1000 // 10}" if version else None


def cuda_products() -> str:
    """What makes large products on GPUs: cuBLASLt with its version, or own kernels, and why.

    Raises:
        RuntimeError: the library for GPUs is not installed, or SOMA_CUBLAS names one that cannot be used.
    """
    open_cuda()
    try:
        return _core.gpu_products()
    except RuntimeError as error:
        raise RuntimeError(f"cannot be used: {error}") from None


def cuda_library() -> str:
    """The path of the library for GPUs.

    Raises:
        RuntimeError: its package is not installed.
    """
    from importlib.metadata import entry_points  # slow to import

    if for_tests := os.environ.get("SOMA_CUDA_LIBRARY"):
        return for_tests
    for entry in entry_points(group="soma_native.backends", name="cuda"):
        return str(entry.load()())
    raise RuntimeError(f"needs the package {CUDA_PACKAGE}, which is not installed: pip install {CUDA_PACKAGE}")


def open_cuda() -> None:
    """Open the library for GPUs. The driver is not asked for anything yet.

    Raises:
        RuntimeError: its package is not installed, or belongs to another version of this one.
    """
    path = cuda_library()
    try:
        _core.open_backend(path)
    except RuntimeError as error:
        raise RuntimeError(
            f"cannot use {path}: {error}. Install one version of both: pip install {CUDA_PACKAGE}=={__version__}"
        ) from None
