"""The levels of a target. Flags of the environment, as CXXFLAGS=-march=native, do not reach the code of the core."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
COMPILER = os.environ.get("CXX") or next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "c++")

# Flags that people or distributions set: instruction sets beyond a level, alone or by a -march, and fast math.
FLAGS = "-march=x86-64-v4 -mtune=skylake-avx512 -mavx512f -mavx512vl -mfma -mbmi2 -mlzcnt -ffast-math"
UNITS = ("kernels/isa_sse.cpp", "kernels/isa_avx2.cpp", "base/random.cpp")


def is_x86() -> bool:
    if os.name == "nt" or not all(shutil.which(tool, path=PATH) for tool in (COMPILER, "cmake", "objdump")):
        return False
    target = subprocess.run([COMPILER, "-dumpmachine"], capture_output=True, text=True).stdout
    return target.startswith(("x86_64", "amd64"))


needs_x86_build = pytest.mark.skipif(not is_x86(), reason="needs cmake, objdump and a compiler for x86-64")


def configured(folder: Path, flags: str, *options: str) -> dict[str, list[str]]:
    """The compile command of each file of the core, with these flags in the environment."""
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=PATH) else []
    options = ("-DSOMA_BUILD_PYTHON=OFF", "-DSOMA_UNITY=OFF", *options)
    done = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(folder), *generator, *options],
        env={**os.environ, "PATH": PATH, "CXX": COMPILER, "CXXFLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((folder / "compile_commands.json").read_text())
    return {Path(e["file"]).relative_to(ROOT / "src/cpp").as_posix(): shlex.split(e["command"]) for e in entries}


def instructions(commands: dict[str, list[str]], folder: Path) -> dict[str, str]:
    """The disassembly of each unit, compiled by its command."""
    jobs = {}
    for unit in UNITS:
        command = commands[unit]
        command[command.index("-o") + 1] = str(folder / f"{Path(unit).stem}.o")
        jobs[unit] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = {}
    for unit, job in jobs.items():
        output, _ = job.communicate()
        assert job.returncode == 0, output
        dump = ["objdump", "-d", "--no-show-raw-insn", str(folder / f"{Path(unit).stem}.o")]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
        found[unit] = text.split("\n", 3)[3]  # without the file's name
    return found


@needs_x86_build
def test_flags_of_the_environment_change_no_instruction(tmp_path: Path) -> None:
    plain = instructions(configured(tmp_path / "plain", ""), tmp_path / "plain")
    flagged = instructions(configured(tmp_path / "flagged", FLAGS), tmp_path / "flagged")
    assert all(len(text.splitlines()) > 100 for text in plain.values())
    assert [unit for unit in UNITS if plain[unit] != flagged[unit]] == []
    evex = re.compile(r"%zmm|\{%k\d|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])")
    assert [unit for unit in UNITS if evex.search(flagged[unit])] == []
    wide = re.compile(r"%ymm|\t(?:v\w+|sarx|shlx|shrx|mulx|rorx|lzcnt|tzcnt|popcnt|andn|blsr) ")
    assert {unit for unit in UNITS if wide.search(flagged[unit])} == {"kernels/isa_avx2.cpp"}


# For each target that can be compiled for here: flags of the environment, what undoes them, a level and its flag.
RESETS = {"x86-64": (FLAGS, ("-march=x86-64", "-mno-sse3"), "kernels/isa_avx2.cpp", "-mavx2")}
if shutil.which("aarch64-linux-gnu-g++"):
    undone = ("-march=armv8-a", "-mtune=generic")
    RESETS["aarch64"] = (
        "-march=armv8.4-a+sve -mtune=cortex-a76",
        undone,
        "kernels/isa_neon_bf16.cpp",
        "-march=armv8.2-a+bf16",
    )


@needs_x86_build
@pytest.mark.parametrize("target", RESETS)
def test_the_reset_stands_after_the_environment_and_before_a_level(target: str, tmp_path: Path) -> None:
    """In every command of the core: -march of the oldest processor resets the flags before it."""
    flags, (reset, also), unit, flag = RESETS[target]
    given = flags.split()[:2]
    crossing = [] if target == "x86-64" else [f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/{target}-linux-gnu.cmake"]
    commands = configured(tmp_path, flags, *crossing)
    assert len(commands) > len(UNITS)
    for name, command in commands.items():
        assert command.index(given[0]) < command.index(reset), name
        assert not {*given} & {*command[command.index(reset) :]}, name
    assert commands[unit].index(also) < commands[unit].index(flag)


# What is compiled for on what machine, and the levels there.
X86_LEVELS = "scalar sse avx2 avx512 avx512_bf16"
TARGETS = {
    "Linux": ({"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "x86_64"}, f"{X86_LEVELS} amx"),
    "Linux on Arm": ({"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64"}, "scalar neon neon_bf16"),
    "another": ({"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "riscv64"}, "scalar"),
    "Mac with Arm": ({"APPLE": "1", "CMAKE_SYSTEM_PROCESSOR": "arm64"}, "scalar neon neon_bf16"),
    "on it for Intel": (
        {"APPLE": "1", "CMAKE_SYSTEM_PROCESSOR": "arm64", "CMAKE_OSX_ARCHITECTURES": "x86_64"},
        X86_LEVELS,
    ),
    "on Intel for it": (
        {"APPLE": "1", "CMAKE_SYSTEM_PROCESSOR": "x86_64", "CMAKE_OSX_ARCHITECTURES": "arm64"},
        "scalar neon neon_bf16",
    ),
    "Windows": ({"MSVC": "1", "MSVC_CXX_ARCHITECTURE_ID": "x64"}, "scalar sse avx2 avx512"),
    "on it for Arm": (
        {"MSVC": "1", "MSVC_CXX_ARCHITECTURE_ID": "ARM64", "CMAKE_SYSTEM_PROCESSOR": "AMD64"},
        "scalar neon",
    ),
}


def levels(folder: Path, target: dict[str, str]) -> str:
    """What cmake/isa.cmake says of a target: the levels, or the error."""
    names = ("APPLE", "MSVC", "CMAKE_SYSTEM_NAME", "CMAKE_SYSTEM_PROCESSOR")
    lines = [f'set({name} "{value}")' for name, value in {**dict.fromkeys(names, ""), **target}.items()]
    script = folder / "levels.cmake"
    script.write_text("\n".join([*lines, f'include("{ROOT}/cmake/isa.cmake")', 'message("${SOMA_LEVELS}")']))
    done = subprocess.run(["cmake", "-P", script], env={**os.environ, "PATH": PATH}, capture_output=True, text=True)
    return " ".join(done.stderr.replace(";", " ").split())


@needs_x86_build
@pytest.mark.parametrize("name", TARGETS)
def test_the_levels_are_those_of_the_target_and_not_of_the_machine(name: str, tmp_path: Path) -> None:
    target, expected = TARGETS[name]
    assert levels(tmp_path, target) == expected


@needs_x86_build
def test_a_build_for_two_architectures_at_once_is_refused(tmp_path: Path) -> None:
    both = {"APPLE": "1", "CMAKE_SYSTEM_PROCESSOR": "arm64", "CMAKE_OSX_ARCHITECTURES": "arm64;x86_64"}
    assert "cannot build for 'arm64 x86_64' at once: name one architecture" in levels(tmp_path, both)
