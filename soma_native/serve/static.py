"""The files of the page, which the server reads once when it starts."""

from __future__ import annotations

from pathlib import Path

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of each file of the page, by name."""
    folder = Path(__file__).parent / "page"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: (path.read_bytes(), _KINDS[path.suffix]) for path in found if path.suffix in _KINDS}
