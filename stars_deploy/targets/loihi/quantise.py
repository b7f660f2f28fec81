"""Integer weights, biases and threshold of one population, chosen without data.

A population computes in units of 1/s: W_int = round(s G W), b_int = round(s G b), threshold M,
with G the input gain of its neuron and s = M / V_th, M an integer, so that a potential that meets
the threshold exactly still does not spike. Among the scales that no worst case can overflow, the
one with the least squared error of the weights is taken; where weights, biases and threshold lie
on a dyadic grid that fits, the largest power of two for which nothing is rounded at all.

All operators into a population share its scale. A skip connection of weight 1 would then bound
the scale of the convolution beside it (254 at tau = 2 and 8 bits): an operator with one input per
output may take several synapses in parallel, whose weights add up.

An operator that the host computes (host.py) has no synapses: it costs bias mantissa instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.targets.loihi.bounds import Drive, Peaks, activation_range, peaks
from stars_deploy.targets.loihi.host import WEIGHT_LIMIT, host_shift, shifted_sum
from stars_deploy.targets.loihi.scales import (
    dyadic_scales,
    errors_at,
    host_errors,
    is_whole,
    sampled,
    scales_below,
    synapses_of,
)
from stars_deploy.targets.loihi.stages import Stage
from stars_deploy.targets.loihi.target import Ranges, Target

Reals = NDArray[np.float64]
SMALLEST = 1e-31  # scale: a potential of 24 bits divided by it stays inside float32


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
    shifts: tuple[int | None, ...]  # of sums on the host; None: weights of synapses


def ceilings(target: Target, ranges: Ranges) -> dict[str, float]:
    """Return, per range, the largest scale that respects it (before rounding)."""
    shifts = tuple(None for _ in target.weights)
    drive = _drive(target, target.weights, shifts, target.bias)
    worst = peaks(drive, 1 - target.dv / 4096, target.threshold, target.steps)
    stored = zip(target.weights, target.sources, target.parallel, strict=True)
    weight = max((float(np.abs(w).max()) / n for w, s, n in stored if not s.host), default=0.0)
    top = ranges.threshold if target.threshold is None else ranges.state
    return {
        "weights": _ratio(ranges.weight_high, weight),
        "image" if target.hosted else "bias": _ratio(ranges.bias, drive.mantissa),
        "threshold": _ratio(ranges.threshold, target.threshold or 0.0),
        "accumulator": _ratio(ranges.activation, worst.activation),
        "potential": min(_ratio(top, worst.highest), _ratio(ranges.state, -worst.lowest)),
    }


def quantise(target: Target, ranges: Ranges) -> Quantised | None:
    """Return the integers of a population, or None if no scale is inside all ranges."""
    limits = ceilings(target, ranges)
    hard = min(value for name, value in limits.items() if name != "weights")
    limited_by = min(limits, key=lambda name: limits[name])
    if min(hard, limits["weights"]) < SMALLEST:
        return None
    for scale in dyadic_scales(target, limits, hard):
        found = _integers(target, scale, ranges, limited_by)
        if found is not None and found.exact:
            return found
    # Clipping the largest weights may pay, so scales up to twice the clipping one are tried.
    largest = min(hard, 2 * limits["weights"])
    if not np.isfinite(largest):
        largest = float(ranges.threshold)  # all zero: any scale is right
    scales = scales_below(target, largest)
    errors = errors_at(sampled(target, largest, ranges), scales) + host_errors(target, scales)
    for index in np.lexsort((-scales, errors)):
        found = _integers(target, float(scales[index]), ranges, limited_by)
        if found is not None:
            return found
    return None


def repeating(stage: Stage) -> Quantised:
    """Return the integers of a relay: weight 1, threshold 0, so that it repeats every spike.

    Its potential is 0 or, for one comparison, 1: nothing to decay, nothing to reset.
    """
    return Quantised(
        scale=1.0,
        threshold=0,
        weights=tuple(item.weight.astype(np.int32) for item in stage.incoming),
        bias=stage.bias.astype(np.int32),
        peaks=Peaks(1.0, 1.0, 0.0),
        error=0.0,
        exact=True,
        limited_by="weights",
        shifts=tuple(None for _ in stage.incoming),
    )


def _ratio(limit: float, value: float) -> float:
    return limit / value if value > 0 else np.inf


def _rounded(target: Target, scale: float, ranges: Ranges) -> tuple[Reals, ...]:
    """Return the weights at a scale, clipped to what their parallel synapses hold together.

    Those of the host are shifted to the left as far as 32 bits go, and never clipped.
    """
    rounded = []
    for weight, source, n in zip(target.weights, target.sources, target.parallel, strict=True):
        real = weight * scale
        if source.host:
            rounded.append(np.rint(real * 2.0 ** host_shift(real)))
        else:
            rounded.append(np.clip(np.rint(real), ranges.weight_low * n, ranges.weight_high * n))
    return tuple(rounded)


def _shifts(target: Target, scale: float) -> tuple[int | None, ...]:
    """Return by how much the sums of each operator are shifted: None where there are synapses."""
    items = zip(target.weights, target.sources, strict=True)
    return tuple(host_shift(weight * scale) if s.host else None for weight, s in items)


def parallel_parts(weight: NDArray[np.int32], ranges: Ranges) -> list[NDArray[np.int32]]:
    """Return the weights as a sum of weights that one synapse holds, as few as possible."""
    parts: list[NDArray[np.int32]] = []
    rest = weight
    while not parts or rest.any():
        part = np.clip(rest, ranges.weight_low, ranges.weight_high)
        parts.append(part)
        rest = rest - part
    return parts


def _integers(target: Target, scale: float, ranges: Ranges, limited_by: str) -> Quantised | None:
    """Round at a scale; None if the rounded integers leave a range in the worst case."""
    weights = _rounded(target, scale, ranges)
    bias = np.rint(target.bias * scale)
    threshold = None if target.threshold is None else float(round(scale * target.threshold))
    shifts = _shifts(target, scale)
    drive = _drive(target, weights, shifts, bias)
    worst = peaks(drive, 1 - target.dv / 4096, threshold, target.steps)
    top = ranges.state if threshold is not None else ranges.threshold + 1.0
    if (
        drive.mantissa > ranges.bias
        or any(np.abs(w).max() > WEIGHT_LIMIT for w in weights)
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
    meant = [weight * scale for weight in target.weights]
    exact = np.array_equal(bias, target.bias * scale) and all(
        np.array_equal(w, real * 2.0 ** (shift or 0)) and (shift is None or is_whole(real))
        for w, real, shift in zip(weights, meant, shifts, strict=True)
    )
    scales = np.array([scale])
    error = float(errors_at(synapses_of(target, ranges), scales)[0])
    error += 0.0 if exact else float(host_errors(target, scales)[0])
    return Quantised(
        scale=scale,
        threshold=ranges.threshold if threshold is None else int(threshold),
        weights=tuple(w.astype(np.int32) for w in weights),
        bias=bias.astype(np.int32),
        peaks=worst,
        error=float(np.sqrt(error / power)) if power > 0 else 0.0,
        exact=exact,
        limited_by=limited_by,
        shifts=shifts,
    )


def _drive(
    target: Target, weights: tuple[Reals, ...], shifts: tuple[int | None, ...], bias: Reals
) -> Drive:
    """Return what synapses and host can give; real weights have no shifts, and no sum is cut."""
    synapses = host = (np.zeros(()), np.zeros(()))
    for item, source, weight, shift in zip(
        target.incoming, target.sources, weights, shifts, strict=True
    ):
        shape = target.shape or (len(weight),)
        below, above = activation_range(item, weight, source.low, source.high, shape)
        if shift is not None:
            below, above = shifted_sum(below, shift), shifted_sum(above, shift)
        if source.host:
            host = (host[0] + below, host[1] + above)
        else:
            synapses = (synapses[0] + below, synapses[1] + above)
    return Drive(*synapses, bias, *host)
