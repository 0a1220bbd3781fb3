"""Writes src/cpp/tokenizer/unicode_tables.cpp: the class and the lower case of every code point.

The tables must agree with Hugging Face `tokenizers`, or a saved tokenizer would give other ids there than here. So this
program asks `tokenizers` about every code point. Its regular expressions (Oniguruma) give the classes, its Lowercase
normalizer (Rust's char::to_lowercase) gives the lower case, its step Digits (Rust's char::is_numeric) gives the numbers
that the expressions do not have. The two follow different Unicode versions. Code points that are new in a version show
which, and the file says so.

    python tools/generate_unicode_tables.py            # write
    python tools/generate_unicode_tables.py --check    # exit 1 where the file differs from what would be written
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

TARGET = Path(__file__).resolve().parent.parent / "src" / "cpp" / "tokenizer" / "unicode_tables.cpp"
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]

# The numbers of enum CharClass in unicode.h; a code point in no class is kOther = 0.
CLASSES = [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{N}", r"\s"]
NUMBER, NEW_NUMBER = 7, 9
DOTTED_CAPITAL_I = 0x130  # the one code point whose lower case is two: "i" and U+0307

# A letter, and a capital letter, that are new in the version.
NEW_LETTERS = [("15.0", 0x11F04), ("15.1", 0x2EBF0), ("16.0", 0x1C89), ("17.0", 0xA7CE)]
NEW_CAPITALS = [("14.0", 0x2C2F), ("16.0", 0x1C89), ("17.0", 0xA7CE)]

BLOCK = 128


def members(pattern: str) -> set[int]:
    """The code points that the regular expression matches."""
    mark = "\U0010ffff"  # a noncharacter: in no class
    replace = normalizers.Replace(Regex(pattern), mark)
    found: set[int] = set()
    for start in range(0, len(CODE_POINTS), 4096):
        chunk = CODE_POINTS[start : start + 4096]
        answer = replace.normalize_str("".join(map(chr, chunk)))
        if len(answer) != len(chunk):
            raise SystemExit(f"{pattern}: the replacement changed the length")
        found.update(c for c, a in zip(chunk, answer, strict=True) if a == mark and c != ord(mark))
    return found


def lower_deltas() -> dict[int, int]:
    """Lower case minus code point, for each code point with another lower case."""
    normalizer = normalizers.Lowercase()
    deltas = {}
    for c in CODE_POINTS:
        lower = normalizer.normalize_str(chr(c))
        if len(lower) != 1 and (c, lower) != (DOTTED_CAPITAL_I, "i\u0307"):
            raise SystemExit(f"U+{c:04X} has a lower case of {len(lower)} code points: unicode.h knows only U+0130")
        if lower != chr(c):
            deltas[c] = ord(lower[0]) - c
    return deltas


def digits() -> set[int]:
    """The code points that the step Digits cuts out."""
    split = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str
    found: set[int] = set()
    for start in range(0, len(CODE_POINTS), 4096):  # each behind a letter: what is cut out stands at an odd place
        pieces = split("".join(f"a{chr(c)}" for c in CODE_POINTS[start : start + 4096]))
        found.update(ord(piece) for piece, (begin, end) in pieces if end - begin == 1 and begin % 2)
    return found


def newest(probes: list[tuple[str, int]], known: set[int]) -> str:
    """The newest version whose new code point is known."""
    versions = [version for version, c in probes if c in known]
    if not versions:
        raise SystemExit("older than every Unicode version this script can tell")
    return versions[-1]


def rows(values: list[int], per_row: int = 24) -> str:
    """Comma-separated numbers, in lines."""
    return "\n".join(
        "    " + ", ".join(map(str, values[i : i + per_row])) + "," for i in range(0, len(values), per_row)
    )


def generate() -> str:
    """The text of the file."""
    classes = [0] * 0x110000
    for number, pattern in enumerate(CLASSES, start=1):
        for c in members(pattern):
            if classes[c]:
                raise SystemExit(f"U+{c:04X} is in two classes")
            classes[c] = number
    for c in digits():
        if classes[c] not in (0, NUMBER):
            raise SystemExit(f"U+{c:04X} is a number to Digits and in another class")
        classes[c] = classes[c] or NEW_NUMBER
    deltas = lower_deltas()
    letters = {c for c in CODE_POINTS if 1 <= classes[c] <= 5}

    records: dict[tuple[int, int], int] = {(0, 0): 0}
    per_code_point = [records.setdefault((deltas.get(c, 0), classes[c]), len(records)) for c in range(0x110000)]
    blocks: dict[tuple[int, ...], int] = {}
    index = [
        blocks.setdefault(tuple(per_code_point[start : start + BLOCK]), len(blocks))
        for start in range(0, 0x110000, BLOCK)
    ]
    if len(records) > 256 or len(blocks) > 65535:
        raise SystemExit(f"{len(records)} records in {len(blocks)} blocks do not fit the table types")
    flat = [value for block in blocks for value in block]
    record_rows = "\n".join(f"    {{{delta}, {number}}}," for delta, number in records)
    return f"""\
// The class and the lower case of every code point, in two stages: record = block[index[c / {BLOCK}]][c % {BLOCK}].
// Generated by tools/generate_unicode_tables.py (see there for the source); do not edit.
// Classes: Unicode {newest(NEW_LETTERS, letters)}. Lower case: Unicode {newest(NEW_CAPITALS, set(deltas))}.

#include "tokenizer/unicode.h"

// clang-format off
namespace soma {{

const char kUnicodeClassesVersion[] = "{newest(NEW_LETTERS, letters)}";
const char kUnicodeLowerVersion[] = "{newest(NEW_CAPITALS, set(deltas))}";

const CodePointRecord kCodePointRecords[{len(records)}] = {{
{record_rows}
}};

const uint16_t kCodePointIndex[{len(index)}] = {{
{rows(index)}
}};

const uint8_t kCodePointBlocks[{len(flat)}] = {{
{rows(flat)}
}};

}}  // namespace soma
"""


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description="Generate the tokenizer's Unicode tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the file is stale")
    arguments = parser.parse_args()
    text = generate()
    if arguments.check:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is stale: run python tools/generate_unicode_tables.py", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
