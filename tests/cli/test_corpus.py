"""The files of CORPUS..., and the messages about files that are left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from soma_native.cli.corpus import corpus_files
from soma_native.cli.errors import CommandError

pytestmark = pytest.mark.levels()


def write(path: Path, text: str = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_links_to_folders_are_followed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    first, below = write(texts / "a.txt"), write(texts / "sub" / "b.md")
    outside = write(tmp_path / "elsewhere" / "c.txt")
    (texts / "linked").symlink_to(outside.parent)
    assert corpus_files([str(texts)]) == [first, texts / "linked" / "c.txt", below]
    assert capsys.readouterr().err == ""
    (texts / "sub" / "loop").symlink_to(texts)
    (texts / "sub" / "itself").symlink_to(".")
    (outside.parent / "back").symlink_to(texts)
    assert corpus_files([str(texts)]) == [first, texts / "linked" / "c.txt", below]
    said = capsys.readouterr().err
    assert said.startswith("soma-native: left out, already there under another name: ") and said.count("\n") == 1
    assert all(str(texts / name) in said for name in ("sub/loop", "sub/itself", "linked/back"))


def test_hidden_files_and_folders_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = write(tmp_path / "a.txt")
    hidden = [write(tmp_path / name) for name in ("._a.txt", ".b.md", ".git/c.txt")]
    write(tmp_path / ".config", "no text file anyway")
    assert corpus_files([str(tmp_path)]) == [seen]
    assert capsys.readouterr().err == (
        f"soma-native: left out, hidden: {tmp_path / '.git'}, {tmp_path / '._a.txt'}, {tmp_path / '.b.md'}\n"
    )
    assert corpus_files([str(hidden[1]), str(tmp_path / ".git")]) == [hidden[1], hidden[2]], "given paths may be hidden"
    assert capsys.readouterr().err == ""


def test_a_file_under_two_names_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a.txt")
    os.link(first, tmp_path / "hard.txt")
    (tmp_path / "soft.txt").symlink_to("a.txt")
    copy = write(tmp_path / "z.txt")
    again = [str(tmp_path), str(first), f"{tmp_path}/./a.txt"]
    assert corpus_files(again) == [first, copy], "equal content is another file"
    assert capsys.readouterr().err == (
        "soma-native: left out, already there under another name: "
        f"{tmp_path / 'hard.txt'}, {tmp_path / 'soft.txt'}, {first} and 1 more\n"
    )


def test_what_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = write(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("nowhere")
    assert corpus_files([str(tmp_path)]) == [seen]
    assert capsys.readouterr().err == f"soma-native: left out, a link to nothing: {tmp_path / 'b.txt'}\n"
    write(tmp_path / "sub" / ".a.txt")
    with pytest.raises(CommandError, match=r"sub: no \.txt or .md file in this folder"):
        corpus_files([str(tmp_path / "sub")])
    assert "left out, hidden" in capsys.readouterr().err, "the message says why there is no file"
    if os.geteuid() != 0:
        locked = write(tmp_path / "locked" / "c.txt").parent
        locked.chmod(0)
        assert corpus_files([str(tmp_path)]) == [seen]
        locked.chmod(0o700)
        assert f"left out, not readable: {locked}" in capsys.readouterr().err
