"""The version: pyproject.toml sets it, the build compiles it in; importlib.metadata would cost a third of an import."""

from soma_native._core import __version__

__all__ = ["__version__"]
