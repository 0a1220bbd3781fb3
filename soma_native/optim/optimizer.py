"""What every optimizer has: a learning rate, a weight decay, steps, and arrays that are saved with a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from soma_native._checks import FLOAT32_LEAST, FLOAT32_MAX, flag, instance, number, pair
from soma_native.core import _core
from soma_native.errors import ArgumentError
from soma_native.model.arrays import as_given
from soma_native.model.model import Model, as_floats

if TYPE_CHECKING:
    from typing_extensions import Self


class Optimizer:
    """The base of `AdamW` and `Muon`.

    Attributes:
        model: whose parameters and gradients it works on.
        lr, weight_decay: of a step that is not told others.
    """

    _kinds: ClassVar[tuple[str, ...]]  # of the arrays that are saved
    _core: _core.Optimizer
    _owned: dict[str, tuple[int, int]] | None = None  # what is updated here, where other processes update the rest

    @classmethod
    def part(cls, owned: Mapping[str, tuple[int, int]], model: Model, **options: Any) -> Self:
        """An optimizer that updates a part of the parameters, and has moments of it alone; `options` as for all.

        Of each parameter `owned` has the first row and the row after the last. A vector has a row for each element.
        AdamW's matrices may be cut at multiples of 16 rows; others are whole. The arrays of :meth:`state` are then
        those of these rows. The norm that clips is that of all gradients, and all are cleared. For processes that share
        out the work (ZeRO, arXiv 1910.02054, stage 1).
        """
        optimizer = cls.__new__(cls)
        optimizer._owned = dict(owned)
        optimizer.__init__(model, **options)  # type: ignore[misc]
        return optimizer

    def __init__(self, model: Model, lr: float, weight_decay: float) -> None:
        instance("model", model, Model)
        self.model = model
        self.lr = number("lr", lr, least=0, most=FLOAT32_MAX)
        self.weight_decay = number("weight_decay", weight_decay, least=0, most=FLOAT32_MAX)

    def _common(
        self, betas: tuple[float, float], eps: float, max_grad_norm: float | None, cautious: bool
    ) -> dict[str, Any]:
        """What the core wants to know of both, checked."""
        beta1, beta2 = pair("betas", betas, least=0, below=1)
        return {
            "lr": self.lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": number("eps", eps, least=FLOAT32_LEAST, most=FLOAT32_MAX),
            "weight_decay": self.weight_decay,
            "max_grad_norm": 0.0
            if max_grad_norm in (None, math.inf)
            else number("max_grad_norm", max_grad_norm, least=0),
            "cautious": flag("cautious", cautious),
            "owned": self._owned,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self.lr:g}, step_count={self.step_count}, model={self.model!r})"

    def step(self, lr: float | None = None, weight_decay: float | None = None) -> float:
        """Clips, updates the parameters, and sets the gradients to zero.

        Args:
            lr: learning rate of this step; ``None`` takes ``self.lr``.
            weight_decay: of this step; ``None`` takes ``self.weight_decay``.

        Returns:
            The global gradient norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite. Nothing was updated.
        """
        decay = self.weight_decay if weight_decay is None else number("weight_decay", weight_decay)
        return self._core.step(self.lr if lr is None else number("lr", lr), decay, self._momentum())

    def _momentum(self) -> float:
        return 0.0

    @property
    def step_count(self) -> int:
        """Steps taken so far; bias correction depends on it."""
        return self._core.step_count

    @step_count.setter
    def step_count(self, value: int) -> None:
        self._core.step_count = value

    def state(self) -> dict[str, npt.NDArray[np.float32]]:
        """The arrays that a run needs to go on: `first_moment.<parameter>` and so on.

        They are writable views on the CPU, and copies that cannot be written to on another device; there is `write`.
        """
        arrays = {f"{kind}.{name}": array for kind in self._kinds for name, array in self._core.state(kind).items()}
        return as_given(arrays, "optimizer.write(name, array) sets an array")

    def write(self, name: str, array: npt.ArrayLike) -> None:
        """Set the array of this name in :meth:`state`, on any device.

        Raises:
            TypeError, ValueError: there is no such array, it has another shape, or `array` holds no real numbers.
        """
        kind, _, parameter = name.partition(".")
        shapes = _core.parameter_shapes(self.model.config.core)
        if kind not in self._kinds or parameter not in shapes:
            raise ArgumentError("name", f"must be that of an array of state(), got {name!r}")
        shape = shapes[parameter]
        first, end = (self._owned or {}).get(parameter, (0, shape[0]))
        self._core.write(kind, parameter, as_floats(array, (end - first, *shape[1:])))

    def _restore(self, steps: int, state: dict[str, npt.NDArray[np.float32]]) -> None:
        self.step_count = steps
        for name, array in state.items():
            self.write(name, array)
