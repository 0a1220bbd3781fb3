"""Recognises files that are no UTF-8 text by their first bytes, and names a command that extracts their text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 1 << 16


class _Kind(NamedTuple):
    """A kind of file: its first bytes, its name, and a command that gets its text, or None."""

    start: bytes
    name: str
    command: str | None


_ICONV = "iconv -f {encoding} -t UTF-8 < {file} > {text}"
_PANDOC = "pandoc -f {} -t plain {{file}} -o {{text}}"
_ZIPPED = (  # zip archives that hold these bytes near their start
    _Kind(b"word/", "a Word document (docx)", _PANDOC.format("docx")),
    _Kind(b"mimetypeapplication/vnd.oasis.opendocument.text", "an OpenDocument text (odt)", _PANDOC.format("odt")),
    _Kind(b"mimetypeapplication/epub+zip", "a book (epub)", _PANDOC.format("epub")),
    _Kind(b"xl/", "a spreadsheet (xlsx)", "soffice --headless --convert-to csv {file}"),
    _Kind(b"ppt/", "a presentation (pptx)", "soffice --headless --convert-to pdf {file}"),
    _Kind(b"", "a zip archive", "unzip {file} -d {folder}"),
)
_KINDS = (
    _Kind(b"\xff\xfe\0\0", "text in UTF-32", _ICONV.replace("{encoding}", "UTF-32")),
    _Kind(b"\0\0\xfe\xff", "text in UTF-32", _ICONV.replace("{encoding}", "UTF-32")),
    _Kind(b"\xff\xfe", "text in UTF-16", _ICONV.replace("{encoding}", "UTF-16")),
    _Kind(b"\xfe\xff", "text in UTF-16", _ICONV.replace("{encoding}", "UTF-16")),
    _Kind(b"\x1f\x8b", "compressed by gzip", "gzip -dc < {file} > {text}"),
    _Kind(b"BZh", "compressed by bzip2", "bzip2 -dc < {file} > {text}"),
    _Kind(b"\xfd7zXZ\0", "compressed by xz", "xz -dc < {file} > {text}"),
    _Kind(b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd -dc < {file} > {text}"),
    _Kind(b"\x04\x22\x4d\x18", "compressed by lz4", "lz4 -dc < {file} > {text}"),
    _Kind(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {file}"),
    _Kind(b"Rar!\x1a\x07", "a rar archive", "unrar x {file}"),
    _Kind(b"%PDF-", "a PDF", "pdftotext {file} {text}"),
    _Kind(b"{\\rtf", "a document in rich text (rtf)", _PANDOC.format("rtf")),
    _Kind(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "soffice --headless --convert-to txt {file}"),
    _Kind(b"\x89PNG\r\n", "a picture (png)", None),
    _Kind(b"\xff\xd8\xff", "a picture (jpeg)", None),
    _Kind(b"GIF8", "a picture (gif)", None),
    _Kind(b"II*\0", "a picture (tiff)", None),
    _Kind(b"MM\0*", "a picture (tiff)", None),
    _Kind(b"RIFF", "sound or a picture (wav, webp)", None),
    _Kind(b"OggS", "sound (ogg)", None),
    _Kind(b"fLaC", "sound (flac)", None),
    _Kind(b"ID3", "sound (mp3)", None),
    _Kind(b"\x7fELF", "a program", None),
    _Kind(b"SQLite format 3\0", "a database (SQLite)", "sqlite3 {file} .dump > {text}"),
    _Kind(b"PAR1", "a table (parquet)", None),
    _Kind(b"\x93NUMPY", "an array (npy)", None),
)
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html[\s>])", re.IGNORECASE)
# What Western European texts have beside ASCII. Other encodings of single bytes put common letters elsewhere.
_WESTERN = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüŒœ“”‘’„«»–—…•¡¿°§©®™€£€½×·´\xa0".encode("cp1252")
)


def recognise(head: bytes, path: Path | None = None, *, whole: bool = False) -> str | None:
    """The problem of a file that begins with `head` and is no text in UTF-8; None if it may be one.

    Args:
        head: its first `HEAD_BYTES` bytes; fewer for a shorter file.
        path: the file, for the command; None for standard input.
        whole: whether the file is known not to be UTF-8, or to hold a NUL. Beginnings in ASCII letters then count too.
    """
    kind = _kind_of(head, whole)
    if kind is None:
        return None
    if kind.command is None:
        return f"is {kind.name}, which holds no text to read"
    return f"is {kind.name}, not in UTF-8: convert it with {_filled(kind.command, path)}"


def html_problem(head: bytes, path: Path) -> str | None:
    """The problem of a file that begins with `head` and is a web page; None if it is none."""
    if not _HTML.match(head):
        return None
    return f"is a web page: its tags count as text; {_filled(_PANDOC.format('html'), path)} leaves them out"


def encoding_problem(at: int, near: bytes, path: Path | None = None, *, after_utf8: bool = False) -> str:
    """The problem of a text that is not UTF-8, with the command for its likely encoding, if there is one.

    Args:
        at: the place of the first byte that is not UTF-8.
        near: the bytes from there on, to the end of the file or some thousand.
        path: the file; None for standard input.
        after_utf8: whether characters of several bytes stand before.
    """
    if _is_cut_off(near) and (after_utf8 or len(near) > 1):  # a single byte may be the last letter of another encoding
        rest = _filled(f"head -c {at} < {{file}} > {{text}}", path)
        return f"ends within a character at byte {at}: get the whole file, or leave this character out with {rest}"
    problem = f"not UTF-8 at byte {at} (0x{near[0]:02x})"
    text = near.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    if sum(character > "\x7f" for character in text) - bad + after_utf8 > 2 * bad:
        command = _filled("iconv -c -f UTF-8 -t UTF-8 < {file} > {text}", path)
        return f"{problem}, though it is elsewhere: the file is damaged there; {command} leaves such bytes out"
    if _WESTERN.issuperset(near.translate(None, bytes(range(128)))) and not re.search(rb"[\xc0-\xff]{3}", near):
        command = _filled(_ICONV.replace("{encoding}", "WINDOWS-1252"), path)
        return f"{problem}: convert the file, which looks like WINDOWS-1252, with {command}"
    command = _filled(_ICONV.replace("{encoding}", "ENCODING"), path)
    return f"{problem}: convert the file from its encoding with {command} (iconv -l lists the encodings)"


def _is_cut_off(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start == 0 and error.end == len(data) and error.reason == "unexpected end of data"
    return False


def _filled(command: str, path: Path | None) -> str:
    if path is None:
        return command.format(file="FILE", text="TEXT.txt", folder="FOLDER")
    made = {name: path.with_name(f"{path.stem}{end}") for name, end in (("text", ".utf8.txt"), ("folder", "_unpacked"))}
    return command.format(**{name: shlex.quote(str(place)) for name, place in {"file": path, **made}.items()})


def _kind_of(head: bytes, whole: bool) -> _Kind | None:
    for kind in _KINDS:
        # A text may begin with letters like BZh or GIF8, so these count only in a file that is known to be no text.
        if head.startswith(kind.start) and (whole or not kind.start.isascii() or kind.start in (b"%PDF-", b"{\\rtf")):
            return kind
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return next(kind for kind in _ZIPPED if kind.start in head[:HEAD_BYTES])
    if whole and head[257:262] == b"ustar":
        return _Kind(b"", "a tar archive", "tar -xf {file}")
    encoding = _wide_encoding(head[: HEAD_BYTES & ~3]) if whole else None
    if encoding is None:
        return None
    name = f"text in {encoding[:6]} without a byte order mark"
    return _Kind(b"", name, _ICONV.replace("{encoding}", encoding))


def _wide_encoding(head: bytes) -> str | None:
    """The encoding of a text in UTF-16 or UTF-32 without a byte order mark: its ASCII has NULs at fixed places."""
    if head.count(0) < 3:
        return None
    for width, name in ((4, "UTF-32"), (2, "UTF-16")):
        size = len(head) - len(head) % width
        columns = [head[i:size:width].count(0) / max(size // width, 1) for i in range(width)]
        for order, shares in (("LE", columns), ("BE", columns[::-1])):
            empty = shares[2:] if width == 4 else shares[1:]  # the high bytes
            often = 0.98 if width == 4 else 0.7 if _is_plain(head) else 0.02
            if shares[0] == 0 and min(empty) > often:
                return f"{name}{order}"
    return None


def _is_plain(head: bytes) -> bool:
    """Whether these bytes without their NULs look like text of a narrow encoding."""
    text = head.replace(b"\0", b"").decode("utf-8", "replace")
    return sum(c == "\ufffd" or not (c.isprintable() or c.isspace()) for c in text) <= len(text) / 5
