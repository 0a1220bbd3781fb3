"""The version, from the installed package's metadata: pyproject.toml is where it is set."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("soma-native")
except PackageNotFoundError:  # an in-tree build that was never installed
    __version__ = "0.0.0"
