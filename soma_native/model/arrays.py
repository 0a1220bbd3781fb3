"""Arrays of a model that is on a GPU: copies that cannot be written to. The error of a write says what can."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class DeviceCopy(np.ndarray[Any, np.dtype[np.float32]]):
    """A copy of an array on a device. It cannot be written to. Arithmetic gives ordinary arrays."""

    instead = ""

    def __array_finalize__(self, source: Any) -> None:
        """Keep what to do instead in views."""
        self.instead = getattr(source, "instead", "")

    def __setitem__(self, key: Any, value: Any) -> None:
        """Refuse, unless this is a copy of the copy."""
        self._expect_writeable()
        super().__setitem__(key, value)

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, out: Any = (), **named: Any) -> Any:
        """Compute with ordinary arrays."""
        for array in out:
            if isinstance(array, DeviceCopy):
                array._expect_writeable()
        if out:
            named["out"] = tuple(_ordinary(array) for array in out)
        return getattr(ufunc, method)(*(_ordinary(array) for array in inputs), **named)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as an ordinary array."""
        return _ordinary(self).__reduce_ex__(protocol)

    def _expect_writeable(self) -> None:
        if not self.flags.writeable:
            raise ValueError(f"this array is a copy of what is on the GPU, and cannot be written to: {self.instead}")


def as_given(arrays: dict[str, Floats], instead: str) -> dict[str, Floats]:
    """The arrays of the core; where they cannot be written to, their error says what to do `instead`."""
    return {name: array if array.flags.writeable else _copy_of(array, instead) for name, array in arrays.items()}


def _copy_of(array: Floats, instead: str) -> DeviceCopy:
    copy = array.view(DeviceCopy)
    copy.instead = instead
    return copy


def _ordinary(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, DeviceCopy) else array
