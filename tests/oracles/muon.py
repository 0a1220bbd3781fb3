"""NumPy oracle of Muon in float64, as its papers have it: no Gram form, no halves of symmetric products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from oracles import reference as ref
from oracles.reference import Array, Params

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
CLASSIC = ((3.4445, -4.7750, 2.0315),) * 5


def orthogonal_factor(u: Array, coefficients: tuple[tuple[float, float, float], ...] = POLAR_EXPRESS) -> Array:
    """Five polynomials of u, scaled to a norm below 1."""
    x = u / (1.01 * np.linalg.norm(u) + 1e-6)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for a, b, c in coefficients:
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def is_hidden(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix between hidden activations."""
    return len(shape) == 2 and not any(part in name for part in ("wte", "wpe", "embed_tokens", "lm_head"))


def widths(name: str, config: ref.Config) -> list[int]:
    """The columns of each matrix that a parameter joins; [] if it is one matrix."""
    if any(part in name for part in ("c_attn", "w_qkv", "qkv_proj")):
        return [config.q_dim, config.kv_dim, config.kv_dim]
    return [config.d_ff, config.d_ff] if "gate_up" in name else []


def cut(name: str, matrix: Array, config: ref.Config, heads: int | None) -> Iterator[Array]:
    """Views of the matrices in one parameter: its parts, or blocks of `heads` heads of attention in each part."""
    found = widths(name, config)
    of_attention = "attn" in name
    axis = 1 if found and of_attention else 0
    for part in np.split(matrix, np.cumsum(found)[:-1], axis=1) if found else [matrix]:
        step = heads * config.head_size if heads is not None and of_attention else part.shape[axis]
        for first in range(0, part.shape[axis], step):
            yield part[:, first : first + step] if axis == 1 else part[first : first + step]


@dataclass
class Muon:
    """Muon on hidden matrices after clipping, AdamW on the rest."""

    config: ref.Config
    lr: float = 3e-3
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    cautious: bool = False
    adamw_weight_decay: float | None = None
    coefficients: tuple[tuple[float, float, float], ...] = POLAR_EXPRESS
    head_blocks: int | None = None
    m: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Everything else is AdamW's."""
        decay = self.weight_decay if self.adamw_weight_decay is None else self.adamw_weight_decay
        self.adamw = ref.AdamW(self.lr, self.betas, self.eps, decay, 0.0, self.cautious)

    def step(self, params: Params, grads: Params) -> float:
        """Update params in place; the norm before clipping."""
        total, scale = ref.clip_scale(grads, self.max_grad_norm)
        scaled = {name: g * scale for name, g in grads.items()}
        rest = {name: p for name, p in params.items() if not is_hidden(name, p.shape)}
        self.adamw.step(rest, {name: scaled[name] for name in rest})
        for name in params.keys() - rest.keys():
            g = scaled[name]
            self.m[name] = self.momentum * self.m.get(name, np.zeros_like(g)) + (1 - self.momentum) * g
            u = (1 - self.momentum) * g + self.momentum * self.m[name]
            pieces = (list(cut(name, x, self.config, self.head_blocks)) for x in (params[name], u))
            for w, part in zip(*pieces, strict=True):
                o = orthogonal_factor(part, self.coefficients)
                decays = w * o >= 0 if self.cautious else np.ones_like(w)
                w -= self.lr * (0.2 * np.sqrt(max(w.shape)) * o + self.weight_decay * w * decays)
        return total
