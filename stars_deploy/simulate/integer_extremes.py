"""The least and the greatest that weighted sums of messages can be, from the weights alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
EXACT = float(1 << 52)  # whole sums below it, and half a unit more, are exact in float64


def sum_range(
    weight: NDArray[np.int64], groups: int | None, low: Reals, high: Reals, shape: tuple[int, ...]
) -> tuple[Reals, Reals]:
    """Return the least and greatest sum per channel [C, 1, 1] or per neuron (`shape`).

    Args:
        groups: of a convolution; None: a matrix.
        low, high: messages per source channel, or per column of a matrix. They should include
            zero, which is what padding sends.
    """
    values = weight.astype(np.float64)
    if groups is not None:
        outputs, per_group = values.shape[:2]
        group = np.arange(outputs) // (outputs // groups)
        inputs = group[:, None] * per_group + np.arange(per_group)
        low, high = low[inputs][:, :, None, None], high[inputs][:, :, None, None]
    elif len(low) != values.shape[1]:  # per channel; a dense matrix sees every pixel
        repeats = values.shape[1] // len(low)
        low, high = np.repeat(low, repeats), np.repeat(high, repeats)
    axes = tuple(range(1, values.ndim))
    below = np.minimum(values * low, values * high).sum(axis=axes)
    above = np.maximum(values * low, values * high).sum(axis=axes)
    shape = shape if groups is None else (-1, 1, 1)
    return below.reshape(shape), above.reshape(shape)


def table_range(table: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """Return the least and greatest integer of each channel of the image, zero included."""
    values = table.astype(np.float64)
    return np.minimum(values.min(axis=1), 0), np.maximum(values.max(axis=1), 0)


def shifted(total: Reals, shift: int) -> Reals:
    """Return floor((total + (2^shift >> 1)) / 2^shift), what the host makes of a sum."""
    half = (1 << shift) >> 1
    result: Reals = np.floor((total + half) / (1 << shift))
    return result
