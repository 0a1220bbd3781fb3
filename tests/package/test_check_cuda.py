"""tools/check_cuda.py finds what the machine code of a GPU lacks, and spilled registers, for each chip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_cuda.py"
RIGHT = """
        /*0010*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64], P0 ;  /* 0x00 */
        /*0020*/               @P0 LDSM.16.M88.4 R4, [R8] ;                 /* 0x00 */
        /*0030*/                   LDSM.16.MT88.4 R4, [R8] ;                /* 0x00 */
        /*0040*/              @!P1 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;    /* 0x00 */
"""
SPILLED = RIGHT + "        /*0050*/                   STL.64 [R1], R4 ;                       /* 0x00 */\n"


def check(
    tmp_path: Path, glibc: str = "2.28", glibcxx: str = "3.4.25", **assembly: str
) -> subprocess.CompletedProcess[str]:
    """Runs the tool with a cuobjdump that prints this code, for each chip."""
    program = tmp_path / "cuobjdump"
    text = "".join(f"\nFatbin elf code:\n================\narch = {chip}\n{code}" for chip, code in assembly.items())
    (tmp_path / "assembly").write_text(text)
    program.write_text(f'#!/bin/sh\ncat "{tmp_path}/assembly"\n')
    program.chmod(0o755)
    library = tmp_path / "library"
    library.write_bytes(f"\0GLIBC_2.2.5\0GLIBC_{glibc}\0 GLIBC_2.99\0GLIBCXX_{glibcxx}\0".encode())
    return subprocess.run([sys.executable, TOOL, library, program], capture_output=True, text=True)


def test_right_code_passes(tmp_path: Path) -> None:
    done = check(tmp_path, sm_80=RIGHT, sm_90a=RIGHT + RIGHT)
    assert done.returncode == 0 and done.stdout.count("; right") == 2
    assert done.stdout.splitlines()[-2:] == ["glibc 2.28: right", "glibcxx 3.4.25: right"]
    assert "sm_90a: 2 HMMA.16816.F32.BF16, 2 LDSM.16.M88.4" in done.stdout


@pytest.mark.parametrize(
    ("code", "problem"),
    [(SPILLED, "1 STL.64"), (RIGHT.replace("HMMA", "FFMA"), "no HMMA"), (RIGHT.replace(".BYPASS", ""), "no LDGSTS")],
)
def test_one_chip_that_is_wrong_fails(code: str, problem: str, tmp_path: Path) -> None:
    done = check(tmp_path, sm_80=RIGHT, sm_90a=code)
    assert done.returncode == 1 and problem in done.stdout.splitlines()[-3]


def test_a_library_for_a_newer_system_fails(tmp_path: Path) -> None:
    done = check(tmp_path, "2.34", sm_80=RIGHT)
    assert done.returncode == 1 and done.stdout.splitlines()[-2].startswith("glibc 2.34: too new")
    done = check(tmp_path, glibcxx="3.4.29", sm_80=RIGHT)
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith("glibcxx 3.4.29: too new")


def test_a_library_without_code_fails(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 1 and "no machine code" in done.stdout
