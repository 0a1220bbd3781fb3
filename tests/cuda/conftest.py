"""The tests of the CUDA kernels run where `make test-cuda` built the emulation, and are not collected elsewhere."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("SOMA_CUDA_EMULATED") else ["test_*.py"]
