"""Means, spreads and paired differences of a few seeded runs; intervals of proportions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (None of one value), number and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.mean(values),
        "sd": deviation,
        "n": len(values),
        "values": list(values),
    }


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Return the spread of the differences value - baseline of equal seeds, and an interval.

    interval: percentile bootstrap of the mean difference, 95 %, 10,000 resamples with a fixed
    seed; None of fewer than 3 pairs. Of few pairs it is optimistic: it cannot reach beyond the
    largest difference seen.
    """
    differences = np.subtract(values, baseline)
    result = spread(differences.tolist())
    result["interval"] = None
    if len(differences) >= 3:
        rng = np.random.default_rng(0)
        picks = rng.integers(0, len(differences), (RESAMPLES, len(differences)))
        low, high = np.quantile(differences[picks].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        result["interval"] = [float(low), float(high)]
    return result


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 %.

    With p = hits / trials and z = 1.96: (p + z^2/2n -+ z sqrt(p (1-p) / n + z^2/4n^2)) /
    (1 + z^2/n), inside [0, 1] also for 0 and n hits (E. B. Wilson, JASA 22, 1927).

    Raises: ValueError for no trials, or more hits than trials.
    """
    if not 0 <= hits <= trials or trials == 0:
        raise ValueError(f"{hits} hits of {trials} trials are no proportion")
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, squared = hits / trials, z * z / trials
    centre = share + squared / 2
    half = z * math.sqrt(share * (1 - share) / trials + squared / (4 * trials))
    low, high = (centre - half) / (1 + squared), (centre + half) / (1 + squared)
    return max(low, 0.0), min(high, 1.0)
