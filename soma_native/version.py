"""The version: pyproject.toml sets it, the build compiles it in; importlib.metadata would cost a third of an import."""

from soma_native.core import _core

__all__ = ["__version__"]

__version__ = _core.__version__
