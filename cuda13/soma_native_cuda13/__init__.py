"""Where the library for GPUs lies, for soma_native."""

from pathlib import Path


def library() -> Path:
    """The library that soma_native opens."""
    return Path(__file__).with_name("libsoma_cuda.so")
