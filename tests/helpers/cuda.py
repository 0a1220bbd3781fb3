"""The CUDA kernels in their emulation, called by ctypes: matrices on the device, the structs of ops.h."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

from helpers.orders import in_every_order as in_every_order
from oracles.ops import Array, round_bfloat16

lib = ctypes.CDLL(str(Path(os.environ["SOMA_CUDA_EMULATED"]) / "libsoma_cuda_emulated.so"))
F, I64, POINTER = ctypes.c_float, ctypes.c_int64, ctypes.c_void_p
lib.soma_allocate.restype = POINTER
for name in ("soma_sum_squares", "soma_muon_momentum"):
    getattr(lib, name).restype = ctypes.c_double

LAYER_NORM, RMS_NORM = 1, 2


def struct(name: str, **fields: Any) -> Any:
    """A struct of ops.h."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


PLACE = {"data": POINTER, "rows": I64, "cols": I64, "ld": I64, "pairs": ctypes.c_bool}
Matrix = struct("Matrix", **PLACE)
ConstMatrix = struct("ConstMatrix", **PLACE, transposed=ctypes.c_bool, panels=POINTER, panels_transposed=POINTER)
NormWeights = struct("NormWeights", gamma=POINTER, beta=POINTER, kind=ctypes.c_int32)
NormStats = struct("NormStats", mean=POINTER, rstd=POINTER)
Dropout = struct("Dropout", rate=ctypes.c_double, key=ctypes.c_uint64, first_row=I64)
AdamWRange = struct("AdamWRange", offset=I64, size=I64, decays=ctypes.c_bool)
AdamWOptions = struct(
    "AdamWOptions", lr=F, beta1=F, beta2=F, eps=F, grad_scale=F, step=I64, weight_decay=F, cautious=ctypes.c_bool
)
MuonOptions = struct("MuonOptions", lr=F, scale=F, weight_decay=F, cautious=ctypes.c_bool)
BOOL = ctypes.c_bool
Epilogue = struct(
    "Epilogue",
    bias=POINTER,
    residual=POINTER,
    dropout=Dropout,
    relu=BOOL,
    gelu=POINTER,
    gelu_erf=BOOL,
    gelu_input=POINTER,
    gelu_output=POINTER,
    relu_output=POINTER,
    swiglu=POINTER,
    rotated=POINTER,
    swiglu_gradient=POINTER,
    accumulate=BOOL,
    column_sums=POINTER,
    symmetric=BOOL,
    quadratic=POINTER,
)
Quadratic = struct("Quadratic", constant=F, linear=F, square=F, x=POINTER)
SwigluGradient = struct("SwigluGradient", hidden=ConstMatrix, d_hidden=Matrix, output=Matrix)
Rotation = struct("Rotation", turns=POINTER, q_gain=POINTER, k_gain=POINTER, eps=F)
AttentionShape = struct("AttentionShape", batch=I64, length=I64, heads=I64, head_size=I64, kv_heads=I64, scale=F)
RotatedHeads = struct("RotatedHeads", rotation=Rotation, shape=AttentionShape, qkv=Matrix)
RotationGradient = struct("RotationGradient", rotation=Rotation, before=ConstMatrix, q_gain=POINTER, k_gain=POINTER)
RowScores = struct("RowScores", logprobs=POINTER, ranks=POINTER, top=I64, top_ids=POINTER, top_logprobs=POINTER)

STRUCTS = (Matrix, ConstMatrix, NormWeights, NormStats, Dropout, AdamWRange, AdamWOptions, MuonOptions)
STRUCTS += (Epilogue, Quadratic, SwigluGradient, RotatedHeads, RotationGradient, RowScores)
sizes = (I64 * len(STRUCTS))()
lib.soma_sizes(sizes)
assert list(sizes) == [ctypes.sizeof(s) for s in STRUCTS], "the structs here are not those of ops.h"


class Memory:
    """Bytes of the device, released with this object."""

    def __init__(self, size: int) -> None:
        """Allocate; nobody has written there yet."""
        self.address = lib.soma_allocate(I64(size))
        assert self.address is not None, "the emulated device is out of memory"

    def __del__(self) -> None:
        """Release."""
        lib.soma_release(POINTER(self.address))


class Numbers:
    """An array on the device, by default with the values of `x`."""

    def __init__(self, x: Array, upload: bool = True) -> None:
        """Copy x to the device, or make room for what a kernel writes."""
        self.host = np.array(x, order="C")
        self.memory = Memory(self.host.nbytes)
        self.pointer = POINTER(self.memory.address)
        if upload:
            lib.soma_upload(self.pointer, self.host.ctypes.data_as(POINTER), I64(self.host.nbytes))

    def read(self) -> Array:
        """What is there now."""
        lib.soma_download(self.host.ctypes.data_as(POINTER), self.pointer, I64(self.host.nbytes))
        return self.host.copy()


class DeviceMatrix:
    """A matrix (rows, cols) on the device, as float32 or as pairs of bfloat16 with zeros behind each row."""

    def __init__(self, x: Array, pairs: bool = False, upload: bool = True, transposed: bool = False) -> None:
        """Copy x to the device, or make room for a result of its shape; transposed: the operand is x^T."""
        self.rows, self.cols = x.shape
        self.pairs = pairs
        self.ld = (self.cols + 63) // 64 * 32 + 16 if pairs else self.cols
        self.units = (self.cols + 31) // 32 * 16  # of a row in pairs, with its zeros
        self.numbers = Numbers(self._stored(np.asarray(x, np.float32)), upload)
        place = (self.numbers.memory.address, self.rows, self.cols, self.ld, pairs)
        self.out = ctypes.byref(self._owning(Matrix(*place)))
        self.operand = ctypes.byref(self._owning(ConstMatrix(*place, transposed, None, None)))
        self.pointer = self.numbers.pointer

    def _owning(self, struct: Any) -> Any:
        struct.owner = self.numbers  # the memory lives as long as somebody names it
        return struct

    def _stored(self, x: Array) -> Array:
        if not self.pairs:
            return np.ascontiguousarray(x)
        halves = np.full((self.rows, 2 * self.ld), 0xFFFF, np.uint16)  # NaN, where nobody may read
        halves[:, : 2 * self.units] = 0
        halves[:, : self.cols] = round_bfloat16(x).view(np.uint32) >> 16
        return halves

    def read(self) -> Array:
        """The numbers as float32; the zeros behind pairs are there."""
        stored = self.numbers.read()
        if not self.pairs:
            return stored
        assert not stored[:, self.cols : 2 * self.units].any()
        return (stored[:, : self.cols].astype(np.uint32) << 16).view(np.float32)


def empty(shape: tuple[int, int], pairs: bool = False) -> DeviceMatrix:
    """Room for a result."""
    return DeviceMatrix(np.zeros(shape, np.float32), pairs, upload=False)
