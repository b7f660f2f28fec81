"""Casting weights without changing them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def exact_cast(values: NDArray[np.float64], dtype: DTypeLike) -> NDArray[Any]:
    """Return `values` as `dtype` if that changes nothing, else as float64.

    A pass that rescales float32 weights by a power of two leaves them float32; any other factor
    would round them, and rounding may flip a spike that sits at the threshold.
    """
    narrow = values.astype(dtype)
    return narrow if np.array_equal(narrow, values) else values
