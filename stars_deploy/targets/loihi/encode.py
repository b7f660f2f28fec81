"""The input image in integers: q = round(k (pixel/255 - mean) / std).

They are sent as signed graded messages or, where spikes are binary only, stay on the host, which
makes biases of them (see host.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.metadata import GraphMetadata

Reals = NDArray[np.float64]
COARSER = 4  # how many scales are offered, each half of the one before
GRAIN = 1e-9  # relative error that float arithmetic alone may make
HOST_BITS = (8, 16)  # fewest and most bits of a table that stays on the host


@dataclass(frozen=True)
class InputCode:
    """Messages of every pixel value, `table` [C, 256]; a message of 1 stands for 1/k.

    With `host`, they are not sent: the host makes biases of them.
    """

    k: float
    table: NDArray[np.int32]
    error: float  # root of the squared rounding error relative to the values, all pixels alike
    bits: int
    host: bool = False


def normalised(metadata: GraphMetadata) -> Reals:
    """Return (pixel/255 - mean) / std for every pixel value, [C, 256]."""
    pixels = np.arange(256) / 255.0
    mean = np.array(metadata.mean)[:, None]
    values: Reals = (pixels - mean) / np.array(metadata.std)[:, None]
    return values


def input_codes(metadata: GraphMetadata, bits: int) -> list[InputCode]:
    """Return codes to choose from, finest first; only one where it is exact.

    The scales are short binary fractions, so that k times a power of two stays exact.
    """
    values = normalised(metadata)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    room = [high / x for x in (values.max(),) if x > 0] + [
        low / x for x in (values.min(),) if x < 0
    ]
    largest = float(min(room))
    power = 2.0 ** np.floor(np.log2(largest * (1 + GRAIN)))
    exact = _code(values, float(power), bits)
    if exact.error < GRAIN:
        return [exact]
    step = power / 64
    finest = float(np.floor(largest / step) * step)
    return [_code(values, finest / 2**halving, bits) for halving in range(COARSER)]


def host_code(metadata: GraphMetadata) -> InputCode:
    """Return the code of fewest bits that is exact, otherwise the finest one."""
    for bits in range(HOST_BITS[0], HOST_BITS[1] + 1):
        code = replace(input_codes(metadata, bits)[0], host=True)
        if code.error < GRAIN:
            break
    return code


def _code(values: Reals, k: float, bits: int) -> InputCode:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    table = np.clip(np.rint(values * k), low, high)
    error = np.square(table / k - values).sum() / np.square(values).sum()
    return InputCode(k, table.astype(np.int32), float(np.sqrt(error)), bits)
