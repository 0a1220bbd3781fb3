"""Looks into object files of the levels of Arm: no innermost loop of a product's largest tile may touch the stack.

A spilled sum costs more than a multiplication, and nothing else would show it where only an emulator runs.
"""

from __future__ import annotations

import re
import subprocess
import sys

# Multiply-adds of a loop that is looked at. Smaller tiles have fewer. The level neon widens pairs of bfloat16 in loops
# of 48, which have more values than there are registers.
MULTIPLY_ADDS = range(20, 48)
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(.*)")
BRANCH = re.compile(r"(?:b\.\w+|cbn?z)\s.*?\b([0-9a-f]+) <")


def tile_loops(path: str) -> list[list[str]]:
    """The innermost loops of tiles: from the target of a backward branch to the branch, without another in between."""
    command = ["aarch64-linux-gnu-objdump", "--disassemble", "--demangle", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    loops = []
    for function in text.split("\n\n"):
        if not re.match(r"[0-9a-f]+ <.*::(?:tile<|tile_rows<|square_tile<|square_rows<|gemm_rows_bf16)", function):
            continue
        lines = [match.groups() for match in map(INSTRUCTION.match, function.splitlines()) if match]
        places = {address: place for place, (address, _) in enumerate(lines)}
        last = -1  # the place of the last backward branch
        for place, (_, instruction) in enumerate(lines):
            branch = BRANCH.match(instruction)
            begin = places.get(branch[1], place + 1) if branch else place + 1
            if begin <= place:
                if begin > last:
                    loops.append([instruction for _, instruction in lines[begin : place + 1]])
                last = place
    return loops


def main() -> int:
    """Check the object files that are named; return the exit status."""
    status = 0
    for path in sys.argv[1:]:
        loops = [loop for loop in tile_loops(path) if len(re.findall("f?mla", "\n".join(loop))) in MULTIPLY_ADDS]
        spills = [line for loop in loops for line in loop if "[sp" in line]
        print(f"{path.rsplit('/', 1)[-1]}: {len(loops)} loops of tiles, {len(spills)} accesses to the stack")
        if spills or not loops:
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
