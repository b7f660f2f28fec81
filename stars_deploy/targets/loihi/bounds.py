"""Worst cases of a population over all inputs, from its weights alone.

With messages m in [low, high] (0 and 1 for spikes), a = sum w m lies in [N, P] with
P = sum max(w low, w high), N = sum min(w low, w high). Over T steps, with k = 1 - dv/4096,

    v <= k * min(v, M) + P + b        (what does not spike stays at or below M)
    v >= k v + N + b                  (nothing bounds it but T)

A bias that the host computes of the image lies in [L, H] in every step of a sample: it adds to b,
and not to the activation.

All in activation units (weight units); 131072 of them are 2^23 state units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.targets.loihi.stages import Incoming

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Drive:
    """Least and greatest activation, and the bias added to v; the arrays broadcast together.

    Per channel [C, 1, 1] for a convolution, per neuron [N] or [C, H, W] for a matrix.
    """

    low: Reals
    high: Reals
    bias: Reals
    host_low: Reals | float = 0.0  # of what the host adds to the bias
    host_high: Reals | float = 0.0

    @property
    def mantissa(self) -> float:
        """Return the greatest magnitude of a bias."""
        highest, lowest = self.bias + self.host_high, self.bias + self.host_low
        return max(float(highest.max()), -float(lowest.min()))


@dataclass(frozen=True)
class Peaks:
    """Largest |a|, greatest and least v over T steps, in activation units."""

    activation: float
    highest: float
    lowest: float


def activation_range(
    item: Incoming, weight: Reals, low: Reals, high: Reals, shape: tuple[int, ...]
) -> tuple[Reals, Reals]:
    """Return N and P per output for messages in [low, high], given per source channel or once.

    Zero is always a possible message: padding and silent sources send nothing. `shape` is that of
    the target; a convolution has one value per channel, [C, 1, 1].
    """
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if item.kind == "conv":
        outputs, per_group = weight.shape[:2]
        first = np.arange(outputs) // (outputs // item.groups) * per_group
        channel = first[:, None] + np.arange(per_group)
        low = np.broadcast_to(low, per_group * item.groups) if low.size == 1 else low
        high = np.broadcast_to(high, per_group * item.groups) if high.size == 1 else high
        # One value per kernel: the sums of its positive and negative weights are all that counts.
        positive = np.maximum(weight, 0).sum(axis=(2, 3))
        negative = weight.sum(axis=(2, 3)) - positive
        below = positive * low[channel] + negative * high[channel]
        above = positive * high[channel] + negative * low[channel]
        return below.sum(axis=1)[:, None, None], above.sum(axis=1)[:, None, None]
    repeats = weight.shape[1] // len(low)  # a flattened map: all pixels of a channel are alike
    low, high = np.repeat(low, repeats), np.repeat(high, repeats)
    positive = np.maximum(weight, 0)
    negative = weight - positive
    below, above = positive @ low + negative @ high, positive @ high + negative @ low
    return below.reshape(shape), above.reshape(shape)


def peaks(drive: Drive, keep: float, threshold: float | None, steps: int) -> Peaks:
    """Return the worst case over `steps` steps from rest; `threshold` None: never resets."""
    highest, lowest = np.zeros(()), np.zeros(())
    top = bottom = 0.0
    for _ in range(steps):
        carried = np.maximum(highest, 0)
        if threshold is not None:
            carried = np.minimum(carried, threshold)
        highest = carried * keep + drive.high + (drive.bias + drive.host_high)
        lowest = np.minimum(lowest, 0) * keep + drive.low + (drive.bias + drive.host_low)
        top, bottom = max(top, float(highest.max())), min(bottom, float(lowest.min()))
    activation = max(float(drive.high.max()), float(-drive.low.min()), 0.0)
    return Peaks(activation, top, bottom)
