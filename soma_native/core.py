"""The one door to the C++ core: every module takes `_core` from here, so that OpenMP is told its settings before."""

import os
from importlib.machinery import EXTENSION_SUFFIXES

# How often GNU's OpenMP looks at a barrier before it lets the system run something else. Its default, 300,000 rounds,
# makes a training step many times slower while other programs want the cores (docs/LOG.md has the figures).
_SPINS = "10000"
_OURS = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)  # what the user set is left alone

# OpenMP reads its settings when it is loaded, so ours stand in the environment only meanwhile.
if _OURS:
    os.environ["GOMP_SPINCOUNT"] = _SPINS
try:
    from soma_native import _core
except ImportError as error:
    if error.name != "soma_native":  # it is there, and the system cannot load it
        raise
    raise ImportError(
        f"{os.path.dirname(__file__)} has no compiled core for this Python (_core{EXTENSION_SUFFIXES[0]}). Where it is "
        "the source folder, start Python in another folder, or run `make dev`; else install soma-native for this Python"
    ) from None
finally:
    if _OURS:
        del os.environ["GOMP_SPINCOUNT"]

__all__ = ["_core"]
