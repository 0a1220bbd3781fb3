"""The safetensors format, read with suspicion and written without copies: NumPy only, no tensor is trusted before its
place, shape and type in the file have been checked. (8-byte header length, JSON header, then the tensors' bytes.)
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError

__all__ = ["TensorEntry", "TensorFile", "crc32_of_array", "open_regular", "parse_json", "write_tensors"]

MAX_HEADER_BYTES = 16 << 20  # the largest models published so far have headers below 1 MiB
_ALIGNMENT = 8

# Bytes per element of every type the format knows; those we can hand out as arrays also have a NumPy type.
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_NUMPY_TYPE = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_TYPE_NAME = {np.dtype(code): name for name, code in _NUMPY_TYPE.items()}


class TensorEntry(NamedTuple):
    """Where one tensor stands in its file: `dtype` as the format names it ("F32"), offsets from the data's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_json(data: bytes, path: Path) -> Any:
    """Parse `data`, read from `path`, as strict JSON: UTF-8, no NaN, no repeated keys, no endless nesting.

    Raises:
        CheckpointError: naming `path`.
    """

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {repeated!r} appears twice")
        return found

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except RecursionError:
        raise CheckpointError("is not usable JSON: nested too deeply", path=path) from None
    except (
        ValueError
    ) as error:  # JSONDecodeError, UnicodeDecodeError, integers of thousands of digits, and the two above
        raise CheckpointError(f"is not valid JSON: {error}", path=path) from None


