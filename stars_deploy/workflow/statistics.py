"""Means, spreads and paired differences of a few seeded runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from stars_deploy.validation.proportions import LEVEL

RESAMPLES = 10_000


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
