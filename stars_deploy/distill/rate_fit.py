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
from stars_deploy.networks.neuron import lif

MIN_GAIN = 1e-3  # of a channel that never fires: it keeps a gradient, and no division fails


class ChannelFit(NamedTuple):
    """Slope p, offset q, gain g and what is left of the error, each `[C]`.

    error is E(relu(z) - g rate)^2 / E relu(z)^2, 0 where the ReLU itself is always 0.
    """

    slope: Tensor
    offset: Tensor
    gain: Tensor
    error: Tensor


def threshold_currents(neuron: Neuron, T: int) -> tuple[float, float]:
    """Return the constant currents above which a LIF fires within T steps, and in every step.

    From V_r a constant current X has H_t - V_r = r X (1 - (1 - 1/tau)^t), with r = 1 or, without
    decay_input, r = tau; in the first step that is r X / tau.
    """
    height = neuron.v_threshold - neuron.v_reset
    gain = 1.0 if neuron.decay_input else neuron.tau
    first = height / (gain * (1 - (1 - 1 / neuron.tau) ** T))
    return first, height * neuron.tau / gain


def fit_gaussian(mean: Tensor, std: Tensor, neuron: Neuron, T: int) -> ChannelFit:
    """Fit p, q, g for z ~ N(mean, std^2) per channel and a current that is constant over time.

    Grid search over where the staircase of rates starts and how wide it is, gain in closed form.

    Args: mean, std: moments of the pre-activation z, `[C]`; for a BatchNorm its bias and |weight|.
    """
    nodes = torch.linspace(-4, 4, 161, dtype=torch.float64)
    weights = torch.exp(-nodes.square() / 2)
    weights = weights / weights.sum()
    z = mean.double()[:, None] + std.double()[:, None] * nodes  # [C, Q]
    relu = z.clamp(min=0)
    energy = (relu.square() * weights).sum(1)
    active = ((z > 0) * weights).sum(1)
    unit = (
        (energy / active.clamp(min=1e-12)).sqrt().clamp(min=1e-6)
    )  # rms of the ReLU where it is on
    best = _unfitted(unit, energy)
    first, full = threshold_currents(neuron, T)
    span = max(full - first, 0.1 * full)
    for start in torch.linspace(-0.5, 1.5, 21).tolist():
        for width in torch.logspace(-0.8, 0.8, 25).tolist():
            slope = span / (width * unit)
            offset = first - slope * start * unit
            rate = _rate((slope[:, None] * z + offset[:, None])[None], neuron, T)
            best = _better(best, _scored(slope, offset, relu, rate, weights, energy))
    return ChannelFit(*(value.to(mean.dtype) for value in best))


def fit_samples(
    current: Tensor, relu: Tensor, start: ChannelFit, neuron: Neuron, T: int
) -> ChannelFit:
    """Refine p, q, g on recorded samples, whose current may vary over time.

    Three rounds of a grid around the best (p, q) so far, each a third as wide; the gain is the
    least-squares one.

    Args:
        current: the unscaled pre-activation of the student, `[T or 1, N, C]`.
        relu: the teacher's activation at the same N places, `[N, C]`.
        start: first guess of slope and offset.
    """
    target = relu.T.double()  # [C, N]
    weights = torch.full((len(relu),), 1 / len(relu), dtype=torch.float64)
    energy = target.square().mean(1)
    best = _unfitted(start.slope.double(), energy)
    slope, offset = start.slope, start.offset
    _, full = threshold_currents(neuron, T)
    ratios, shifts = torch.linspace(0.6, 1.6, 7), torch.linspace(-0.15, 0.15, 7) * full
    for _ in range(3):
        centre_slope, centre_offset = slope, offset
        for ratio in ratios.tolist():
            for shift in shifts.tolist():
                p, q = centre_slope * ratio, centre_offset + shift
                rate = _rate(current * p + q, neuron, T).T.double()
                best = _better(best, _scored(p.double(), q.double(), target, rate, weights, energy))
        slope, offset = best.slope.to(current.dtype), best.offset.to(current.dtype)
        ratios, shifts = ratios ** (1 / 3), shifts / 3
    return ChannelFit(*(value.to(current.dtype) for value in best))


def _rate(current: Tensor, neuron: Neuron, T: int) -> Tensor:
    with torch.no_grad():
        return lif(current, T, neuron).mean(0)


def _unfitted(slope: Tensor, energy: Tensor) -> ChannelFit:
    return ChannelFit(
        slope, torch.zeros_like(slope), torch.zeros_like(slope), torch.full_like(energy, math.inf)
    )


def _scored(
    slope: Tensor, offset: Tensor, relu: Tensor, rate: Tensor, weights: Tensor, energy: Tensor
) -> ChannelFit:
    power = (rate.square() * weights).sum(1)
    match = (relu * rate * weights).sum(1)
    gain = torch.where(power > 0, match / power.clamp(min=1e-12), 0.0).clamp(min=MIN_GAIN)
    error = energy - 2 * gain * match + gain.square() * power
    error = torch.where(energy > 0, error / energy.clamp(min=1e-12), power)
    return ChannelFit(slope, offset, gain, error)


def _better(one: ChannelFit, other: ChannelFit) -> ChannelFit:
    wins = other.error < one.error
    return ChannelFit(*(torch.where(wins, b, a) for a, b in zip(one, other, strict=True)))
