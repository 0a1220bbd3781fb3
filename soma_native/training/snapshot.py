"""A copy of a model's weights, which is saved later in the place of the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soma_native.model.model import Model


class Snapshot:
    """A copy of a model's weights that `save` accepts in place of a model."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.num_parameters = model.num_parameters
        self._settings = model._settings
        self._parameters = {name: array.copy() for name, array in model.parameters().items()}

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """The copies, by name."""
        return self._parameters
