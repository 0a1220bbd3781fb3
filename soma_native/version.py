"""The version, compiled into the core from pyproject.toml, because importlib.metadata would slow the import."""

from soma_native.core import _core

__all__ = ["__version__"]

__version__ = _core.__version__
