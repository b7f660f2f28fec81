"""Per channel, the affine of the input current that makes a LIF's firing rate follow a ReLU.

A LIF fires only above a threshold current, so scaling alone cannot make its rate look like
relu(z); an offset can: relu(z) ~ g rate(p z + q), with slope p, offset q and gain g per channel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stars_deploy.config.recipe import Neuron
from stars_deploy.networks.neuron import spike_train

NODES = 97  # of the quadrature over a Gaussian
GRID = 7  # values of slope, and of offset, tried per round
MIN_GAIN = 1e-3  # of a channel that never fires: it keeps a gradient, and no division fails


class ChannelFit(NamedTuple):
    """Slope p, offset q, gain g and what is left of the error, each `[C]`.

    error is E(relu(z) - g rate)^2 / E relu(z)^2, 0 where the ReLU itself is always 0.
    """

    slope: Tensor
    offset: Tensor
    gain: Tensor
    error: Tensor


class Pins(NamedTuple):
    """Values that a fit must keep, `[C]`, NaN where a channel is free.

    A shortcut that passes spikes on unchanged ties the slope behind it to the gain before it.
    """

    slope: Tensor | None = None
    gain: Tensor | None = None


FREE = Pins()


def threshold_currents(neuron: Neuron, T: int) -> tuple[float, float]:
    """Return the constant currents above which a LIF fires within T steps, and in every step.

    From V_r a constant current X has H_t - V_r = r X (1 - (1 - 1/tau)^t), with r = 1 or, without
    decay_input, r = tau; in the first step that is r X / tau. An IF neuron adds up: H_t = t X.
    """
    height = neuron.v_threshold - neuron.v_reset
    if neuron.model == "if":
        return height / T, height
    gain = 1.0 if neuron.decay_input else neuron.tau
    first = height / (gain * (1 - (1 - 1 / neuron.tau) ** T))
    return first, height * neuron.tau / gain


def fit_gaussian(
    mean: Tensor, std: Tensor, neuron: Neuron, T: int, pins: Pins = FREE
) -> ChannelFit:
    """Fit p, q, g for z ~ N(mean, std^2) per channel and a current that is constant over time.

    Args:
        mean: mean of the pre-activation z, `[C]`; behind a BatchNorm its bias.
        std: its deviation, `[C]`; behind a BatchNorm its |weight|.
    """
    nodes = torch.linspace(-4, 4, NODES).to(mean)
    weights = torch.softmax(-nodes.square() / 2, dim=0)
    z = mean + nodes[:, None] * std  # [Q, C]
    relu = z.clamp(min=0)
    on = ((z > 0) * weights[:, None]).sum(0).clamp(min=1e-12)
    unit = ((relu.square() * weights[:, None]).sum(0) / on).sqrt()
    # A ReLU that never opens has no size: any slope fits it, and that of its deviation is no
    # weight of a thousand, which integers could not hold.
    unit = torch.where(unit > 0, unit, std).clamp(min=1e-6)
    first, full = threshold_currents(neuron, T)
    # The staircase of rates starts at about 0.3 and ends at about 2 of the ReLU's size.
    slope = max(full - first, 0.1 * full) / (1.7 * unit)
    samples = _Samples(z[None], relu, weights, neuron, T)
    slope = _pinned(slope, pins.slope)
    return _search(samples, slope, first - 0.3 * slope * unit, 4.0, 0.6 * full, pins)


def fit_samples(
    current: Tensor,
    relu: Tensor,
    start: ChannelFit,
    neuron: Neuron,
    T: int,
    pins: Pins = FREE,
) -> ChannelFit:
    """Refine p, q, g on recorded samples, whose current may vary over time.

    Args:
        current: the unscaled pre-activation of the student, `[T or 1, N, C]`.
        relu: the teacher's activation at the same N places, `[N, C]`.
        start: first guess of slope and offset.
    """
    weights = torch.full((len(relu),), 1 / len(relu)).to(relu)
    samples = _Samples(current, relu, weights, neuron, T)
    _, full = threshold_currents(neuron, T)
    slope = _pinned(start.slope, pins.slope)
    return _search(samples, slope, start.offset, 1.6, 0.2 * full, pins)


class _Samples(NamedTuple):
    """What a fit is judged on: z `[T or 1, N, C]`, relu(z) `[N, C]`, weights `[N]` of sum 1."""

    z: Tensor
    relu: Tensor
    weights: Tensor
    neuron: Neuron
    T: int


def _pinned(values: Tensor, pin: Tensor | None) -> Tensor:
    return values if pin is None else torch.where(pin.isnan(), values, pin)


def _search(
    samples: _Samples, slope: Tensor, offset: Tensor, ratio: float, shift: float, pins: Pins
) -> ChannelFit:
    """Return the best of three grids around (slope, offset), each a third as wide as the last."""
    best = ChannelFit(slope, offset, torch.zeros_like(slope), torch.full_like(slope, math.inf))
    steps = torch.linspace(-1, 1, GRID).tolist()
    for zoom in (1.0, 1 / 3, 1 / 9):
        slope, offset = best.slope, best.offset
        for step in steps:
            p = _pinned(slope * ratio ** (zoom * step), pins.slope)
            for other in steps:
                best = _better(best, _score(samples, p, offset + zoom * shift * other, pins.gain))
    return best


def _score(
    samples: _Samples, slope: Tensor, offset: Tensor, pinned_gain: Tensor | None
) -> ChannelFit:
    """Return the fit with the pinned gain, or the least-squares one: E(relu rate) / E(rate^2)."""
    with torch.no_grad():
        rate = spike_train(samples.z * slope + offset, samples.T, samples.neuron).mean(0)
    power = samples.weights @ rate.square()
    match = samples.weights @ (samples.relu * rate)
    energy = samples.weights @ samples.relu.square()
    gain = _pinned((match / power.clamp(min=1e-12)).clamp(min=MIN_GAIN), pinned_gain)
    error = energy - 2 * gain * match + gain.square() * power
    error = torch.where(energy > 0, error / energy.clamp(min=1e-12), power)
    return ChannelFit(slope, offset, gain, error)


def _better(one: ChannelFit, other: ChannelFit) -> ChannelFit:
    wins = other.error < one.error
    return ChannelFit(*(torch.where(wins, b, a) for a, b in zip(one, other, strict=True)))
