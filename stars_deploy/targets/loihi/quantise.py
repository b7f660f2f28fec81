"""Integer weights, biases and threshold of one population, chosen without data.

A population computes in units of 1/s: W_int = round(s G W), b_int = round(s G b), threshold M,
with G the input gain of its neuron and s = M / V_th, M an integer, so that a potential that meets
the threshold exactly still does not spike. Among the scales that no worst case can overflow, the
one with the least squared error of the weights is taken; where weights, biases and threshold lie
on a dyadic grid that fits, the largest power of two for which nothing is rounded at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Arithmetic
from stars_deploy.targets.loihi.bounds import Drive, Peaks, activation_range, peaks
from stars_deploy.targets.loihi.stages import Incoming

Reals = NDArray[np.float64]
CANDIDATES = (64, 1024)  # scales tried for large and for small matrices
EFFORT = 1 << 22  # weights rounded in search of a scale, at least CANDIDATES[0] times all
SEARCHED = 8.0  # scales from the largest possible down to this fraction of it


@dataclass(frozen=True)
class Ranges:
    """What the integers of a population must stay inside; magnitudes in activation units."""

    weight_low: int
    weight_high: int
    bias: int  # |mantissa|, with an exponent that makes it an activation
    threshold: int
    activation: float  # |a| below this
    state: float  # |v| below this

    @classmethod
    def of(cls, arithmetic: Arithmetic) -> Ranges:
        """Read the ranges of a profile."""
        half = 1 << (arithmetic.weight_bits.value - 1)
        shift = arithmetic.state_shift_bits.value
        return cls(
            weight_low=-half,
            weight_high=half - 1,
            bias=(1 << arithmetic.bias_magnitude_bits.value) - 1,
            threshold=(1 << arithmetic.threshold_bits.value) - 1,
            activation=float(1 << arithmetic.accumulator_magnitude_bits.value),
            state=float(1 << (arithmetic.state_magnitude_bits.value - shift)),
        )


@dataclass(frozen=True)
class Source:
    """Messages of one incoming operator: unit of a message, and its range per channel."""

    unit: float  # real value of a message of 1
    low: Reals
    high: Reals


@dataclass(frozen=True)
class Target:
    """A population to be quantised: real weights times the neuron's gain, and its dynamics."""

    incoming: tuple[Incoming, ...]
    sources: tuple[Source, ...]
    weights: tuple[Reals, ...]  # gain * weight * unit of the message
    bias: Reals
    threshold: float | None  # None: read-out
    dv: int
    steps: int


@dataclass(frozen=True)
class Quantised:
    """Integers of a population, its scale, and what the scale cost."""

    scale: float
    threshold: int
    weights: tuple[NDArray[np.int32], ...]
    bias: NDArray[np.int32]
    peaks: Peaks
    error: float  # root of the squared error of the weights relative to the weights
    exact: bool
    limited_by: str  # the range that kept the scale from growing


def ceilings(target: Target, ranges: Ranges) -> dict[str, float]:
    """Return, per range, the largest scale that respects it (before rounding)."""
    drive = _drive(target, target.weights, target.bias)
    worst = peaks(drive, 1 - target.dv / 4096, target.threshold, target.steps)
    weight = max((float(np.abs(w).max()) for w in target.weights), default=0.0)
    top = ranges.threshold if target.threshold is None else ranges.state
    return {
        "weights": _ratio(ranges.weight_high, weight),
        "bias": _ratio(ranges.bias, float(np.abs(target.bias).max())),
        "threshold": _ratio(ranges.threshold, target.threshold or 0.0),
        "accumulator": _ratio(ranges.activation, worst.activation),
        "potential": min(_ratio(top, worst.highest), _ratio(ranges.state, -worst.lowest)),
    }


