"""Reads documents from text files and from an argument `texts`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from soma_native._checks import choice
from soma_native.files.text_files import iter_lines, iter_texts, read_utf8

Texts: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"
Split: TypeAlias = Literal["file", "line", "blank-line"]
SPLITS: tuple[Split, ...] = ("file", "line", "blank-line")


def read_documents(paths: Texts, split: Split = "file") -> Iterator[str]:
    r"""Read UTF-8 text files and yield their documents.

    Args:
        paths: one path or several; a `str` is a path here.
        split: "file": each file is one document, unchanged. "line": each line is one, without its line end.
            "blank-line": each stretch between blank lines is one, with its inner line breaks. Lines of white space
            alone are no documents.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a path is a folder, a file is not UTF-8 (the message names the file and the byte), or `split` is
            unknown.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "poem.txt")
    >>> _ = path.write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    >>> list(read_documents(path, split="line"))
    ['one', 'two', 'three']
    >>> list(read_documents([path], split="blank-line"))
    ['one\ntwo', 'three']
    """
    choice("split", split, SPLITS)
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        if split == "file":
            yield read_utf8(path).decode("utf-8")
            continue
        block: list[str] = []
        for line in iter_lines(path):
            if line.strip():
                block.append(line)
            if block and (split == "line" or not line.strip()):
                yield "\n".join(block)
                block = []
        if block:
            yield "\n".join(block)


def documents_of(files: Sequence[Path], split: Split) -> Iterable[str | Path]:
    """The documents of `files`, as functions that take texts want them: whole files are read piece by piece there."""
    return files if split == "file" else read_documents(files, split)


def iter_documents(texts: Texts) -> Iterator[str]:
    """Yield the documents of an argument `texts`.

    A `str` in an iterable is a document. An `os.PathLike` (`pathlib.Path`), alone or in an iterable, is a UTF-8 file
    with one document. A `str` alone is the path of such a file. For files with many documents, pass
    `read_documents(paths, split="line")`.

    Raises:
        TypeError, FileNotFoundError, ValueError: as `iter_texts`.

    >>> list(iter_documents(["first document", "second document"]))
    ['first document', 'second document']
    """
    for text in iter_texts(texts):
        yield text if isinstance(text, str) else text.decode("utf-8")
