"""Devices by their names: a device that can be used, or an error that says what is missing."""

from __future__ import annotations

import re

from soma_native.core import _core
from soma_native.errors import ArgumentError, ArgumentTypeError
from soma_native.system import open_cuda


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