def quantise(target: Target, ranges: Ranges) -> Quantised | None:
    """Return the integers of a population, or None if no scale is inside all ranges."""
    limits = ceilings(target, ranges)
    hard = min(value for name, value in limits.items() if name != "weights")
    limited_by = min(limits, key=lambda name: limits[name])
    for scale in _dyadic(target, limits, hard):
        found = _integers(target, scale, ranges, limited_by)
        if found is not None and found.exact:
            return found
    # Clipping the largest weights may pay, so scales up to twice the clipping one are tried.
    largest = min(hard, 2 * limits["weights"])
    if not np.isfinite(largest):
        largest = float(ranges.threshold)  # all zero: any scale is right
    candidates = sorted(_scales(target, largest), key=lambda s: (_error(target, s, ranges), -s))
    for scale in candidates:
        found = _integers(target, scale, ranges, limited_by)
        if found is not None:
            return found
    return None


def _ratio(limit: float, value: float) -> float:
    return limit / value if value > 0 else np.inf


def _dyadic(target: Target, limits: dict[str, float], hard: float) -> Iterator[float]:
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
        while all(_whole(value * base * 2.0**exponent) for value in values):
            yield float(base * 2.0**exponent)
            exponent -= 1


def _whole(values: Reals) -> bool:
    return bool(np.array_equal(values, np.rint(values)))


def _scales(target: Target, largest: float) -> list[float]:
    """Return scales from `largest` down, geometric; for a threshold, those that make M whole."""
    size = sum(weight.size for weight in target.weights)
    count = int(np.clip(EFFORT // max(size, 1), *CANDIDATES))
    steps = np.geomspace(largest, largest / SEARCHED, count)
    if target.threshold is None:
        return [float(s) for s in steps]
    mantissas = np.unique(np.floor(steps * target.threshold))
    return [float(m / target.threshold) for m in mantissas if m >= 1]


def _round(values: Reals, scale: float, low: int, high: int) -> Reals:
    rounded: Reals = np.clip(np.rint(values * scale), low, high)
    return rounded


def _error(target: Target, scale: float, ranges: Ranges) -> float:
    """Squared error of the weights, weighted with the square of what a message stands for."""
    low, high = ranges.weight_low, ranges.weight_high
    return sum(
        float(np.square(_round(weight, scale, low, high) / scale - weight).sum()) / source.unit**2
        for weight, source in zip(target.weights, target.sources, strict=True)
    )


def _integers(target: Target, scale: float, ranges: Ranges, limited_by: str) -> Quantised | None:
    """Round at a scale; None if the rounded integers leave a range in the worst case."""
    low, high = ranges.weight_low, ranges.weight_high
    weights = tuple(_round(weight, scale, low, high) for weight in target.weights)
    bias = np.rint(target.bias * scale)
    threshold = None if target.threshold is None else float(round(scale * target.threshold))
    worst = peaks(_drive(target, weights, bias), 1 - target.dv / 4096, threshold, target.steps)
    top = ranges.state if threshold is not None else ranges.threshold + 1.0
    if (
        np.abs(bias).max() > ranges.bias
        or (threshold is not None and not 1 <= threshold <= ranges.threshold)
        or worst.activation >= ranges.activation
        or worst.highest >= top
        or -worst.lowest >= ranges.state
    ):
        return None
    power = sum(
        float(np.square(w).sum()) / source.unit**2
        for w, source in zip(target.weights, target.sources, strict=True)
    )
    error = _error(target, scale, ranges)
    exact = all(
        np.array_equal(w, real * scale)
        for w, real in zip((*weights, bias), (*target.weights, target.bias), strict=True)
    )
    return Quantised(
        scale=scale,
        threshold=ranges.threshold if threshold is None else int(threshold),
        weights=tuple(w.astype(np.int32) for w in weights),
        bias=bias.astype(np.int32),
        peaks=worst,
        error=float(np.sqrt(error / power)) if power > 0 else 0.0,
        exact=exact,
        limited_by=limited_by,
    )


def _drive(target: Target, weights: tuple[Reals, ...], bias: Reals) -> Drive:
    low, high = np.zeros(()), np.zeros(())
    for item, source, weight in zip(target.incoming, target.sources, weights, strict=True):
        below, above = activation_range(item, weight, source.low, source.high)
        low, high = low + below, high + above
    return Drive(low, high, bias)
