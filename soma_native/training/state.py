"""The file that lets a training run continue bit for bit: weights, moments and position, `training_state.safetensors`.

It lies beside the model's files and needs none of them, so that whatever a crash leaves behind, what is resumed is one
moment of one run. Generating never reads it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native.errors import CheckpointError
from soma_native.files.atomic_folder import FolderView
from soma_native.files.safetensors_io import TensorFile, crc32_of_array, write_tensors
from soma_native.model.model import Model
from soma_native.optim.adamw import AdamW

STATE_FILE = "training_state.safetensors"
_FORMAT = 1


@dataclass
class TrainingState:
    """Where a run stands, without its arrays.

    Attributes:
        step: optimizer steps done; with the seed, it fixes which data comes next.
        identity: what must be the same for the run to be continued: settings, model, fingerprints of the data.
        config: the `TrainConfig` as a dict.
        isa: the instruction set level it ran on; another one rounds differently.
        history: the `History` as a dict.
        loss_sum, pairs: of the steps since the last record: training loss times pairs, and pairs.
        step_seconds, seconds: time in those steps; wall-clock time of the whole run.
    """

    step: int
    identity: dict[str, Any]
    config: dict[str, Any]
    isa: str
    history: dict[str, Any]
    loss_sum: float
    pairs: int
    step_seconds: float
    seconds: float


def _arrays(model: Model, optimizer: AdamW) -> Iterator[tuple[str, NDArray[Any]]]:
    """The live arrays of a run under the names they have in the file."""
    groups = {
        "parameter": model.parameters(),
        "first_moment": optimizer.first_moments(),
        "second_moment": optimizer.second_moments(),
    }
    for group, arrays in groups.items():
        for name, array in arrays.items():
            yield f"{group}.{name}", array


def write_state(path: Path, state: TrainingState, model: Model, optimizer: AdamW) -> None:
    """Write the state file to `path`, a place nobody reads yet; checksums of everything go into its header."""
    arrays = dict(_arrays(model, optimizer))
    content = json.dumps({"format": _FORMAT, "optimizer_steps": optimizer.step_count, **asdict(state)}, allow_nan=False)
    sums = {name: crc32_of_array(array) for name, array in arrays.items()}
    metadata = {"state": content, "state_crc32": str(zlib.crc32(content.encode())), "tensor_crc32": json.dumps(sums)}
    write_tensors(path, arrays, metadata)


def _state_path(folder: str | os.PathLike[str]) -> Path:
    path = FolderView(folder).path(STATE_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"{os.fspath(folder)}: nothing to resume: there is no {STATE_FILE} in it; begin a training there first"
        )
    return path


def read_state(folder: str | os.PathLike[str]) -> tuple[TrainingState, int]:
    """Read where the run in `folder` stands, and how many steps its optimizer had done.

    Raises:
        FileNotFoundError: there is no state in the folder.
        CheckpointError: the file is damaged, or of a version that is not known.
    """
    path = _state_path(folder)
    with TensorFile(path) as file:
        metadata = file.metadata
    content = metadata.get("state", "")
    if str(zlib.crc32(content.encode())) != metadata.get("state_crc32"):
        raise CheckpointError("is damaged: the checksum of its header does not fit", path=path)
    values = json.loads(content)
    if values.pop("format", None) != _FORMAT:
        raise CheckpointError("was written by another version, whose format is not known here", path=path)
    steps = values.pop("optimizer_steps")
    return TrainingState(**values), steps


def load_arrays(folder: str | os.PathLike[str], model: Model, optimizer: AdamW) -> None:
    """Copy weights and moments of the run in `folder` into `model` and `optimizer`: all of them, or none on an error.

    Raises:
        FileNotFoundError: there is no state in the folder.
        CheckpointError: a tensor is missing, of another shape, or damaged.
    """
    path = _state_path(folder)
    targets = dict(_arrays(model, optimizer))
    with TensorFile(path) as file:
        sums = json.loads(file.metadata.get("tensor_crc32", "{}"))
        for name in file.entries.keys() - targets.keys():
            raise CheckpointError("belongs to no parameter of this model", path=path, tensor=name)
        for name, target in targets.items():  # everything is read and checked before anything is changed
            entry = file.entries.get(name)
            if entry is None:
                raise CheckpointError("is missing", path=path, tensor=name)
            if entry.shape != target.shape or entry.dtype != "F32":
                raise CheckpointError(
                    f"is {entry.dtype} of shape {entry.shape}; the model needs F32 of {target.shape}",
                    path=path,
                    tensor=name,
                )
            array = file.read(name)
            if crc32_of_array(array) != sums.get(name):
                raise CheckpointError("is damaged: its checksum does not fit", path=path, tensor=name)
            if not np.isfinite(array).all():
                raise CheckpointError("has values that are not finite", path=path, tensor=name)
        for name, target in targets.items():
            target[...] = file.read(name)
