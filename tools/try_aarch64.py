"""Builds the wheel for aarch64 on x86-64 Linux, installs it into an empty environment, and tries it under qemu.

Debian's arm64 packages and PyPI's aarch64 wheels are unpacked below build/; nothing is installed into the system. Exit
status 75: they cannot be had. `make test-aarch64` installs what it needs, but for g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from debian import Debian

ROOT = Path(__file__).resolve().parent.parent
VERSION = (3, 11)  # of the Python of Debian 12; the build needs the same version here
SUFFIX = ".cpython-311-aarch64-linux-gnu.so"
PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "libexpat1", "libffi8", "zlib1g", "libbz2-1.0", "liblzma5"),
    *("libssl3", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "libpython3.11-dev"),
)
PROCESSORS = (("neoverse-n1", "neon"), ("max", "neon_bf16"))  # and the level that each must choose
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
# The best level of a processor must be a given one, and the wheel must work there.
SMOKE = f"""
import runpy, soma_native as soma
assert soma.active_isa() == "{{isa}}", soma.available_isas()
runpy.run_path({str(ROOT / "tools" / "smoke.py")!r}, run_name="__main__")
"""
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


class Emulated:
    """An arm64 Python with the packages of some folders, on an emulated processor."""

    def __init__(self, system: Path, *packages: Path) -> None:
        self.system, self.packages = system, packages

    def run(self, cpu: str, *arguments: str) -> None:
        """Run the Python on that processor."""
        began = time.monotonic()
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOMA_"))},
            "PYTHONPATH": os.pathsep.join(map(str, self.packages)),
        }
        python = ["qemu-aarch64", "-cpu", cpu, "-L", str(self.system), str(self.system / "usr/bin/python3.11")]
        print(f"\n{cpu}: {' '.join(arguments)[:99].strip()}", flush=True)
        subprocess.run([*python, *arguments], cwd=ROOT / "build", env=variables, check=True)
        print(f"{time.monotonic() - began:.0f} s", flush=True)


def fetch(system: Path) -> None:
    """Unpack the arm64 packages."""
    if (system / "complete").exists():
        return
    Debian(system.parent / "apt", "arm64").unpack(system, *PACKAGES)
    headers = system / "usr/include"  # Debian's pyconfig.h asks for that of its architecture by a path of the system
    shutil.copy(headers / "aarch64-linux-gnu/python3.11/pyconfig.h", headers / "python3.11")
    (system / "complete").touch()


def pip(*arguments: str | Path, **variables: str) -> None:
    """Run pip of this Python, with further variables of the environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True)


def install(environment: Path, *packages: str | Path) -> None:
    """Install wheels for aarch64, and what they need, into a folder."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)]
    target = ("--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:", "--target", environment)
    pip("install", "--quiet", *platforms, *target, *packages)


def build_wheel(system: Path, build: Path, out: Path) -> Path:
    """Cross-compile the wheel in the folder `build`, and put libgomp into it; the finished wheel is in `out`.

    Without isolation, since pip would fetch the tools of the build for the other processor.
    """
    defines = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake/aarch64-linux-gnu.cmake",
        "Python_INCLUDE_DIR": system / "usr/include/python3.11",
        "PYTHON_MODULE_EXTENSION": SUFFIX,
        "SOMA_BUILD_PYTHON": "ON",
        "SOMA_WERROR": "ON",
        "SOMA_BUILD_SELFCHECK": "ON",
    }
    raw = out / "raw"
    pip(
        *("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", raw, "-C", f"build-dir={build}"),
        *(word for name, value in defines.items() for word in ("-C", f"cmake.define.{name}={value}")),
        ROOT,
        _PYTHON_HOST_PLATFORM="linux-aarch64",
        SETUPTOOLS_EXT_SUFFIX=SUFFIX,
    )
    (wheel,) = raw.glob("*.whl")
    variables = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(system / "usr/lib/aarch64-linux-gnu"),
    }
    subprocess.run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", out, wheel], env=variables, check=True)
    (finished,) = out.glob("*.whl")
    return finished


def main() -> int:
    """Fetch, build, install and try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "aarch64", help="the folder to compile in")
    build: Path = parser.parse_args().build.resolve()
    if sys.version_info[:2] != VERSION:
        print("skipped: the arm64 Python is 3.11, and the wheel must be built by the same version")
        return CANNOT_BE_HAD
    place = ROOT / "build" / "aarch64-python"
    system, environment, tests, out = (place / name for name in ("system", "environment", "tests", "wheels"))
    try:
        fetch(system)
        if not tests.exists():
            install(tests, "numpy", "safetensors", "rich", "pytest", "hypothesis")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: {error}")
        return CANNOT_BE_HAD
    for folder in (environment, out):
        shutil.rmtree(folder, ignore_errors=True)
    wheel = build_wheel(system, build, out)
    install(environment, wheel)
    stranger, tested = Emulated(system, environment), Emulated(system, environment, tests)
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-k", CHOSEN)
    for cpu, isa in PROCESSORS:
        stranger.run(cpu, "-c", SMOKE.format(isa=isa))
    tested.run("max", *pytest, *(str(ROOT / test) for test in TESTS))  # on all its levels, which the older has too
    stranger.run("max", "-c", SHOWCASE)
    print(f"\nbuilt and tried: {wheel}, {wheel.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
