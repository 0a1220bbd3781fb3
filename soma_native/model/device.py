"""The name of a device, where the user gave one that is not there."""

from __future__ import annotations

import re

from soma_native.errors import ArgumentError, ArgumentTypeError

CUDA_PACKAGE = "soma-native-cuda13"


def checked_device(device: str) -> str:
    """`device`, if models can be on it. It is never replaced by another.

    Raises:
        ArgumentTypeError: it is no text.
        ArgumentError: there is no such device, or what it needs is not installed.
    """
    if not isinstance(device, str):
        raise ArgumentTypeError("device", f"must be a name such as 'cpu', got {type(device).__name__}")
    if re.fullmatch(r"cuda(:\d+)?", device):
        raise ArgumentError(
            "device", f"{device!r} needs the package {CUDA_PACKAGE}, which is not installed: pip install {CUDA_PACKAGE}"
        )
    if device != "cpu":
        raise ArgumentError("device", f"must be 'cpu', 'cuda' or 'cuda:N' for GPU number N, got {device!r}")
    return device
