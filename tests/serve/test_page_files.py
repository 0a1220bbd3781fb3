"""The files of the page, read as text: no markup from text, nothing inline, nothing of the network, small."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import soma_native

PAGE = Path(soma_native.__file__).parent / "serve" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
MOST_BYTES = 150_000
MOST_LINES = 450

# All ways from a text to markup or to code that a browser has.
MARKUP = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML|parseHTML|srcdoc|"
    r"\beval\b|new Function|javascript:|set(?:Timeout|Interval)\(\s*[\"'`]"
)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text in scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.inline += data


def elements() -> Elements:
    parsed = Elements()
    parsed.feed(FILES["index.html"])
    return parsed


def test_no_text_becomes_markup() -> None:
    assert len(SCRIPTS) > 5
    assert not [name for name, text in SCRIPTS.items() if re.search(MARKUP, text)]


def test_the_page_has_nothing_inline() -> None:
    """The policy allows no inline script, style or handler."""
    parsed = elements()
    assert parsed.found and not parsed.inline.strip()
    wrong = [(tag, name) for tag, names in parsed.found for name in names if name == "style" or name.startswith("on")]
    assert not wrong
    assert not [name for name, text in SCRIPTS.items() if re.search(r"setAttribute\(\s*[\"']style", text)]


def test_the_page_loads_its_own_files_alone() -> None:
    loaded = [
        value
        for tag, names in elements().found
        for name, value in names.items()
        if name in ("src", "href") and value and not value.startswith("#")
    ]
    assert loaded and all(value.startswith("page/") and value[5:] in FILES for value in loaded)
    imported = {name for text in SCRIPTS.values() for name in re.findall(r"from \"\./([\w.]+)\"", text)}
    assert imported <= set(FILES)
    scripts = {value[5:] for value in loaded if value.endswith(".js")}
    assert scripts | imported == set(SCRIPTS), "every script is used"
    own = "http://www.w3.org/2000/svg"  # a name, which nobody loads
    assert not [
        name for name, text in FILES.items() if re.search(r"https?:|//\w+\.\w|@import|url\(", text.replace(own, ""))
    ]


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < MOST_BYTES
    assert not [name for name, text in FILES.items() if len(text.splitlines()) > MOST_LINES]


def test_every_file_of_the_page_opens_with_what_it_is_for() -> None:
    openings = {".js": "// ", ".css": "/* ", ".html": "<!doctype html>\n<!-- "}
    assert not [name for name, text in FILES.items() if not text.startswith(openings.get(Path(name).suffix, ""))]


def test_the_key_stays_in_the_tab() -> None:
    """Only the choice of the theme outlives it."""
    kept = {name for name, text in SCRIPTS.items() if "localStorage" in text}
    assert kept == {"theme.js", "page.js"}
    assert all('"soma-theme"' in line for name in kept for line in SCRIPTS[name].splitlines() if "localStorage" in line)
