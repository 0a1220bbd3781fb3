"""AdamW, clipping and the int8 weights of generation, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oracles.ops import Array, Params


def clip_scale(grads: Params, max_norm: float) -> tuple[float, float]:
    """(global norm, factor on gradients): min(1, max_norm / (norm + 1e-6)) as in PyTorch; 1 where max_norm <= 0."""
    total = float(np.sqrt(sum(float((g * g).sum()) for g in grads.values())))
    return total, 1.0 if max_norm <= 0 else min(1.0, max_norm / (total + 1e-6))


@dataclass
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) after clipping; decoupled decay on tensors of two dimensions or more only."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    cautious: bool = False

    def __post_init__(self) -> None:
        """Start with no moments and no steps."""
        self.steps = 0
        self.m: Params = {}
        self.v: Params = {}

    def step(self, params: Params, grads: Params, lr: float | None = None) -> float:
        """Update params in place and return the norm before clipping."""
        rate = self.lr if lr is None else lr
        total, scale = clip_scale(grads, self.max_grad_norm)
        self.steps += 1
        b1, b2 = self.betas
        for name, p in params.items():
            g = grads[name] * scale
            self.m[name] = b1 * self.m.get(name, 0.0) + (1 - b1) * g
            self.v[name] = b2 * self.v.get(name, 0.0) + (1 - b2) * g * g
            m_hat = self.m[name] / (1 - b1**self.steps)
            v_hat = self.v[name] / (1 - b2**self.steps)
            update = m_hat / (np.sqrt(v_hat) + self.eps)
            if p.ndim >= 2:
                p -= rate * self.weight_decay * p * (update * p >= 0 if self.cautious else 1)
            p -= rate * update
        return total


def quantize_int8(w: Array) -> tuple[Array, Array]:
    """w(in, out) as whole numbers from -127 to 127 and one scale for each output: w is about weights * scales."""
    scales = np.abs(w).max(axis=0) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, 0).astype(np.float32)
    inverse[~np.isfinite(inverse)] = 0
    return np.clip(np.rint(w * inverse), -127, 127).astype(np.float32), scales.astype(np.float32)
