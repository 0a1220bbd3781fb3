"""Functions of the core take at most seven arguments; more become a struct."""

from __future__ import annotations

import re
from pathlib import Path

CORE = Path(__file__).resolve().parents[2] / "src" / "cpp"
# The register tile is called for each panel, where a struct would be stored anew.
MANY = {"tile"}


def long_signatures(code: str) -> set[str]:
    """The functions with more than seven arguments; a lambda is "]". A call has no types and is left out."""
    code = re.sub(r"//[^\n]*", "", code)
    found = set()
    for name, arguments in re.findall(r"(\w+|\])\s*\(([^();]*)\)", code):
        parts = [part.partition("=")[0].strip() for part in arguments.split(",")]
        if len(parts) > 7 and all(re.search(r"[\w>]\s*[&*]*\s+[&*]*\w+$", part) for part in parts):
            found.add(name)
    return found


def test_a_long_signature_is_found() -> None:
    arguments = "float* c, int64_t ldc, const TileA& a, const float* b, int64_t k, int64_t m, int64_t n, bool last = {}"
    assert long_signatures(f"void f({arguments}) {{}}") == {"f"}
    assert long_signatures(f"const auto f = [&]({arguments}) {{") == {"]"}
    assert not long_signatures("f(c, ldc, a.at(0), b + 1, k, m, n, true, 9); void g(int a, int b) {}")


def test_more_than_seven_arguments_are_a_struct() -> None:
    # A launch on a GPU has its stream and its scratch beside an op's arguments.
    paths = [path for path in CORE.rglob("*") if path.suffix in {".h", ".cpp"} and path.parent.name != "cuda"]
    assert len(paths) > 100
    assert set().union(*(long_signatures(path.read_text(encoding="utf-8")) for path in paths)) == MANY
