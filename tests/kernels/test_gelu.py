"""GELU by erf to the last digits, on every ISA: against math.erfc, also where Phi is far below a digit of 1."""

from __future__ import annotations

import numpy as np
import pytest

from oracles.activations import gelu, normal_cdf, normal_density
from soma_native import _core

ops = _core._ops
EPS = float(np.finfo(np.float32).eps)
FAR = 12.875  # where the kernel stops to follow Phi
ROUNDINGS = 7  # e^r, its factor, 1 + p t, the quotient, P, and the products of the three and of x; each half of eps


def numbers() -> np.ndarray:
    """Both signs: all binades down to the smallest, then evenly out to FAR, and no multiple of a vector's width."""
    positive = np.concatenate([np.geomspace(1e-38, 1, 5003), np.linspace(0.01, FAR, 20_011)]).astype(np.float32)
    return np.concatenate([positive, -positive])[None]


@pytest.mark.usefixtures("isa")
def test_the_output_is_right_to_a_few_digits_of_its_own() -> None:
    x = numbers()
    want = gelu(x.astype(np.float64))
    error = np.abs(ops.gelu(x, "gelu")[1] - want)
    worst = np.argmax(error / np.abs(want))
    least = np.finfo(np.float32).tiny  # below it numbers have fewer digits
    assert np.all(error <= ROUNDINGS / 2 * EPS * np.abs(want) + EPS * least), x.ravel()[worst]


@pytest.mark.usefixtures("isa")
def test_the_slope_is_right_to_a_few_digits_of_its_parts() -> None:
    """Phi(x) and x Phi'(x) cancel at one point, so it is their digits that count."""
    x = numbers()
    wide = x.astype(np.float64)
    rise = wide * normal_density(wide)
    dx = ops.gelu_backward(np.ones_like(x), x, "gelu")[0]
    error = np.abs(dx - (normal_cdf(wide) + rise))
    assert np.all(error <= (ROUNDINGS + 1) / 2 * EPS * (normal_cdf(wide) + np.abs(rise)) + EPS * EPS * 1e-30)


@pytest.mark.usefixtures("isa")
def test_it_is_not_the_tanh_form() -> None:
    x = np.array([[-2.0, 2.0]], np.float32)
    apart = np.abs(ops.gelu(x, "gelu")[1] - ops.gelu(x, "gelu_tanh")[1])
    assert np.all((apart > 5e-5) & (apart < 5e-4))


@pytest.mark.usefixtures("isa")
def test_beyond_the_far_end() -> None:
    x = np.array([[FAR, 1e3, 3e38, np.inf, -FAR, -1e3, -3e38, -np.inf]], np.float32)
    dx, y = ops.gelu_backward(np.ones_like(x), x, "gelu")
    assert np.array_equal(y[0, :4], x[0, :4]) and np.array_equal(dx[0, :4], np.ones(4, np.float32))
    assert np.all((y[0, 4:] <= 0) & (y[0, 4:] > -1e-36)) and np.all(np.abs(dx[0, 4:]) < 1e-34)
