"""The tests of CUDA run in the emulation that `make test-cuda` built. Those of models also run on a GPU, where
tools/check_gpu.py says so in SOMA_TEST_GPU. They are not collected elsewhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("model", "generation")]  # what their tests share
built = os.environ.get("SOMA_CUDA_EMULATED")
if built:
    os.environ["SOMA_CUDA_LIBRARY"] = str(Path(built) / "libsoma_cuda_emulated.so")
    os.environ["SOMA_CUBLAS"] = str(Path(built) / "libsoma_fake_cublas.so")
    collect_ignore_glob = []
elif os.environ.get("SOMA_TEST_GPU"):
    collect_ignore_glob = ["test_[!c]*.py", "test_cublas.py", "test_cuda_errors.py", "test_cuda_memory.py"]
else:
    collect_ignore_glob = ["test_*.py"]