def crc32_of_array(array: NDArray[Any]) -> int:
    """CRC-32 of the bytes of a C-contiguous array, as the file will hold them."""
    return zlib.crc32(_bytes_of(array))


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def open_regular(path: Path) -> BinaryIO:
    """Open an ordinary file for reading; links are followed, and what is no ordinary file is refused, never waited for.

    Raises:
        CheckpointError: naming `path`: missing, a folder, a pipe or device, a broken link, not readable.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError("is a folder where a file is expected", path=path)
        if not stat.S_ISREG(mode):
            raise CheckpointError("is not an ordinary file (a pipe, socket or device)", path=path)
        return open(path, "rb")
    except FileNotFoundError:
        problem = "is a link to a file that does not exist" if os.path.islink(path) else "is missing"
        raise CheckpointError(problem, path=path) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", path=path) from error


class TensorFile:
    """An open safetensors file whose header has been checked in full; a context manager.

    After construction every entry is known to be of a known type, to hold exactly the bytes its shape asks for, and
    all entries together to fill the file without gap or overlap. Nothing larger than the header has been read.

    Args:
        path: the file; a link is followed, anything but an ordinary file is refused.

    Raises:
        CheckpointError: the file is missing, cannot be read, or is not what the format promises.
    """

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = open_regular(self.path)
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def close(self) -> None:
        """Close the file; arrays already read stay valid."""
        self._file.close()

    def read_into(self, name: str, out: NDArray[Any]) -> int:
        """Fill the C-contiguous array `out` with tensor `name`, byte by byte as stored; return the bytes' CRC-32.

        Raises:
            CheckpointError: `out` does not have the tensor's size, or the file cannot be read any more.
        """
        entry = self.entries[name]
        target = _bytes_of(out)
        if len(target) != entry.end - entry.begin:
            raise CheckpointError(
                f"has {entry.end - entry.begin} bytes, not {len(target)}", path=self.path, tensor=name
            )
        try:
            self._file.seek(self._data_start + entry.begin)
            done = 0
            while done < len(target):
                count = self._file.readinto(target[done:])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointError("is cut short", path=self.path, tensor=name)
                done += count
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", path=self.path, tensor=name) from error
        return zlib.crc32(target)

    def read(self, name: str) -> NDArray[Any]:
        """Tensor `name` as a new array of its stored type; BF16 comes as the uint16 of its bits.

        Raises:
            CheckpointError: the type has no NumPy counterpart, or the file cannot be read any more.
        """
        entry = self.entries[name]
        code = "<u2" if entry.dtype == "BF16" else _NUMPY_TYPE.get(entry.dtype)
        if code is None:
            raise CheckpointError(f"has the type {entry.dtype}, which cannot be read", path=self.path, tensor=name)
        array = np.empty(entry.shape, dtype=code)
        self.read_into(name, array)
        return array

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size < 8:
            raise CheckpointError(f"is cut short: {size} bytes are no safetensors file", path=self.path)
        try:
            (length,) = struct.unpack("<Q", self._file.read(8))
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"claims a header of {length} bytes (at most {MAX_HEADER_BYTES} are accepted): damaged, or no "
                    "safetensors file",
                    path=self.path,
                )
            if length > size - 8:
                raise CheckpointError(
                    f"is cut short: the header should have {length} bytes, and {size - 8} are there", path=self.path
                )
            header = self._file.read(length)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror or error}", path=self.path) from error
        self._data_start = 8 + length
        document = parse_json(header, self.path)
        if not isinstance(document, dict):
            raise CheckpointError("has a header that is no JSON object", path=self.path)
        metadata = document.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise CheckpointError("has a header whose __metadata__ is not a map of texts", path=self.path)
        self.metadata = metadata
        self.entries = {name: self._entry(name, value) for name, value in document.items()}
        self._check_layout(size - self._data_start)

    def _entry(self, name: str, value: Any) -> TensorEntry:
        def fail(problem: str) -> CheckpointError:
            return CheckpointError(problem, path=self.path, tensor=name)

        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise fail("is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _ITEM_BITS:
            raise fail(f"has the unknown type {dtype!r:.40}")
        if (
            not isinstance(shape, list)
            or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
            or len(shape) > 32
        ):
            raise fail(f"has the impossible shape {shape!r:.80}")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
            raise fail(f"has the impossible data_offsets {offsets!r:.80}")
        begin, end = offsets
        expected = math.prod(shape) * (_ITEM_BITS[dtype] // 8)
        if end - begin != expected:
            raise fail(f"of type {dtype} and shape {shape} needs {expected} bytes, its data_offsets give {end - begin}")
        return TensorEntry(dtype, tuple(shape), begin, end)

    def _check_layout(self, data_bytes: int) -> None:
        position = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != position:
                raise CheckpointError(
                    f"starts at byte {entry.begin} of the data, but what comes before it ends at {position}",
                    path=self.path,
                    tensor=name,
                )
            position = entry.end
            if position > data_bytes:
                raise CheckpointError(
                    f"is cut short: it ends at byte {position} of the data, and the file has {data_bytes}",
                    path=self.path,
                    tensor=name,
                )
        if position != data_bytes:
            raise CheckpointError(f"has {data_bytes - position} bytes after its last tensor", path=self.path)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as a safetensors file, straight from their own memory.

    The file is written in place, not atomically: hand in a path that nobody reads yet (see `atomic_folder`).

    Args:
        path: the file to create.
        tensors: C-contiguous arrays of any number of dimensions by name.
        metadata: texts for the header's `__metadata__`.

    Raises:
        TypeError: an array's type is not one the format knows.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.safetensors"
    >>> write_tensors(path, {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), dtype=np.int32)})
    >>> with TensorFile(path) as file:
    ...     print(file.entries["b"].shape, file.read("a"))
    (2, 2) [0. 1. 2.]
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    arrays: list[NDArray[Any]] = []
    position = 0
    for name, array in tensors.items():
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _TYPE_NAME:
            raise TypeError(f"tensor {name!r} has the type {array.dtype}, which safetensors cannot hold")
        flat = np.ascontiguousarray(array, dtype=dtype)
        header[name] = {
            "dtype": _TYPE_NAME[dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + flat.nbytes],
        }
        position += flat.nbytes
        arrays.append(flat)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for array in arrays:
            file.write(_bytes_of(array))
