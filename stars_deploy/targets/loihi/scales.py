"""The scales that a population may be given, and what each of them rounds away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stars_deploy.targets.loihi.target import Ranges, Target

Reals = NDArray[np.float64]
CANDIDATES = (64, 1024)  # scales tried for large and for small matrices
EFFORT = 1 << 22  # weights rounded in search of a scale
SAMPLE = EFFORT // CANDIDATES[0]  # weights of a large matrix that are looked at per scale
SEARCHED = 8.0  # scales from the largest possible down to this fraction of it


def dyadic_scales(target: Target, limits: dict[str, float], hard: float) -> Iterator[float]:
    """Yield scales 2^e and unit * 2^e from the largest possible down, while nothing is rounded."""
    # Messages in units of 1/k make weights of k times the scale: the grid is that of s / k, unless
    # the weights were made for the messages.
    unit = max((1 / source.unit for source in target.sources), default=1.0)
    largest = min(hard, limits["weights"] * 129 / 127)
    if not np.isfinite(largest):
        return
    values = [*target.weights, target.bias, np.array([target.threshold or 0.0])]
    for base in sorted({1.0, unit}):
        exponent = int(np.floor(np.log2(largest / base)))
        while all(is_whole(value * base * 2.0**exponent) for value in values):
            yield float(base * 2.0**exponent)
            exponent -= 1


def is_whole(values: Reals) -> bool:
    """Whether all values are whole numbers."""
    return bool(np.array_equal(values, np.rint(values)))


def scales_below(target: Target, largest: float) -> Reals:
    """Return scales from `largest` down, geometric; for a threshold, those that make M whole."""
    size = sum(weight.size for weight in target.weights)
    count = int(np.clip(EFFORT // max(size, 1), *CANDIDATES))
    steps = np.geomspace(largest, largest / SEARCHED, count)
    if target.threshold is None:
        return steps
    mantissas = np.unique(np.floor(steps * target.threshold))
    whole: Reals = mantissas[mantissas >= 1] / target.threshold
    return whole


@dataclass(frozen=True)
class Weights:
    """Weights whose rounding counts `share` times, with the range that they are clipped to."""

    weights: Reals
    share: float
    low: int
    high: int


def synapses_of(target: Target, ranges: Ranges) -> list[Weights]:
    """Return all synapses; an error counts with the square of what a message stands for."""
    return [
        Weights(weight, source.unit**-2, ranges.weight_low * n, ranges.weight_high * n)
        for weight, source, n in zip(target.weights, target.sources, target.parallel, strict=True)
        if not source.host
    ]


def host_errors(target: Target, scales: Reals) -> Reals:
    """Squared error of what the host adds: half a unit of the bias, 1/12 on average per output."""
    sources = zip(target.weights, target.sources, strict=True)
    outputs = sum(len(weight) for weight, source in sources if source.host)
    return outputs / 12 / np.square(scales)


def sampled(target: Target, largest: float, ranges: Ranges) -> list[Weights]:
    """Return every k-th weight for k others, but all of those that some scale would clip.

    The few largest weights decide how far a scale may clip, so none of them is left out.
    """
    chosen = []
    for part in synapses_of(target, ranges):
        stride = max(1, part.weights.size // SAMPLE)
        flat = part.weights.reshape(-1)
        far = np.abs(flat) * largest > part.high
        chosen.append(replace(part, weights=flat[far]))
        chosen.append(replace(part, weights=flat[~far][::stride], share=part.share * stride))
    return chosen


def errors_at(parts: list[Weights], scales: Reals) -> Reals:
    """Squared error of the weights when rounded at each of the scales."""
    total = np.zeros(len(scales))
    for part in parts:
        weights = part.weights.reshape(1, -1)
        step = max(1, SAMPLE // max(1, weights.size))  # so many scales at once stay in the cache
        for start in range(0, len(scales), step):
            chunk = slice(start, start + step)
            scale = scales[chunk, None]
            whole = np.clip(np.rint(weights * scale), part.low, part.high)
            total[chunk] += part.share * np.square(whole / scale - weights).sum(axis=1)
    return total
