"""Intervals of proportions: how far an accuracy may be from what was counted."""

from __future__ import annotations

import math
import statistics

LEVEL = 0.95


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
