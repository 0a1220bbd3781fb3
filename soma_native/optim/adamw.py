"""AdamW with decoupled weight decay and global-norm clipping, in one pass over the parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from soma_native._checks import FLOAT32_LEAST, FLOAT32_MAX, instance, number, pair
from soma_native.core import _core
from soma_native.model.model import Model


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2).

    Args:
        model: the model whose parameters are updated from its gradients.
        lr: learning rate.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: added to the denominator; above 0, because the rest is 0 for a parameter that never had a gradient.
        weight_decay: the decay of matrices and embeddings; norms and biases do not decay.
        max_grad_norm: gradients are scaled by ``min(1, max_grad_norm / (norm + 1e-6))``; ``None`` or 0 turns it off.

    Raises:
        TypeError: an option is not a number. The message names it.
        ValueError: an option is out of range. The message names it.

    >>> from soma_native import Model, ModelConfig
    >>> model = Model(ModelConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=4))
    >>> optimizer = AdamW(model, lr=1e-2)
    >>> before = model.loss_and_grad([1, 2, 3], [2, 3, 4])
    >>> norm = optimizer.step()
    >>> model.loss([1, 2, 3], [2, 3, 4]) < before
    True
    """

    def __init__(
        self,
        model: Model,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        instance("model", model, Model)
        beta1, beta2 = pair("betas", betas, least=0, below=1)
        self.model = model
        self.lr = number("lr", lr, least=0, most=FLOAT32_MAX)
        self._options = betas, eps, weight_decay, max_grad_norm
        self._core = _core.AdamW(
            model._core,
            lr=self.lr,
            beta1=beta1,
            beta2=beta2,
            eps=number("eps", eps, least=FLOAT32_LEAST, most=FLOAT32_MAX),
            weight_decay=number("weight_decay", weight_decay, least=0, most=FLOAT32_MAX),
            max_grad_norm=0.0 if max_grad_norm in (None, math.inf) else number("max_grad_norm", max_grad_norm, least=0),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy with the model: a deep copy of both keeps the copied optimizer on the copied model."""
        moments = self.first_moments(), self.second_moments()
        return _adamw_of, (self.model, self.lr, self._options, self.step_count, *moments)

    def __repr__(self) -> str:
        return f"AdamW(lr={self.lr:g}, step_count={self.step_count}, model={self.model!r})"

    def step(self, lr: float | None = None) -> float:
        """Clip the gradients, update the parameters, and set the gradients to zero.

        Args:
            lr: learning rate of this step; ``None`` takes ``self.lr``.

        Returns:
            The global gradient norm before clipping.

        Raises:
            FloatingPointError: the norm is not finite. Nothing was updated.
        """
        return self._core.step(self.lr if lr is None else number("lr", lr))

    @property
    def step_count(self) -> int:
        """Steps taken so far; bias correction depends on it."""
        return self._core.step_count

    @step_count.setter
    def step_count(self, value: int) -> None:
        self._core.step_count = value

    def first_moments(self) -> dict[str, npt.NDArray[np.float32]]:
        """Running means of the gradients, as writable views by parameter name."""
        return self._core.first_moments()

    def second_moments(self) -> dict[str, npt.NDArray[np.float32]]:
        """Running means of the squared gradients, as writable views by parameter name."""
        return self._core.second_moments()


def _adamw_of(
    model: Model,
    lr: float,
    options: tuple[Any, ...],
    steps: int,
    first: dict[str, npt.NDArray[np.float32]],
    second: dict[str, npt.NDArray[np.float32]],
) -> AdamW:
    optimizer = AdamW(model, lr, *options)
    optimizer.step_count = steps
    for mine, theirs in ((optimizer.first_moments(), first), (optimizer.second_moments(), second)):
        for name, array in theirs.items():
            mine[name][...] = array
    return optimizer


_adamw_of.__module__ = "soma_native"  # the name in pickles, which stays if this module moves
