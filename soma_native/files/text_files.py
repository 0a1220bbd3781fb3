"""Reads an argument `texts` (strings, paths, or both) and text files, for the training of tokenizers and of models."""

from __future__ import annotations

import functools
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader, FileIO
from pathlib import Path

from soma_native.core import _core
from soma_native.errors import ArgumentTypeError
from soma_native.files.file_kinds import HEAD_BYTES, encoding_problem, html_problem, recognise

_BATCH_CHARACTERS = 1 << 20  # of texts handed to the core at once; limits the memory that a stream of texts needs
_PIECE = 1 << 20  # characters of a long text, or bytes of a file, handed to the core at once
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_log = logging.getLogger("soma_native")


def iter_texts(texts: object) -> Iterator[str | bytes]:
    """Yield every text of an argument `texts`: a `str` unchanged, a file's content as `read_utf8` returns it.

    Raises:
        TypeError, FileNotFoundError: as `iter_sources`.
        FileNotFoundError, ValueError: as `read_utf8`.
    """
    for source in iter_sources(texts):
        yield source if isinstance(source, str) else read_utf8(source)


def iter_sources(texts: object) -> Iterator[str | Path]:
    """Yield every text of an argument `texts`, or the path of the file that holds it.

    A `str` in an iterable is a text. An `os.PathLike`, alone or in an iterable, is a file. A `str` alone is a file too.

    Raises:
        TypeError: an item is neither text nor path (the message gives its index), or a `str` alone names no file.
        FileNotFoundError: a `str` alone looks like a path, and there is no such file.
    """
    if isinstance(texts, os.PathLike) or (isinstance(texts, str) and _names_a_file(texts)):
        yield Path(texts)
        return
    if isinstance(texts, str):
        if _looks_like_a_path(texts):
            raise FileNotFoundError(f"{texts}: there is no such text file; for a text itself, pass [text]")
        problem = f"is a single str that names no file: {texts[:60]!r}; pass [text] for one text, or the path of a file"
        raise ArgumentTypeError("texts", problem)
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Iterable):
        kind = type(texts).__name__
        raise ArgumentTypeError("texts", f"must be an iterable of str, or paths of UTF-8 files, got {kind}")
    nul_seen = False
    for index, item in enumerate(texts):
        if isinstance(item, str):
            if not nul_seen and "\0" in item:
                nul_seen = True
                _log.warning("texts[%d] holds the character NUL, as UTF-16 read in another encoding does", index)
            if index == 0 and _names_a_file(item):
                _log.warning(
                    "texts[0] is read as a text, but a file has this name: %r; to read the file, pass a Path", item
                )
            yield item
        elif isinstance(item, os.PathLike):
            yield Path(item)
        else:
            raise ArgumentTypeError(f"texts[{index}]", f"must be a str or an os.PathLike, got {type(item).__name__}")


def batches(texts: Iterable[str | Path]) -> Iterator[tuple[int, list[str | bytes] | str | Path]]:
    """Lists of texts for the core's threads, each with the index of its first text. Long texts and files come alone.

    `pieces_of` cuts a long text or a file.
    """
    batch: list[str | bytes] = []
    first = size = 0
    for i, text in enumerate(texts):
        if not isinstance(text, str) or len(text) > _PIECE:
            if batch:
                yield first, batch
            yield i, text
            batch, first, size = [], i + 1, 0
            continue
        batch.append(text)
        size += len(text) + 64
        if size > _BATCH_CHARACTERS:
            yield first, batch
            batch, first, size = [], i + 1, 0
    if batch:
        yield first, batch


def parts(texts: Iterable[str | Path]) -> Iterator[tuple[int, list[str | bytes]]]:
    """The texts for the core's counters, as `batches` gives them, long ones and files piece by piece."""
    for first, batch in batches(texts):
        if isinstance(batch, list):
            yield first, batch
        else:
            for piece in pieces_of(batch, first):
                yield first, [piece]


def pieces_of(text: str | Path, index: int) -> Iterator[bytes]:
    """The UTF-8 of a long text, or of a file, in pieces that any kind of tokenizer splits as it does the whole.

    Raises:
        ValueError: a lone surrogate in the text, which is called texts[index].
        FileNotFoundError, ValueError: as `read_utf8`.
    """
    if isinstance(text, Path):
        with BufferedReader(open_text(text)) as file:
            yield from _cut(_Utf8File(file, text).read)
        return
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        at += size
        try:
            return text[at - size : at].encode()
        except UnicodeEncodeError:
            _core.WordLosses().add([text], index)  # which raises, and says where
            raise

    yield from _cut(read)


def _cut(read: Callable[[int], bytes]) -> Iterator[bytes]:
    kept = b""
    while block := read(max(_PIECE, len(kept))):  # at least as much again: linear time where there is no place to cut
        text = kept + block
        end = _core.last_chunk_end(text, len(kept))
        if end:
            yield text[:end]
        kept = text[end:]
    if kept:
        yield kept


