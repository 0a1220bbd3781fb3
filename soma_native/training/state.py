"""`training_state.safetensors`, from which a training run resumes bit for bit: weights, moments and position.

Its tensors are `parameter.<name>`, `average.<name>` where there is an average, `best.<name>` where the model of the
folder is a later one than the best, and of the optimizer
`first_moment.<name>`, `second_moment.<name>` (AdamW) and `momentum.<name>` (matrices of Muon).

The file depends on no other file of the folder, so that after any crash it holds a single moment of a single run.
Generation never reads it.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soma_native.checkpoint.folder import foreign_models, model_files
from soma_native.errors import CheckpointError
from soma_native.files.atomic_folder import FolderView
from soma_native.files.safetensors_io import TensorFile, crc32_of_array, write_tensors
from soma_native.model.model import Model
from soma_native.optim.average import WeightAverage
from soma_native.optim.optimizer import Optimizer
from soma_native.training.phase import FINISHED, Phase

logger = logging.getLogger("soma_native")

STATE_FILE = "training_state.safetensors"
RUN = "a training run"
_FORMAT = 1


@dataclass
class TrainingState:
    """The state of a run without its arrays.

    Attributes:
        step: optimizer steps done. With the seed, it decides the next data.
        identity: settings, model and fingerprints of the data, which must be equal in a resumed run.
        config: the `TrainConfig` as a dict.
        isa: the instruction set level of the process that saved the state; another level rounds differently.
        history: the `History` as a dict.
        loss_sum, pairs: sums over the steps since the last record: training loss times pairs, and pairs.
        step_seconds, seconds: time of the steps since the last record; wall-clock time of the whole run.
        pace: what a run by time has measured, as `Pace.to_dict`.
        phase: the `Phase` of a run that trains teachers, as a dict.
        best: whether the file has the weights of the lowest validation loss, for the model of the folder is later.
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
    pace: dict[str, float | None] | None = None
    phase: dict[str, Any] | None = None
    best: bool = False


def state_arrays(
    model: Model, optimizer_state: dict[str, NDArray[np.float32]], average: WeightAverage | None
) -> dict[str, NDArray[Any]]:
    """The arrays of a run with their names in the file; on the CPU they are not copied."""
    arrays = {f"parameter.{name}": array for name, array in model.parameters().items()}
    arrays |= optimizer_state
    if average is not None:
        arrays |= {f"average.{name}": array for name, array in average.values().items()}
    return arrays


def write_array(
    model: Model, optimizer: Optimizer, average: WeightAverage | None, name: str, array: NDArray[np.float32]
) -> None:
    """Set one of `state_arrays`, unless it is of an optimizer on another rank."""
    kind, _, parameter = name.partition(".")
    if kind == "parameter":
        model.write(parameter, array)
    elif kind == "average" and average is not None:
        average.write(parameter, array)
    elif optimizer._owned is None:
        optimizer.write(name, array)
    elif parameter in optimizer._owned:
        optimizer.write(name, array[slice(*optimizer._owned[parameter])])


def write_state(path: Path, state: TrainingState, optimizer_steps: int, arrays: dict[str, NDArray[Any]]) -> None:
    """Write the state file to `path`, inside `replace_files`. Its header holds checksums of everything."""
    content = json.dumps({"format": _FORMAT, "optimizer_steps": optimizer_steps, **asdict(state)}, allow_nan=False)
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
    """Read the state of the run in `folder`, and the number of steps of its optimizer.

    Raises:
        FileNotFoundError: there is no state in the folder.
        CheckpointError: the file is damaged, or of an unknown version.
    """
    path = _state_path(folder)
    with TensorFile(path) as file:
        metadata = file.metadata
    content = metadata.get("state", "")
    if str(zlib.crc32(content.encode())) != metadata.get("state_crc32"):
        raise CheckpointError("is damaged: the checksum of its header does not fit", path=path)
    values = json.loads(content)
    if values.pop("format", None) != _FORMAT:
        raise CheckpointError("was written by another version in an unknown format", path=path)
    steps = values.pop("optimizer_steps")
    return TrainingState(**values), steps


def phase_of(folder: str | os.PathLike[str]) -> tuple[Phase, bool]:
    """The part in which the run in `folder` stands, and whether the run is finished. Raises as `read_state`."""
    state, _ = read_state(folder)
    phase = Phase(**(state.phase or {}))
    return phase, phase.teacher is None and state.history["stop_reason"] in FINISHED


def check_arrays(folder: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See that the run in `folder` has arrays of these shapes, and no others, all of them whole.

    Raises:
        FileNotFoundError: there is no state in the folder.
        CheckpointError: a tensor is missing, of another shape, or damaged.
    """
    path = _state_path(folder)
    with TensorFile(path) as file:
        sums = json.loads(file.metadata.get("tensor_crc32", "{}"))
        for name in file.entries.keys() - shapes.keys():
            raise CheckpointError("belongs to no parameter of this model", path=path, tensor=name)
        for name, shape in shapes.items():
            entry = file.entries.get(name)
            if entry is None:
                raise CheckpointError("is missing", path=path, tensor=name)
            if entry.shape != shape or entry.dtype != "F32":
                raise CheckpointError(
                    f"is {entry.dtype} of shape {entry.shape}; the model needs F32 of {shape}",
                    path=path,
                    tensor=name,
                )
            array = file.read(name)
            if crc32_of_array(array) != sums.get(name):
                raise CheckpointError("is damaged: its checksum does not fit", path=path, tensor=name)
            if not np.isfinite(array).all():
                raise CheckpointError("has values that are not finite", path=path, tensor=name)


def read_arrays(folder: str | os.PathLike[str], names: Iterable[str]) -> Iterator[NDArray[np.float32]]:
    """These arrays of the run in `folder`, one after another."""
    with TensorFile(_state_path(folder)) as file:
        for name in names:
            yield file.read(name)


def held_by(folder: Path) -> str | None:
    """What of a run or a model lies in the folder, so that a new run may not begin there unasked; None for nothing."""
    if os.path.lexists(FolderView(folder).path(STATE_FILE)):
        return RUN
    found = model_files(folder) or [name for name in ("history.json", "history.csv") if os.path.lexists(folder / name)]
    if found:
        return f"{found[0]}, which training would replace"
    foreign = foreign_models(folder)
    return f"another model, {foreign[0]}" if foreign else None


def warn_of_what_is_replaced(folder: Path) -> None:
    """Log what of another run or model lies in the folder of a new run."""
    if (folder / STATE_FILE).exists():
        logger.warning("%s holds another training run, which the first checkpoint will replace", folder)
    elif found := model_files(folder):
        logger.warning("%s holds a model (%s), which the first checkpoint will replace", folder, found[0])
