"""Error bounds that several tests share, and the complex-step derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from oracles.reference import Array, Config

COMPLEX_STEP = 1e-30
BFLOAT16_ROUNDOFF = 2.0**-8  # largest relative error of one rounding; the next bfloat16 after 1 is 1 + 2**-7


def bfloat16_tolerance(products: int, dtype: Any = np.float32) -> float:
    """Norm-wise relative error between two computations of `products` bfloat16 products in a row.

    Both round the same operands to bfloat16, but sum in different orders. Neighbouring bfloat16 numbers differ by about
    u = 2**-8, relative. Let an operand differ by a relative e between the two. About a share e / u of its elements then
    rounds to different neighbours. The root mean square of the difference is sqrt(e u), the e of the next product. The
    first e is the machine epsilon of `dtype`. After many products e tends to u. The bound is twice the last e.
    """
    error = float(np.finfo(dtype).eps)
    for _ in range(products):
        error = float(np.sqrt(error * BFLOAT16_ROUNDOFF))
    return 2 * error


def rounding_tolerance(products: int) -> float:
    """Norm-wise relative error after `products` products in a row, each with one operand rounded to bfloat16.

    One rounding is off by at most u = 2**-8. Its root mean square is about u / 2. Independent roundings add up like the
    root of their number. The bound is about twice this estimate.
    """
    return BFLOAT16_ROUNDOFF * float(np.sqrt(products))


def muon_tolerance(precision: str) -> float:
    """Norm-wise relative error of what steps of Muon add to a matrix.

    In bfloat16 terms of the polynomials cancel near a singular value of 1: the sizes of all five polynomials' terms add
    up to 72 there, and a rounding is off by at most half of eps16 of each. In float32 it is the last three, which are
    multiplied with each other first: what rounding adds to an eigenvalue of X X^T, the square of a singular value,
    grows by the squares of the slopes at zero of two. Twice that.
    """
    if precision == "bfloat16":
        return BFLOAT16_ROUNDOFF / 2 * 72
    return 2 * float(np.finfo(np.float32).eps) * (3.8916678022926607 * 3.285753657755655) ** 2


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Standard normal float32 numbers."""
    return rng.standard_normal(shape).astype(np.float32)


def dot_tolerance(k: int, a: Array, b: Array, dtype: Any = np.float32) -> float:
    """Error to expect of a dot product of k entries of a and b: eps (k + 1) max|a| max|b|.

    It holds for terms of random sign, in any order of summation. A long sum of terms of one sign can exceed it.
    """
    return float(np.finfo(dtype).eps) * (k + 1) * float(np.max(np.abs(a))) * float(np.max(np.abs(b)))


def model_tolerance(config: Config, tokens: int, dtype: Any = np.float32) -> float:
    """Norm-wise relative error to expect of a gradient of the whole model, at most 1e-5 (as in test_torch_oracle.py).

    Rounding errors behave like independent errors (Higham & Mary 2019): a sum of k terms is off by about eps sqrt(k).
    Forward and backward count 6 L + 1 sums each: two norms and four products with weights a layer, and one head. Their
    errors add up. The sums of attention and of a final norm are not counted.
    """
    longest = max(config.d_ff, config.vocab_size, config.d_model, tokens)
    bound = float(np.finfo(dtype).eps) * float(np.sqrt(longest + 1)) * 2 * (6 * config.n_layers + 1)
    return min(1e-5, bound)


def chain_tolerance(*lengths: int, dtype: Any = np.float32) -> float:
    """Norm-wise relative error of a chain of sums. Each length k in `lengths` adds 2 eps sqrt(k + 1).

    That is twice what model_tolerance gives one sum. An exponential or a division counts as a sum of one term.
    """
    return float(np.finfo(dtype).eps) * 2 * sum(float(np.sqrt(k + 1)) for k in lengths)


def relative_error(got: Array, want: Array) -> float:
    """||got - want|| / ||want||, both in float64; the norm of got if want is zero."""
    difference = float(np.linalg.norm(np.asarray(got, np.float64) - np.asarray(want, np.float64)))
    size = float(np.linalg.norm(np.asarray(want, np.float64)))
    return difference / size if size > 0 else difference


def complex_step(f: Callable[[Array], Any], x: Array) -> Array:
    """Gradient of the scalar function f at x, one entry at a time: Im f(x + ih) / h (Squire & Trapp 1998)."""
    gradient = np.zeros(x.shape)
    point = x.astype(np.complex128)
    for index in np.ndindex(*x.shape):
        point[index] += 1j * COMPLEX_STEP
        gradient[index] = np.imag(f(point)) / COMPLEX_STEP
        point[index] = x[index]
    return gradient
