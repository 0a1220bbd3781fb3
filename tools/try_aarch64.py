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
from other_linux import CANNOT_BE_HAD, ROOT, SHOWCASE, VERSION, compile_wheel, install, pytest_arguments, variables_of

SUFFIX = ".cpython-311-aarch64-linux-gnu.so"
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)]
PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "libexpat1", "libffi8", "zlib1g", "libbz2-1.0", "liblzma5"),
    *("libssl3", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "libpython3.11-dev"),
)
PROCESSORS = (("neoverse-n1", "neon"), ("max", "neon_bf16"))  # and the level that each must choose
# The best level of a processor must be a given one, and the wheel must work there.
SMOKE = f"""
import runpy, soma_native as soma
assert soma.active_isa() == "{{isa}}", soma.available_isas()
runpy.run_path({str(ROOT / "tools" / "smoke.py")!r}, run_name="__main__")
"""


class Emulated:
    """An arm64 Python with the packages of some folders, on an emulated processor."""

    def __init__(self, system: Path, *packages: Path) -> None:
        self.system, self.packages = system, packages

    def run(self, cpu: str, *arguments: str) -> None:
        """Run the Python on that processor."""
        began = time.monotonic()
        python = ["qemu-aarch64", "-cpu", cpu, "-L", str(self.system), str(self.system / "usr/bin/python3.11")]
        print(f"\n{cpu}: {' '.join(arguments)[:99].strip()}", flush=True)
        subprocess.run([*python, *arguments], cwd=ROOT / "build", env=variables_of(self.packages), check=True)
        print(f"{time.monotonic() - began:.0f} s", flush=True)


def fetch(system: Path) -> None:
    """Unpack the arm64 packages."""
    if (system / "complete").exists():
        return
    Debian(system.parent / "apt", "arm64").unpack(system, *PACKAGES)
    headers = system / "usr/include"  # Debian's pyconfig.h asks for that of its architecture by a path of the system
    shutil.copy(headers / "aarch64-linux-gnu/python3.11/pyconfig.h", headers / "python3.11")
    (system / "complete").touch()


def build_wheel(system: Path, build: Path, out: Path) -> Path:
    """Cross-compile the wheel in the folder `build`, and put libgomp into it; the finished wheel is in `out`."""
    defines = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake/aarch64-linux-gnu.cmake",
        "Python_INCLUDE_DIR": system / "usr/include/python3.11",
        "SOMA_WERROR": "ON",
        "SOMA_BUILD_SELFCHECK": "ON",
    }
    wheel = compile_wheel(build, out / "raw", SUFFIX, defines, _PYTHON_HOST_PLATFORM="linux-aarch64")
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
            install(tests, PLATFORMS, "numpy", "safetensors", "rich", "pytest", "hypothesis")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: {error}")
        return CANNOT_BE_HAD
    for folder in (environment, out):
        shutil.rmtree(folder, ignore_errors=True)
    wheel = build_wheel(system, build, out)
    install(environment, PLATFORMS, wheel)
    stranger, tested = Emulated(system, environment), Emulated(system, environment, tests)
    for cpu, isa in PROCESSORS:
        stranger.run(cpu, "-c", SMOKE.format(isa=isa))
    tested.run("max", *pytest_arguments())  # on all its levels, which the older has too
    stranger.run("max", "-c", SHOWCASE)
    print(f"\nbuilt and tried: {wheel}, {wheel.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