class _Utf8File:
    """A file that is read as whole characters of UTF-8; a byte order mark at its start is no part of it."""

    def __init__(self, file: BufferedReader[FileIO], path: Path) -> None:
        self._file, self._path = file, path
        self._at = 0  # bytes that were returned
        self._rest, self._head = b"", b""
        self._is_ascii = True  # so far

    def read(self, size: int) -> bytes:
        """About so many bytes more, b"" at the end; ValueError as `read_utf8`."""
        while True:
            block = self._file.read(size)
            data, begin = self._rest + block, self._at
            self._head = self._head or data[:HEAD_BYTES]
            at, nul = _core.find_invalid_utf8(data), data.find(b"\0")
            if nul >= 0 and (at < 0 or nul < at):
                raise no_text(self._path, begin + nul, b"\0", self._first())
            whole = data if at < 0 else data[:at]
            self._is_ascii = self._is_ascii and whole.isascii()
            if at >= 0 and (not block or len(data) - at > 3):
                near = (data[at:] + self._file.read(HEAD_BYTES))[:HEAD_BYTES]
                raise no_text(self._path, begin + at, near, self._first(), after_utf8=not self._is_ascii)
            self._rest = data[len(whole) :]
            self._at += len(whole)
            if begin == 0:
                whole = whole.removeprefix(_BYTE_ORDER_MARK)
            if whole or not block:
                return whole

    def _first(self) -> bytes:
        return head_of(self._file.raw) or self._head


def iter_lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """The lines of a text file without their ends, which are those of any system, read piece by piece.

    Raises:
        FileNotFoundError, ValueError: as `read_utf8`.
    """
    path = Path(path)
    with BufferedReader(open_text(path)) as opened:
        file, kept = _Utf8File(opened, path), ""
        while block := file.read(max(_PIECE, len(kept))):
            text = kept + block.decode()
            held = "\r" if text.endswith("\r") else ""  # a newline may follow
            *lines, kept = _split_lines(text.removesuffix(held))
            kept += held
            yield from lines
    yield from _split_lines(kept)


def _split_lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_utf8(path: str | os.PathLike[str]) -> bytes:
    """The content of a text file in UTF-8, without a byte order mark at its start.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder, or the file is not UTF-8 or holds a NUL. The message names the file and the
            byte, and the kind of the file if it is known.
    """
    path = Path(path)
    with open_text(path) as file:
        data = file.read()
    at, nul = _core.find_invalid_utf8(data), data.find(b"\0")
    if nul >= 0 and (at < 0 or nul < at):
        raise no_text(path, nul, b"\0", data[:HEAD_BYTES])
    if at >= 0:
        near, after_utf8 = data[at : at + HEAD_BYTES], not data[:at].isascii()
        raise no_text(path, at, near, data[:HEAD_BYTES], after_utf8=after_utf8)
    return data.removeprefix(_BYTE_ORDER_MARK)


def check_utf8(path: Path) -> None:
    """Read a text file piece by piece. Raises as `read_utf8`."""
    with BufferedReader(open_text(path)) as opened:
        file = _Utf8File(opened, path)
        while file.read(_PIECE):
            pass


def open_text(path: Path) -> FileIO:
    """Open a text file to read its bytes. Warns of a web page.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder, or the file begins like a known kind that is no text; the message names it.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; pass the text files in it, such as Path({str(path)!r}).glob('*.txt')")
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such text file") from None
    head = head_of(file)
    what = recognise(head, path)
    if what is not None:
        file.close()
        raise ValueError(f"{path}: {what}")
    if (what := html_problem(head, path)) is not None:
        _warn_once(f"{path}: {what}")
    return file


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)  # once, for a training reads its texts several times


def head_of(file: FileIO) -> bytes:
    """The first bytes of an open file, without moving its position; b"" for a pipe."""
    try:
        return os.pread(file.fileno(), HEAD_BYTES, 0)
    except (AttributeError, OSError):  # Windows; a pipe
        return b""


def no_text(path: Path, at: int, near: bytes, head: bytes, *, after_utf8: bool = False) -> ValueError:
    """The error for a file that is not UTF-8 or holds a NUL, at byte `at`. `head` is the file's beginning.

    `near` and `after_utf8` are those of `encoding_problem`.
    """
    found = recognise(head, path, whole=True)
    if found is None and near.startswith(b"\0"):
        file, text = shlex.quote(str(path)), shlex.quote(str(path.with_name(f"{path.stem}.utf8.txt")))
        mend = f"if it is a text all the same, run tr -d '\\000' < {file} > {text}"
        found = f"a NUL at byte {at}, which no text has: {mend}"
    return ValueError(f"{path}: {found or encoding_problem(at, near, path, after_utf8=after_utf8)}")


def _looks_like_a_path(text: str) -> bool:
    if not text or len(text) > 4096 or any(character.isspace() for character in text):
        return False
    return (
        "/" in text
        or "\\" in text
        or re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{0,7}", os.path.splitext(text)[1]) is not None
    )


def _names_a_file(text: str) -> bool:
    if len(text) > 4096 or "\n" in text or "\0" in text:
        return False
    try:
        return os.path.isfile(text)
    except (OSError, ValueError):
        return False
