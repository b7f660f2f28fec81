"""Surrogate gradients: what stands for the derivative of the spike S = (H > V_th).

Each is a density of x = H - V_th with unit area; alpha is the inverse of its width.

    atan       alpha/2 / (1 + (pi/2 alpha x)^2)          alpha = 2: 1 at 0
    sigmoid    alpha s (1 - s), s = 1/(1 + e^(-alpha x))  alpha = 4: 1 at 0
    triangle   alpha max(0, 1 - alpha |x|)                alpha = 1: 1 at 0
    rectangle  alpha where |x| < 1/(2 alpha), else 0      alpha = 1: 1 at 0
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def atan(x: Tensor, alpha: float) -> Tensor:
    """Return alpha/2 / (1 + (pi/2 alpha x)^2); x is overwritten."""
    # Scaling before squaring saves one pass over x: a/(1 + b x^2) = 1/(1/a + (b/a) x^2).
    square = x.mul_(math.pi / 2 * alpha * math.sqrt(2 / alpha)).square_()
    return square.add_(2 / alpha).reciprocal_()


def sigmoid(x: Tensor, alpha: float) -> Tensor:
    """Return alpha s (1 - s) with s = 1/(1 + e^(-alpha x)); x is overwritten."""
    s = x.mul_(alpha).sigmoid_()
    return s.addcmul_(s, s, value=-1).mul_(alpha)


def triangle(x: Tensor, alpha: float) -> Tensor:
    """Return alpha max(0, 1 - alpha |x|); x is overwritten."""
    return x.abs_().mul_(-alpha * alpha).add_(alpha).clamp_(min=0)


def rectangle(x: Tensor, alpha: float) -> Tensor:
    """Return alpha where |x| < 1/(2 alpha), else 0; x is overwritten."""
    return torch.lt(x.abs_(), 0.5 / alpha, out=x).mul_(alpha)


SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": atan,
    "sigmoid": sigmoid,
    "triangle": triangle,
    "rectangle": rectangle,
}
