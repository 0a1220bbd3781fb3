"""Devices by their names: the library for GPUs is found and opened, or an error says what is missing."""

from __future__ import annotations

import os
import re

from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.version import __version__

CUDA_PACKAGE = "soma-native-cuda13"


def checked_device(device: str) -> str:
    """`device`, if models can be on it. It is never replaced by another.

    Raises:
        ArgumentTypeError: it is no text.
        ArgumentError: there is no such device, or what it needs is not installed.
    """
    if not isinstance(device, str):
        raise ArgumentTypeError("device", f"must be a name such as 'cpu', got {type(device).__name__}")
    if re.fullmatch(r"cuda(:\d{1,3})?", device):
        try:
            return _find_gpu(device)
        except RuntimeError as error:
            raise ArgumentError("device", f"{device!r} {error}") from None
    if device != "cpu":
        raise ArgumentError("device", f"must be 'cpu', 'cuda' or 'cuda:N' for GPU number N, got {device!r}")
    return device


def _find_gpu(device: str) -> str:
    open_cuda()
    try:
        return _core.find_device(device)
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
