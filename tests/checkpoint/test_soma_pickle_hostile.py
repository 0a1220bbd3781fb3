"""Pickles that would run code, take all memory or time, or are damaged are refused by name, and nothing runs."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
from fuzz_soma_pickle import check, mutate, seeds

import soma_native
from helpers.soma_pickle import classes, dumps, reference
from soma_native.errors import CheckpointError

SEEDS = seeds()


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


def refused(folder: Path, data: bytes, problem: str) -> None:
    path = folder / "old.pkl"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=problem):
        soma_native.import_soma_pickle(path)
    assert not check(data)
    assert os.listdir(folder) == ["old.pkl"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), r"(posix|nt)\.system"),
        (eval, ("open('ran', 'w')",), r"(builtins|__builtin__)\.eval"),
        (getattr, ("", "join"), r"(builtins|__builtin__)\.getattr"),
        (np.load, ("ran",), r"numpy\.load"),
        (np.fromfile, ("ran",), r"fromfile"),
        (np.zeros, ((10**12,),), r"zeros"),
        (np.savetxt, ("ran", [1]), r"savetxt"),
        (__import__, ("antigravity",), r"(builtins|__builtin__)\.__import__"),
    ],
)
def test_functions_are_refused_by_name(
    protocol: int, function: Any, arguments: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for saved in (Calls(function, *arguments), {**reference(), "more": [Calls(function, *arguments)]}):
        refused(tmp_path, pickle.dumps(saved, protocol), f"names '.*{name}', .*nothing of it was run")


def test_the_holders_call_nothing(tmp_path: Path) -> None:
    """A class that stands for a function of its name is never called, nor is its state set by its own code."""
    holder = classes()["SOMASequenceBlock"]
    refused(tmp_path, pickle.dumps(Calls(holder, 1, 2), 0), "calls SOMASequenceBlock")
    refused(tmp_path, b"cos\nSOMALGMConfig\n(S'touch ran'\ntR.", "calls SOMALGMConfig")
    refused(tmp_path, b"c__main__\nSOMALGMConfig\n(I1\nt\x81.", "makes an object of no class")
    refused(tmp_path, b"c__main__\nSOMALGMConfig\n)\x81I1\nb.", "sets the state of a object|an object")
    refused(tmp_path, b"c__main__\nSOMALGMConfig\n}b.", "sets the state of a class")
    refused(tmp_path, b"(i__main__\nSOMALGMConfig\n.", "the pickle operation INST")
    refused(tmp_path, b"cnumpy\nndarray\n(I10000000000\nI10000000000\ntR.", "calls ndarray")
    refused(tmp_path, b"cnumpy\nndarray\n)\x81.", "makes an object of no class")
    refused(tmp_path, b"cnumpy\ndtype\n(VO8\nI0\nI1\ntR.", "an array of type 'O8'")
    refused(tmp_path, b"c_codecs\nencode\n(Vabc\nVhex\ntR.", "calls encode")
    refused(tmp_path, b"ccopyreg\n_reconstructor\n(cnumpy\nndarray\ncbuiltins\nobject\nNtR.", "calls _reconstructor")


@pytest.mark.parametrize(
    ("operation", "name"),
    [(b"Pid\n", "PERSID"), (b"NQ", "BINPERSID"), (b"\x82\x01", "EXT1"), (b"\x97", "NEXT_BUFFER"), (b"(o", "OBJ"),
     (b"\x8f", "EMPTY_SET"), (b"NNN\x92", "NEWOBJ_EX"), (b"(\x91", "FROZENSET")],
)  # fmt: skip
def test_other_operations_are_refused_by_name(operation: bytes, name: str, tmp_path: Path) -> None:
    refused(tmp_path, operation + b".", f"the pickle operation {name}, which no SOMA model needs")


def test_sizes_that_the_file_does_not_have_take_no_memory(tmp_path: Path) -> None:
    for data in (
        b"B" + struct.pack("<I", 2**32 - 1) + b"abc.",
        b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x96" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"Nr" + struct.pack("<I", 2**32 - 1) + b".",
        b"I" + b"9" * 100_000 + b"\n.",
        b"V" + b"a" * 100 + b".",
    ):
        refused(tmp_path, data, "is no pickle|is a pickle, but no SOMA model")
    array, dtype = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR", b"cnumpy\ndtype\n(Vf8\ntR"
    huge = array + b"(I1\n(I99999999999\nt" + dtype + b"I00\nC\x00tb."
    refused(tmp_path, huge, r"of the shape \[99999999999\] and 0 bytes, which do not fit")


def test_small_files_that_unfold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = b"(" * 100_000 + b"t" * 100_000
    refused(tmp_path, nested + b".", "no SOMA model")
    refused(tmp_path, b"]" * 100_000 + b"a" * 99_999 + b".", "no SOMA model")
    doubled = b"N" + b"2\x86" * 60  # a tuple of tuples of tuples, whose hash would take for ever
    refused(tmp_path, b"}" + doubled + b"Ns.", "keys that are neither texts nor whole numbers")
    refused(tmp_path, b"}\x8b" + struct.pack("<I", 100) + b"\x01" * 100 + b"Ns.", "keys that are neither")
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x000"
    call = b"(h\x00Vlatin1\ntR0"
    refused(tmp_path, text + b"c_codecs\nencode\nq\x01" + call + (b"h\x01" + call) * 1000 + b"N.", "more bytes than")
    saved = reference()
    saved["config"].n_layers = 30
    saved["blocks"] = saved["blocks"][:1] * 30
    refused(tmp_path, dumps(saved), "one stands in several places")
    monkeypatch.setattr("soma_native.checkpoint.soma_pickle._MAX_OPERATIONS", 1000)
    refused(tmp_path, b"N0" * 500 + b"NN.", "has more than 1000 operations")


@pytest.mark.parametrize("data", SEEDS, ids=range(6))
def test_a_file_that_is_cut_off_is_refused(data: bytes) -> None:
    assert check(data)
    assert not any(check(data[:length]) for length in range(0, len(data), 31))


@pytest.mark.parametrize("part", range(4))
def test_a_changed_file_is_refused_or_read(part: int) -> None:
    read = [check(mutate(SEEDS[number % 6], number)) for number in range(300 * part, 300 * (part + 1))]
    assert 0 < sum(read) < len(read)


def test_the_check_would_see_code_that_runs() -> None:
    import fuzz_soma_pickle

    fuzz_soma_pickle._watching = True
    eval("1")
    fuzz_soma_pickle._watching = False
    assert {"compile", "exec"} <= set(fuzz_soma_pickle._seen)
