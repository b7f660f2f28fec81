"""The image as per-neuron biases that the host computes, for targets with binary spikes only.

The image is the same in all T steps, so what a linear operator W makes of it is one constant per
neuron and sample. In integers, with the table's value q of a pixel and a wide weight W_host,

    c = floor((sum of W_host q + 2^(shift - 1)) / 2^shift),   W_host = round(2^shift s G W / k)

with s the scale of the population, G the input gain of its neuron and 1/k what a q of 1 stands
for (without the half for shift 0). The neuron adds (b + c) 2^6 to its potential in every step,
which is what an activation of b + c adds where the current has no memory. Only the mantissa
|b + c| bounds the scale; the weights stay on the host and may have 32 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Profile

Reals = NDArray[np.float64]
WEIGHT_LIMIT = (1 << 31) - 1
SHIFT_LIMIT = 31
ENCODING = "host_bias"


def takes_biases(profile: Profile) -> bool:
    """Whether the image enters as biases: a Loihi without graded messages.

    Other families without them have no biases that a host could write for every image.
    """
    arithmetic = profile.arithmetic
    binary = arithmetic is not None and arithmetic.message_bits is None
    return binary and profile.identity.family == "loihi"


def host_shift(weight: Reals) -> int:
    """Return the largest shift at which weights of these sizes have 32 bits, 0 if none has."""
    largest = float(np.abs(weight).max())
    if largest == 0:
        return 0
    return int(np.clip(np.floor(np.log2(WEIGHT_LIMIT / largest)), 0, SHIFT_LIMIT))


def shifted_sum(total: Reals, shift: int) -> Reals:
    """Return floor((total + 2^(shift - 1)) / 2^shift), exact for whole totals below 2^52."""
    half = (1 << shift) >> 1
    result: Reals = np.floor((total + half) / (1 << shift))
    return result
