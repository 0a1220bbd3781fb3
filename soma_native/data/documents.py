"""What counts as a document, and how documents are read from text files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from soma_native._checks import choice
from soma_native.files.text_files import iter_texts, read_utf8

Texts: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"
Split: TypeAlias = Literal["file", "line", "blank-line"]
SPLITS: tuple[Split, ...] = ("file", "line", "blank-line")


def read_documents(paths: Texts, split: Split = "file") -> Iterator[str]:
    r"""Read UTF-8 text files and yield their documents.

    Args:
        paths: one path or several; a `str` is a path here.
        split: "file" makes each file one document, kept as it is; "line" makes each line one, "blank-line" each
            stretch between blank lines (its inner line breaks stay). Line ends are not part of such a document, and
            lines of white space alone make none.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a path is a folder, a file is not UTF-8 (the message names the file and the byte), or `split` is
            none of the three.

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
        text = read_utf8(path).decode("utf-8")
        if split == "file":
            yield text
            continue
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        del text
        block: list[str] = []
        for line in lines:
            if line.strip():
                block.append(line)
            if block and (split == "line" or not line.strip()):
                yield "\n".join(block)
                block = []
        if block:
            yield "\n".join(block)


def iter_documents(texts: Texts) -> Iterator[str]:
    """Yield the documents of `texts`, the argument every function that takes texts understands in this way.

    A `str` in an iterable is a document; an `os.PathLike` (`pathlib.Path`), alone or in an iterable, is a UTF-8 file
    and that file one document. A `str` by itself is the name of a file. For files with many documents, pass
    `read_documents(paths, split="line")`.

    Raises:
        TypeError: something that is neither text nor a path (the message says where), or a `str` by itself that names
            no file.
        FileNotFoundError, ValueError: as `read_documents`.

    >>> list(iter_documents(["first document", "second document"]))
    ['first document', 'second document']
    """
    for text in iter_texts(texts):
        yield text if isinstance(text, str) else text.decode("utf-8")
