"""The parts of a run that first trains teachers: which model is trained, in what time, where the others are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from soma_native.checkpoint import load_model, save
from soma_native.errors import CheckpointError
from soma_native.model.model import Model

TEACHERS = ".soma-teachers"  # the folder of the kept models, inside that of the run
STUDENT = "student"
FINISHED = ("finished", "early stopping")  # reasons after which nothing is left to train


@dataclass
class Phase:
    """A part of a run: the training of a teacher, or of the model itself.

    Attributes:
        teacher: its number, from 1; None in the part of the model itself.
        began: seconds of the run at which the part began.
        kept: fingerprints of the models that the run needs to go on, by their names: a teacher's is its number, and
            "student" is the model before its first step.
    """

    teacher: int | None = None
    began: float = 0.0
    kept: dict[str, str] = field(default_factory=dict)

    def end(self, seconds: float, teachers: int, length: float) -> float:
        """The second of the run at which this part ends: a teacher gets `length` times what the model gets."""
        if self.teacher is None:
            return seconds
        left = teachers - self.teacher + 1
        return self.began + max(0.0, seconds - self.began) * length / (1 + left * length)

    def following(self, teachers: int, began: float) -> Phase:
        """The part after that of a teacher."""
        assert self.teacher is not None
        return Phase(self.teacher + 1 if self.teacher < teachers else None, began, self.kept)

    def keep(self, folder: Path, name: str, model: Model) -> None:
        """Save a model that the run in `folder` needs to go on."""
        save(folder / TEACHERS / name, model, None)
        self.kept[name] = fingerprint(model)

    def load(self, folder: Path, name: str, like: Model) -> Model:
        """A kept model, in the precision and on the device of another.

        Raises:
            CheckpointError: it is missing, damaged, or another.
        """
        place = folder / TEACHERS / name
        mend = "put it back, or begin the run anew"
        if not os.path.lexists(place):
            raise CheckpointError(f"is missing, and the run in {folder} needs it to go on: {mend}", path=place)
        model = load_model(place, like.precision, like.device)
        model._evaluate_in(like.evaluation_precision)
        if fingerprint(model) != self.kept.get(name):
            raise CheckpointError(f"holds another model than the run in {folder} left there: {mend}", path=place)
        return model


def new_teacher(student: Model, seed: int, number: int) -> Model:
    """An untrained model of the student's shape."""
    model = Model(student.config, teacher_seed(seed, number), student.precision, student.device)
    model._evaluate_in(student.evaluation_precision)
    return model


def teacher_seed(seed: int, number: int | None) -> int:
    """The seed of teacher `number` in a run of this seed; that of the run for None. No other usual run has it."""
    return seed if number is None else (seed + (number << 32)) % 2**64


def forget(folder: Path) -> None:
    """Remove the kept models."""
    shutil.rmtree(folder / TEACHERS, ignore_errors=True)


def fingerprint(model: Model) -> str:
    """A digest of shape and weights."""
    digest = hashlib.blake2b(json.dumps(model.config.to_dict(), sort_keys=True).encode(), digest_size=16)
    for name, array in model.parameters().items():
        digest.update(name.encode())
        digest.update(array.data)
    return digest.hexdigest()
