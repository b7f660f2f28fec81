"""The least and the greatest that weighted sums of messages can be, from the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import BundleError

if TYPE_CHECKING:
    from stars_deploy.simulation.integer.network import Connection, Population

Reals = NDArray[np.float64]
Shape = tuple[int, ...]
EXACT = float(1 << 52)  # whole sums below it, and half a unit more, are exact in float64


def sum_range(
    weight: NDArray[np.int64], groups: int | None, low: Reals, high: Reals, shape: Shape
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


def host_range(item: Connection, table: NDArray[np.int64], shape: Shape) -> tuple[Reals, Reals]:
    """Return the least and the greatest that the host adds to a bias mantissa over all images."""
    assert item.shift is not None
    groups = item.groups if item.kind == "conv" else None
    low, high = sum_range(item.weight, groups, *table_range(table), shape)
    if max(float(high.max()), -float(low.min())) >= EXACT:
        raise BundleError(f"connection {item.name!r}: sums on the host reach 2^52, use less weight")
    return _shifted(low, item.shift), _shifted(high, item.shift)


def _shifted(total: Reals, shift: int) -> Reals:
    """Return floor((total + (2^shift >> 1)) / 2^shift), what the host makes of a sum."""
    half = (1 << shift) >> 1
    result: Reals = np.floor((total + half) / (1 << shift))
    return result


def check_mantissas(
    population: Population,
    into: Sequence[Connection],
    table: NDArray[np.int64],
    allowed: tuple[int, int],
    origin: str,
) -> None:
    """Refuse biases that, with what the host adds for some image, leave the mantissa."""
    hosted = [item for item in into if item.shift is not None]
    if not hosted:
        return
    least = most = np.zeros(())
    if population.bias is not None:
        least = most = (population.bias >> population.bias_exp).astype(np.float64)
    for item in hosted:
        low, high = host_range(item, table, population.shape)
        least, most = least + low, most + high
    if least.min() < allowed[0] or most.max() > allowed[1]:
        raise BundleError(
            f"{origin}: population {population.name!r}: with the image, its bias mantissa "
            f"reaches {least.min():.0f}..{most.max():.0f}, expected {allowed[0]}..{allowed[1]}"
        )
