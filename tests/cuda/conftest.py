"""The tests of CUDA run where `make test-cuda` built the emulation, and are not collected elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "model"))  # for what its tests share
built = os.environ.get("SOMA_CUDA_EMULATED")
collect_ignore_glob = [] if built else ["test_*.py"]
if built:
    os.environ["SOMA_CUDA_LIBRARY"] = str(Path(built) / "libsoma_cuda_emulated.so")
