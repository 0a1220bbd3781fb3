"""AdamW with decoupled weight decay and global-norm clipping, in one pass over the parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soma_native.core import _core
from soma_native.model.model import Model
from soma_native.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2).

    Args:
        model: the model whose parameters are updated from its gradients.
        lr: learning rate.
        betas: decay rates of the first and the second moment, each in [0, 1).
        eps: added to the denominator; above 0, because the rest is 0 for a parameter that never had a gradient.
        weight_decay: the decay of matrices and embeddings; norms and biases do not decay.
        max_grad_norm: gradients are scaled by ``min(1, max_grad_norm / (norm + 1e-6))``; ``None`` or 0 turns it off.
        cautious: a parameter does not decay where its update has the other sign (arXiv 2510.12402).

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

    _kinds = ("first_moment", "second_moment")

    def __init__(
        self,
        model: Model,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_grad_norm: float | None = 1.0,
        cautious: bool = False,
    ) -> None:
        super().__init__(model, lr, weight_decay)
        self._core = _core.adamw(model._core, **self._common(betas, eps, max_grad_norm, cautious))
        self._options = betas, eps, max_grad_norm, cautious

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its model, and copied likewise: a deep copy of both together is a pair again."""
        betas, *others = self._options
        options = betas, others[0], self.weight_decay, *others[1:]
        return _adamw_of, (self.model, self.lr, options, self.step_count, self.first_moments(), self.second_moments())

    def first_moments(self) -> dict[str, npt.NDArray[np.float32]]:
        """Running means of the gradients, as writable views by parameter name."""
        return self._core.state("first_moment")

    def second_moments(self) -> dict[str, npt.NDArray[np.float32]]:
        """Running means of the squared gradients, as writable views by parameter name."""
        return self._core.state("second_moment")


def _adamw_of(
    model: Model,
    lr: float,
    options: tuple[Any, ...],
    steps: int,
    first: dict[str, npt.NDArray[np.float32]],
    second: dict[str, npt.NDArray[np.float32]],
) -> AdamW:
    optimizer = AdamW(model, lr, *options)
    optimizer._restore(steps, {f"first_moment.{name}": array for name, array in first.items()})
    optimizer._restore(steps, {f"second_moment.{name}": array for name, array in second.items()})
    return optimizer


_adamw_of.__module__ = "soma_native"  # the name in pickles, which stays if this module moves
