"""Muon: hidden matrices move along the orthogonal factor of their momentum, everything else by AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from soma_native._checks import FLOAT32_MAX, choice, integer, number
from soma_native.core import _core
from soma_native.model.model import Model
from soma_native.optim.optimizer import Optimizer

COEFFICIENTS = ("polar_express", "classic")


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices between hidden activations, AdamW for everything else.

    Of each matrix, with its gradient G: `M = momentum M + (1 - momentum) G`, then `U = (1 - momentum) G + momentum M`.
    O is the orthogonal factor of U, by five polynomials. `W -= lr (s O + weight_decay W)`, where
    `s = 0.2 sqrt(max(rows, columns))` gives O the size of AdamW's updates. So one learning rate and one decay serve
    both. Queries, keys and values are matrices of their own. Embeddings, head, gains and biases are AdamW's.

    A matrix of n rows and m >= n columns, or the reverse, takes `6 n^2 m + 14 n^3` floating-point operations a step in
    float32, and `12 n^2 m + 8 n^3` where the model trains in bfloat16.

    Args:
        model: whose parameters and gradients it works on.
        lr: learning rate.
        momentum: in [0, 1); the attribute `momentum` may be changed from step to step.
        betas: decay rates of AdamW's moments, each in [0, 1).
        weight_decay: of matrices, embeddings and head.
        max_grad_norm: gradients are scaled by ``min(1, max_grad_norm / (norm + 1e-6))``; ``None`` or 0 turns it off.
        eps: of AdamW.
        cautious: a parameter does not decay where its update has the other sign (arXiv 2510.12402).
        adamw_weight_decay: of what is AdamW's; ``None`` means the decay of matrices.
        coefficients: of the polynomials: "polar_express" (arXiv 2505.16932), or "classic", one five times.
        head_blocks: heads of attention that are one matrix in q, k, v and the projection back; ``None`` means all.

    Raises:
        TypeError: an option is not a number; the message names it.
        ValueError: an option is out of range; likewise.

    >>> from soma_native import Model, ModelConfig
    >>> model = Model(ModelConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=2, d_ff=16, max_seq_len=4))
    >>> optimizer = Muon(model, lr=1e-2)
    >>> before = model.loss_and_grad([1, 2, 3], [2, 3, 4])
    >>> norm = optimizer.step()
    >>> model.loss([1, 2, 3], [2, 3, 4]) < before
    True
    """

    _kinds = ("momentum", "first_moment", "second_moment")

    def __init__(
        self,
        model: Model,
        lr: float = 3e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
        max_grad_norm: float | None = 1.0,
        eps: float = 1e-8,
        cautious: bool = False,
        adamw_weight_decay: float | None = None,
        coefficients: str = "polar_express",
        head_blocks: int | None = None,
    ) -> None:
        super().__init__(model, lr, weight_decay)
        self.momentum = number("momentum", momentum, least=0, below=1)
        decay = adamw_weight_decay
        self._core = _core.muon(
            model._core,
            **self._common(betas, eps, max_grad_norm, cautious),
            adamw_weight_decay=-1 if decay is None else number("adamw_weight_decay", decay, least=0, most=FLOAT32_MAX),
            classic=choice("coefficients", coefficients, COEFFICIENTS) == "classic",
            head_blocks=0 if head_blocks is None else integer("head_blocks", head_blocks, 1, 2**31),
        )
        self._options = {
            "betas": betas,
            "max_grad_norm": max_grad_norm,
            "eps": eps,
            "cautious": cautious,
            "adamw_weight_decay": adamw_weight_decay,
            "coefficients": coefficients,
            "head_blocks": head_blocks,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its model, and copied likewise: a deep copy of both together is a pair again."""
        options = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay, **self._options}
        return _muon_of, (self.model, options, self.step_count, self.state())

    def _momentum(self) -> float:
        return number("momentum", self.momentum, least=0, below=1)


def _muon_of(model: Model, options: dict[str, Any], steps: int, state: dict[str, npt.NDArray[np.float32]]) -> Muon:
    optimizer = Muon(model, **options)
    optimizer._restore(steps, state)
    return optimizer


_muon_of.__module__ = "soma_native"  # pickles name it so, wherever this module lies
