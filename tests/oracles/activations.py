"""The activations of reference.py in float64, each with its gradient; complex-safe in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

GELU_SCALE = float(np.sqrt(2.0 / np.pi))
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(160)  # of an integral over [-1, 1]
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def relu(x: Array) -> Array:
    """max(x, 0), by the real part."""
    return x * (x.real > 0)


def relu_backward(dy: Array, x: Array) -> Array:
    """Gradient dx of y = relu(x); 0 at x = 0."""
    return dy * (x.real > 0)


def gelu_tanh(x: Array) -> Array:
    """GPT-2's GELU: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1.0 + np.tanh(GELU_SCALE * (x + 0.044715 * x**3)))


def gelu_tanh_backward(dy: Array, x: Array) -> Array:
    """Gradient dx of y = gelu_tanh(x)."""
    t = np.tanh(GELU_SCALE * (x + 0.044715 * x**3))
    return dy * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3 * 0.044715 * x * x))


def normal_density(x: Array) -> Array:
    """exp(-x^2 / 2) / sqrt(2 pi)."""
    return np.asarray(np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi))


def normal_cdf(x: Array) -> Array:
    """Phi(x): erfc(-x / sqrt(2)) / 2; of a complex x, which math.erfc does not take, 1/2 + the density's integral."""
    if not np.iscomplexobj(x):
        return np.asarray(0.5 * erfc(-x / np.sqrt(2.0)))
    inside = normal_density(np.multiply.outer(x, (NODES + 1) / 2))
    return np.asarray(0.5 + 0.5 * x * (inside @ NODE_WEIGHTS))


def gelu(x: Array) -> Array:
    """x Phi(x): the GELU of Hendrycks & Gimpel (2016) itself."""
    return x * normal_cdf(x)


def gelu_backward(dy: Array, x: Array) -> Array:
    """Gradient dx of y = gelu(x)."""
    return dy * (normal_cdf(x) + x * normal_density(x))


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]] = {
    "none": (lambda x: x, lambda dy, x: dy),
    "relu": (relu, relu_backward),
    "gelu_tanh": (gelu_tanh, gelu_tanh_backward),
    "gelu": (gelu, gelu_backward),
}
