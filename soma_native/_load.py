"""Loads the C++ core, with OpenMP's waiting threads told to give way early."""

import os
from types import ModuleType

# How often GNU's OpenMP looks at a barrier before it lets the system run something else. Its default, 300,000 rounds,
# can make a training step many times slower while other programs want the cores; DESIGN.md has the figures.
_SPINS = "10000"


def load_core() -> ModuleType:
    """Imports ``soma_native._core``. OpenMP reads its settings when it is loaded, so they stand in the environment only
    meanwhile; GOMP_SPINCOUNT or OMP_WAIT_POLICY, where set by the user, are left alone.
    """
    ours = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
    if ours:
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        from soma_native import _core
    finally:
        if ours:
            del os.environ["GOMP_SPINCOUNT"]
    return _core
