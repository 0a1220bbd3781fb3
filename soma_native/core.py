"""The only import of the C++ core: every module takes `_core` from here, because OpenMP's settings are made first."""

import os
from importlib.machinery import EXTENSION_SUFFIXES

# Rounds that a thread of GNU's OpenMP spins at a barrier before it yields its core. The default of 300,000 makes a
# training step many times slower while other programs use the cores (figures: docs/LOG.md).
_SPINS = "10000"
_OURS = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)  # settings of the user's stay in force

# OpenMP reads the environment once, when it is loaded, so the variable is removed again afterwards.
if _OURS:
    os.environ["GOMP_SPINCOUNT"] = _SPINS
try:
    from soma_native import _core
except ImportError as error:
    if error.name != "soma_native":  # the module exists, but the system cannot load it
        raise
    raise ImportError(
        f"{os.path.dirname(__file__)} has no compiled core for this Python (_core{EXTENSION_SUFFIXES[0]}). Where it is "
        "the source folder, start Python in another folder, or run `make dev`; else install soma-native for this Python"
    ) from None
finally:
    if _OURS:
        del os.environ["GOMP_SPINCOUNT"]

__all__ = ["_core"]
