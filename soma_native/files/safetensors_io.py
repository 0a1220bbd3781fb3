"""Reads and writes tensor files with the `safetensors` package. Added here: errors that name the tensor, bfloat16,
and the same bytes in the file for the same tensors.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soma_native.errors import CheckpointError
from soma_native.files.untrusted import open_regular, parse_json, short

MAX_HEADER_BYTES = 16 << 20  # headers of the largest published models are below 1 MiB
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class TensorEntry(NamedTuple):
    """One tensor's place in its file: `dtype` in the format's words ("F32"), offsets in bytes from the data's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def crc32_of_array(array: NDArray[Any]) -> int:
    """CRC-32 of the bytes of a C-contiguous array, which are also its bytes in the file."""
    return zlib.crc32(array.reshape(-1).view(np.uint8).data)


class TensorFile:
    """An open safetensors file with a fully checked header. A context manager.

    Opening reads the header alone. Nothing is mapped into memory, so a file that shrinks while it is read raises an
    error instead of ending the process.

    Args:
        path: the file. A link is followed; anything but an ordinary file is refused.

    Raises:
        CheckpointError: the file is missing, cannot be read, or breaks the rules of the format.
    """

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open_regular(self.path))
            try:
                self.entries, self._data_start = _read_header(self._file, self.path)
                self._tensors = stack.enter_context(safe_open(self.path, framework="numpy", backend="pread"))
                self.metadata = self._tensors.metadata() or {}
                replaced = not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"cannot be read: {error}", path=self.path) from error
            if replaced:
                raise CheckpointError("was replaced while it was opened", path=self.path)
            self._open = stack.pop_all()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays already read stay valid."""
        self._open.close()

    def read(self, name: str) -> NDArray[Any]:
        """Tensor `name` as a new array of its stored type. BF16, which NumPy lacks, gives uint16 with the same bits.

        Raises:
            CheckpointError: the type has no NumPy counterpart, or the file cannot be read any more.
        """
        from safetensors import SafetensorError

        entry = self.entries[name]
        try:
            if entry.dtype == "BF16":
                self._file.seek(self._data_start + entry.begin)
                return np.fromfile(self._file, "<u2", math.prod(entry.shape)).reshape(entry.shape)
            array: NDArray[Any] = self._tensors.get_tensor(name)
            return array
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"of type {entry.dtype} cannot be read: {error}", path=self.path, tensor=name
            ) from error


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, TensorEntry], int]:
    """The entries of a safetensors file, and the byte where its data starts. Errors say more than the package's do."""
    size = os.fstat(file.fileno()).st_size
    beginning = file.read(8)
    length = int.from_bytes(beginning, "little")
    if not size:
        raise CheckpointError("is empty, a download or copy that was cut short: fetch it again", path=path)
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        if beginning.isascii() and beginning.decode().isprintable():
            text = short((beginning + file.read(52)).decode("utf-8", "replace"))
            raise CheckpointError(f"is a text that begins with {text}, no safetensors file: fetch it again", path=path)
        raise CheckpointError(
            f"is cut short, damaged or no safetensors file: of {size} bytes, its header should have {length} "
            f"(at most {MAX_HEADER_BYTES} are accepted)",
            path=path,
        )
    document = parse_json(file.read(length), path)
    if not isinstance(document, dict):
        raise CheckpointError("has a header that is no JSON object", path=path)
    document.pop("__metadata__", None)
    entries = {}
    for name, value in document.items():
        if problem := _problem(value):
            raise CheckpointError(problem, path=path, tensor=name)
        entries[name] = TensorEntry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])

    data_bytes, position = size - 8 - length, 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        problem = None
        if entry.begin != position:
            problem = f"starts at byte {entry.begin} of the data, but what comes before it ends at {position}"
        elif entry.end > data_bytes:
            problem = f"is cut short: it ends at byte {entry.end} of the data, and the file has {data_bytes}"
        if problem:
            raise CheckpointError(problem, path=path, tensor=name)
        position = entry.end
    if position != data_bytes:
        raise CheckpointError(f"has {data_bytes - position} bytes after its last tensor", path=path)
    return entries, 8 + length


def _problem(entry: Any) -> str | None:
    """The problem of one tensor's entry in the header; None if it has none."""

    def are_sizes(values: Any) -> bool:
        return (
            isinstance(values, list) and len(values) <= 32 and all(type(n) is int and 0 <= n < 1 << 48 for n in values)
        )

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        return f"has the unknown type {dtype!r:.40}"
    if not are_sizes(shape):
        return f"has the impossible shape {shape!r:.80}"
    if not are_sizes(offsets) or len(offsets) != 2:
        return f"has the impossible data_offsets {offsets!r:.80}"
    needed, given = math.prod(shape) * _ITEM_BYTES[dtype], offsets[1] - offsets[0]
    return None if needed == given else f"of type {dtype} and shape {shape} needs {needed} bytes, not {given}"


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as a safetensors file, without a copy of them. The same arrays give the same bytes.

    The file is not written atomically: pass a path inside `atomic_folder.replace_files`.

    Args:
        path: the file to create.
        tensors: arrays of any number of dimensions by name.
        metadata: texts for the header's `__metadata__`.

    Raises:
        safetensors.SafetensorError: an array's type is not one the format knows.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.safetensors"
    >>> write_tensors(path, {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), dtype=np.int32)})
    >>> with TensorFile(path) as file:
    ...     print(file.entries["b"].shape, file.read("a"))
    (2, 2) [0. 1. 2.]
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    fixed = dict(metadata or {})
    with open(path, "wb") as file:  # the mode by the umask: save_file would let nobody else read the file
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    try:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, path, fixed or None)
    except SafetensorError as error:
        if found := re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error)):
            raise OSError(int(found[2]), found[1]) from error
        raise
    if fixed:  # save_file's order of the metadata changes from run to run; a fixed order has the same length
        with open(path, "r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            header = {**json.loads(file.read(length)), "__metadata__": fixed}
            file.seek(8)
            file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length))
    os.chmod(path, mode)
