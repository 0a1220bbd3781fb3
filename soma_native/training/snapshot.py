"""A copy of a model's weights, which is saved later in the place of the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soma_native.model.model import Model


class Snapshot:
    """A copy of a model's weights, or other weights of its shapes, that `save` accepts in place of a model."""

    def __init__(self, model: Model, parameters: dict[str, NDArray[np.float32]] | None = None) -> None:
        self.config = model.config
        self.num_parameters = model.num_parameters
        self._settings = model._settings
        if parameters is None:
            parameters = {name: array.copy() for name, array in model.parameters().items()}
        self._parameters = parameters

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """The copies, by name."""
        return self._parameters
