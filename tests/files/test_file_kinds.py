"""Files that are no UTF-8 text are told by what they are, and the command that the error names gets the text out."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import soma_native as soma
from soma_native.files.file_kinds import recognise

TEXT = "Ein Käse, 今日は mañana.\nA second line: the quick brown fox.\n" * 40
READERS: dict[str, Callable[[Path], object]] = {
    "documents": lambda path: list(soma.read_documents(path)),
    "char": lambda path: soma.Tokenizer.train(path, kind="char"),
    "byte": lambda path: soma.Tokenizer.train(path, kind="byte"),
    "bpe": lambda path: soma.Tokenizer.train(path, kind="bpe", vocab_size=260),
}


def zipped(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            content = "application/epub+zip" if name == "mimetype" else TEXT
            archive.writestr(name, content)
    return data.getvalue()


FILES = {
    "windows.txt": (TEXT.encode("utf-16"), "text in UTF-16,"),
    "big.txt": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "text in UTF-16,"),
    "wide.txt": (TEXT.encode("utf-32"), "text in UTF-32,"),
    "unmarked.txt": (TEXT.encode("utf-16-le"), "text in UTF-16 without a byte order mark"),
    "unmarked big.txt": (TEXT.encode("utf-16-be"), "text in UTF-16 without a byte order mark"),
    "unmarked wide.txt": (TEXT.encode("utf-32-le"), "text in UTF-32 without a byte order mark"),
    "greek.txt": ("μία λέξη και άλλη μία\n".encode("utf-16-le"), "text in UTF-16 without a byte order mark"),
    "notes.txt.gz": (gzip.compress(TEXT.encode()), "compressed by gzip"),
    "it's.bz2": (bz2.compress(TEXT.encode()), "compressed by bzip2"),
    "notes.xz": (lzma.compress(TEXT.encode()), "compressed by xz"),
    "essay.docx": (zipped("[Content_Types].xml", "word/document.xml"), "a Word document"),
    "book.epub": (zipped("mimetype", "META-INF/container.xml"), "a book (epub)"),
    "texts.zip": (zipped("one.txt"), "a zip archive"),
    "paper.txt": (b"%PDF-1.4\n1 0 obj << >> endobj", "a PDF"),
    "letter.txt": (b"{\\rtf1\\ansi hello}", "a document in rich text"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a picture"),
    "photo.md": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "a picture"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_known_kind_is_named(tmp_path: Path, name: str, reader: str) -> None:
    data, what = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError) as refused:
        READERS[reader](path)
    said = str(refused.value)
    assert said.startswith(f"{path}: is ") and what in said and "\n" not in said
    assert "WINDOWS-1252" not in said and "LATIN1" not in said


def test_the_command_in_the_message_gets_the_text(tmp_path: Path) -> None:
    ran = set()
    for name, (data, _) in FILES.items():
        path = tmp_path / name / name
        path.parent.mkdir()
        path.write_bytes(data)
        with pytest.raises(ValueError) as refused:
            list(soma.read_documents(path))
        command = str(refused.value).partition("convert it with ")[2]
        program = command.partition(" ")[0]
        if program not in ("iconv", "gzip", "bzip2", "xz", "unzip") or shutil.which(program) is None:
            continue
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)
        made = [file for file in path.parent.rglob("*") if file.is_file() and file != path]
        expected = data.decode("utf-16-le") if name == "greek.txt" else TEXT
        assert [list(soma.read_documents(file)) for file in made] == [[expected]], command
        ran.add(program)
    assert ran >= {"iconv", "gzip"}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("at", [0, 9, 70_000, 5_000_000])
def test_a_nul_is_named_by_its_place(tmp_path: Path, at: int, reader: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a word " * (at // 7) + b"-" * (at % 7) + b"\0" + b" and more\n" * 20)
    with pytest.raises(ValueError, match=rf"text\.txt: a NUL at byte {at}, which no text has") as refused:
        READERS[reader](path)
    command = re.search(r"tr -d .*", str(refused.value))
    assert command is not None
    subprocess.run(["sh", "-c", command[0]], check=True)
    READERS[reader](tmp_path / "text.utf8.txt")


ENCODED = {  # a text, its encoding, and whether that is named
    "french": ("“Käse” – naïve café, déjà créée à l’été", "cp1252", True),
    "price": ("a coffee for 3 €", "cp1252", True),
    "russian": ("Он сказал: «нет», и ушёл.", "cp1251", False),
    "japanese": ("むかしむかし、あるところに", "shift-jis", False),
    "chinese": ("你好，世界。今天天气很好", "gbk", False),
    "polish": ("Zażółć gęślą jaźń", "cp1250", False),
    "old mac": ("naïve café", "mac-roman", False),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ENCODED)
def test_another_encoding_is_named_where_it_is_likely(tmp_path: Path, name: str, reader: str) -> None:
    text, encoding, named = ENCODED[name]
    path = tmp_path / "old one.txt"
    data = b"The first words. " * 9000 + text.encode(encoding)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"old one\.txt: not UTF-8 at byte 15\d{4} \(0x..\): convert") as refused:
        READERS[reader](path)
    command = re.search(r"iconv -f .* -t UTF-8 < .*utf8\.txt'", str(refused.value))
    assert command is not None and ("WINDOWS-1252" in command[0]) == named, command
    subprocess.run(["sh", "-c", command[0].replace("ENCODING", encoding)], check=not encoding.startswith("mac"))
    if not encoding.startswith("mac"):  # which iconv calls by another name
        assert list(soma.read_documents(tmp_path / "old one.utf8.txt")) == [data.decode(encoding)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [1, 3_000_000])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_text_cut_off_within_a_character_is_told(tmp_path: Path, size: int, cut: int, reader: str) -> None:
    path = tmp_path / "part.txt"
    whole = ("こ" + "-" * size).encode()
    path.write_bytes(whole + "今".encode()[:cut])
    with pytest.raises(ValueError, match=rf"part\.txt: ends within a character at byte {len(whole)}: ") as refused:
        READERS[reader](path)
    command = re.search(r"head -c .*", str(refused.value))
    assert command is not None
    subprocess.run(["sh", "-c", command[0]], check=True)
    assert (tmp_path / "part.utf8.txt").read_bytes() == whole


@pytest.mark.parametrize("reader", READERS)
def test_damage_in_a_text_of_utf8_is_told(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "text.txt"
    text = "今日は mañana".encode()
    path.write_bytes(text + b"\xff" + text)
    with pytest.raises(ValueError, match=rf"not UTF-8 at byte {len(text)} \(0xff\), though it is elsewhere") as refused:
        READERS[reader](path)
    command = re.search(r"iconv -c .*utf8\.txt", str(refused.value))
    assert command is not None
    subprocess.run(["sh", "-c", command[0]], check=False)  # its status tells that bytes were left out
    assert (tmp_path / "text.utf8.txt").read_bytes() == text * 2


def test_the_last_letter_of_another_encoding_is_no_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("un café".encode("cp1252"))
    with pytest.raises(ValueError, match=r"not UTF-8 at byte 6 .*WINDOWS-1252"):
        list(soma.read_documents(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    "text", ["abcdefgh abcdefg\0 abcdefg\n", "a\0b\n", "one\0two\0three\0four\0", "今日\0は今日は\0"]
)
def test_a_text_with_a_few_nuls_is_not_called_wide(tmp_path: Path, text: str) -> None:
    for data in (text.encode(), b"-" + text.encode()):  # NULs at odd places and at even ones
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(ValueError, match=f"a NUL at byte {data.index(0)}, which no text has"):
            list(soma.read_documents(tmp_path / "a.txt"))


PAGE = "<html lang='en'><body><p>Some words of a page.</p></body></html>\n"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "page", [f"<!DOCTYPE html>\n{PAGE}", f"\ufeff\n {PAGE.upper()}", f"<?xml version='1.0'?>\n{PAGE}"]
)
def test_a_web_page_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, page: str, reader: str) -> None:
    path = tmp_path / "page.txt"
    path.write_text(page, encoding="utf-8")
    READERS[reader](path)
    READERS[reader](path)
    said = [record.getMessage() for record in caplog.records if "web page" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(f"{path}: is a web page: its tags count as text; pandoc -f html")


def test_a_text_about_html_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for text in ("A page begins with <html>.", "<htmlike>", "<p>a part of a page</p>"):
        (tmp_path / "a.txt").write_text(text)
        assert list(soma.read_documents(tmp_path / "a.txt")) == [text]
    assert "web page" not in caplog.text


@pytest.mark.parametrize(
    "text", ["BZh, he said", "GIF8 and GIF9", "RIFF", "ID3 tags", "PK is a name", "PAR1", "", "\n"]
)
def test_a_text_may_begin_with_any_word(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    assert list(soma.read_documents(path)) == [text]
    assert recognise(text.encode()) is None


def test_a_text_in_memory_may_hold_a_nul_and_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["fine", "a\0b\0", "c\0"]
    with caplog.at_level(logging.WARNING, "soma_native"):
        tok = soma.Tokenizer.train(texts, kind="char")
    assert tok.decode(tok.encode("a\0b")) == "a\0b"
    assert [record.getMessage() for record in caplog.records] == [
        "texts[1] holds the character NUL, as UTF-16 read in another encoding does"
    ]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """What a file is by its first bytes must not cost a pipe its first bytes."""
    read, write = os.pipe()
    os.write(write, b"some text")
    os.close(write)
    assert list(soma.read_documents(Path(f"/dev/fd/{read}"))) == ["some text"]
    os.close(read)
