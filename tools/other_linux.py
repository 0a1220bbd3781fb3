"""What try_aarch64.py and try_musl.py share: a wheel for another Linux, compiled here, installed by pip, and tried."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = (3, 11)  # of the Python of Debian 12; the build needs the same version here
CANNOT_BE_HAD = 75  # EX_TEMPFAIL

# Kernels against the reference, gradients of all blocks, and the same bits on any number of threads. None has children.
TESTS = (
    "tests/kernels/test_kernels.py::test_products_of_odd_sizes",
    "tests/kernels/test_kernels.py::test_operands_are_rounded_to_the_nearest_bfloat16",
    "tests/kernels/test_kernels.py::test_products_are_the_same_bits_on_any_number_of_threads",
    "tests/kernels/test_kernels_rows.py::test_norm",
    "tests/kernels/test_kernels_rows.py::test_gelu",
    "tests/kernels/test_kernels_rows.py::test_attention",
    "tests/kernels/test_decode_kernels.py::test_products",
    "tests/kernels/test_decode_kernels.py::test_heads_of_odd_sizes",
    "tests/model/test_gradients.py::test_every_parameter",
    "tests/model/test_determinism.py::test_same_bits_twice_and_on_any_number_of_threads",
)
CHOSEN = "not test_every_parameter or (odd and everything) or narrower"  # the other cases are larger
SHOWCASE = """
import sys, tempfile
from soma_native.showcase.showcase import run_showcase
epoch = lambda event: event.trainer.stop() if event.record else None
with tempfile.TemporaryDirectory() as folder:
    report = run_showcase(folder, callbacks=epoch)
(record,) = report["epochs"]
print(report["isa"], report["precision"], "loss of the first epoch:", record["train_loss"])
assert 6.0 < record["train_loss"] < 6.4, "the reference's is 6.2542"
"""


def pip(*arguments: str | Path, **variables: str) -> None:
    """Run pip of this Python, with further variables of the environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True)


def install(environment: Path, platforms: Iterable[str], *packages: str | Path) -> None:
    """Install wheels for any of these platforms, and what they need, into a folder."""
    target = ("--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:", "--target", environment)
    pip("install", "--quiet", *(f"--platform={platform}" for platform in platforms), *target, *packages)


def compile_wheel(build: Path, raw: Path, suffix: str, defines: Mapping[str, object], **variables: str) -> Path:
    """Compile the wheel in the folder `build` into the folder `raw`, for a Python whose modules end with `suffix`.

    Without isolation, since pip would fetch the tools of the build for the other Linux.
    """
    defines = {"PYTHON_MODULE_EXTENSION": suffix, "SOMA_BUILD_PYTHON": "ON", **defines}
    pip(
        *("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", raw, "-C", f"build-dir={build}"),
        *(word for name, value in defines.items() for word in ("-C", f"cmake.define.{name}={value}")),
        ROOT,
        SETUPTOOLS_EXT_SUFFIX=suffix,
        **variables,
    )
    (wheel,) = raw.glob("*.whl")
    return wheel


def variables_of(packages: Iterable[Path]) -> dict[str, str]:
    """The environment of a Python that has the packages of these folders."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOMA_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, packages))}


def pytest_arguments() -> tuple[str, ...]:
    """Of a Python that runs the tests."""
    options = ("-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-k", CHOSEN)
    return ("-m", "pytest", *options, *(str(ROOT / test) for test in TESTS))
