"""Typed access to the JSON objects and arrays of `network.json` and `network.npz`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import BundleError

Integers = NDArray[np.int64]
LARGEST_MAP = 1 << 26  # neurons of one population, far above any chip
# Scale or divisor: a state of 24 bits divided by it stays inside float32.
SMALLEST, LARGEST = 1e-31, sys.float_info.max


class Fields:
    """Typed access to one JSON object; every complaint names the file, the entry and the key."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{where}: expected a JSON object, found {type(value).__name__}")
        self.value = value
        self.where = where

    def bad(self, key: str, expected: str) -> BundleError:
        shown = repr(self.value.get(key))[:80]
        return BundleError(f"{self.where}: {key} = {shown}, expected {expected}")

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise BundleError(f"{self.where}: key {key!r} is missing")
        return self.value[key]

    def child(self, key: str) -> Fields:
        return Fields(self.get(key), f"{self.where}: {key}")

    def children(self, key: str) -> list[Fields]:
        entries = self.get(key)
        if not isinstance(entries, list) or not entries:
            raise self.bad(key, "a list that is not empty")
        return [Fields(entry, f"{self.where}: {key}[{i}]") for i, entry in enumerate(entries)]

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.bad(key, f"an integer from {low} to {high}")
        return value

    def positive(self, key: str) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not SMALLEST <= value <= LARGEST:
            raise self.bad(key, f"a finite number of at least {SMALLEST:g}")
        return float(value)

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.bad(key, "a name")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        """Read [W, H, C] or [N] and return it as (C, H, W) or (N,)."""
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) not in (1, 3)
            or not all(type(item) is int and item > 0 for item in value)
            or math.prod(value) > LARGEST_MAP
        ):
            raise self.bad(key, "[width, height, channels] or [neurons]")
        return tuple(reversed(value))

    def pair(self, key: str, low: int) -> tuple[int, int]:
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(type(item) is int and low <= item <= 1 << 16 for item in value)
        ):
            raise self.bad(key, f"two integers (height, width) of at least {low}")
        return value[0], value[1]

    def array(self, key: str, arrays: Mapping[str, NDArray[Any]], low: int, high: int) -> Integers:
        name = self.text(key)
        if name not in arrays:
            raise self.bad(key, f"the name of an array in network.npz: {sorted(arrays)}")
        value = arrays[name]
        if value.dtype.kind not in "iu":  # NumPy counts timedelta64 among the integers
            raise self.bad(key, f"an array of integers, not {value.dtype}")
        if value.size > LARGEST_MAP:
            raise self.bad(key, f"an array of at most {LARGEST_MAP} values, not {value.size}")
        if value.size == 0 or value.min() < low or value.max() > high:
            raise self.bad(key, f"an array with values from {low} to {high}")
        return value.astype(np.int64)
