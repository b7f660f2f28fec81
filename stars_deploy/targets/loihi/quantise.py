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

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Arithmetic
from stars_deploy.targets.loihi.bounds import Drive, Peaks, activation_range, peaks
from stars_deploy.targets.loihi.host import WEIGHT_LIMIT, host_shift, shifted_sum
from stars_deploy.targets.loihi.stages import Incoming, Stage

Reals = NDArray[np.float64]
CANDIDATES = (64, 1024)  # scales tried for large and for small matrices
EFFORT = 1 << 22  # weights rounded in search of a scale
SAMPLE = EFFORT // CANDIDATES[0]  # weights of a large matrix that are looked at per scale
SEARCHED = 8.0  # scales from the largest possible down to this fraction of it
SMALLEST = 1e-31  # scale: a potential of 24 bits divided by it stays inside float32
PARALLEL = 8  # synapses in parallel of an operator with one input per output


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
    host: bool = False  # its messages stay on the host, which adds what they give to the bias


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
    shape: tuple[int, ...] = ()  # of the population; needed for matrices into maps

    @property
    def parallel(self) -> tuple[int, ...]:
        """Return how many synapses each operator may take in parallel: more for skips only."""
        skips = len(self.weights) > 1
        return tuple(PARALLEL if skips and _single(weight) else 1 for weight in self.weights)

    @property
    def hosted(self) -> bool:
        """Whether the host adds what the image gives to the bias."""
        return any(source.host for source in self.sources)


def _single(weight: Reals) -> bool:
    """Whether every output hears one input only, as in an identity or a scaled skip."""
    if weight.ndim == 2:
        return bool((np.count_nonzero(weight, axis=1) <= 1).all())
    return weight.shape[2:] == (1, 1) and bool((np.count_nonzero(weight, axis=1) <= 1).all())


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
    for scale in _dyadic(target, limits, hard):
        found = _integers(target, scale, ranges, limited_by)
        if found is not None and found.exact:
            return found
    # Clipping the largest weights may pay, so scales up to twice the clipping one are tried.
    largest = min(hard, 2 * limits["weights"])
    if not np.isfinite(largest):
        largest = float(ranges.threshold)  # all zero: any scale is right
    scales = _scales(target, largest)
    errors = _errors(_sampled(target, largest, ranges), scales) + _host_errors(target, scales)
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


def _scales(target: Target, largest: float) -> Reals:
    """Return scales from `largest` down, geometric; for a threshold, those that make M whole."""
    size = sum(weight.size for weight in target.weights)
    count = int(np.clip(EFFORT // max(size, 1), *CANDIDATES))
    steps = np.geomspace(largest, largest / SEARCHED, count)
    if target.threshold is None:
        return steps
    mantissas = np.unique(np.floor(steps * target.threshold))
    whole: Reals = mantissas[mantissas >= 1] / target.threshold
    return whole


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


@dataclass(frozen=True)
class _Part:
    """Weights whose rounding counts `share` times, with the range that they are clipped to."""

    weights: Reals
    share: float
    low: int
    high: int


def _parts(target: Target, ranges: Ranges) -> list[_Part]:
    """Return all synapses; an error counts with the square of what a message stands for."""
    return [
        _Part(weight, source.unit**-2, ranges.weight_low * n, ranges.weight_high * n)
        for weight, source, n in zip(target.weights, target.sources, target.parallel, strict=True)
        if not source.host
    ]


def _host_errors(target: Target, scales: Reals) -> Reals:
    """Squared error of what the host adds: half a unit of the bias, 1/12 on average per output."""
    sources = zip(target.weights, target.sources, strict=True)
    outputs = sum(len(weight) for weight, source in sources if source.host)
    return outputs / 12 / np.square(scales)


def _sampled(target: Target, largest: float, ranges: Ranges) -> list[_Part]:
    """Return every k-th weight for k others, but all of those that some scale would clip.

    The few largest weights decide how far a scale may clip, so none of them is left out.
    """
    chosen = []
    for part in _parts(target, ranges):
        stride = max(1, part.weights.size // SAMPLE)
        flat = part.weights.reshape(-1)
        far = np.abs(flat) * largest > part.high
        chosen.append(replace(part, weights=flat[far]))
        chosen.append(replace(part, weights=flat[~far][::stride], share=part.share * stride))
    return chosen


def _errors(parts: list[_Part], scales: Reals) -> Reals:
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
        np.array_equal(w, real * 2.0 ** (shift or 0)) and (shift is None or _whole(real))
        for w, real, shift in zip(weights, meant, shifts, strict=True)
    )
    scales = np.array([scale])
    error = float(_errors(_parts(target, ranges), scales)[0])
    error += 0.0 if exact else float(_host_errors(target, scales)[0])
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
