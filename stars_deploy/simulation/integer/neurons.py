"""The neurons of one population of the integer engine over T steps, in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stars_deploy.errors import EngineError
from stars_deploy.simulation.integer.layer import NO_MEMORY, STATE_LIMIT, Layer, Rule

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Activity:
    """Negated spikes (0 or -1) [T, B, ...] and, if asked for, voltages before reset alike."""

    spikes: Tensor
    voltages: Tensor | None  # state units


@dataclass(frozen=True)
class Readout:
    """Voltage of a read-out [B, ...] in state units: after the last step, or the sum over T."""

    voltage: Tensor


def advance(
    layer: Layer, sums: Tensor, steps: int, keep: bool, host: Tensor | None = None
) -> Activity | Readout:
    """Integrate what `weighted_sums` and `host_bias` returned over T steps from rest."""
    if layer.rule is Rule.SUMMED:
        return _summed(layer, sums, steps)
    if layer.rule is Rule.SHIFTED:
        return _shifted(layer, sums, steps, keep)
    return _stepwise(layer, sums, steps, keep, host)


def _summed(layer: Layer, sums: Tensor, steps: int) -> Readout:
    """v(T) = sum of a << 6 over T, plus T B; it is proved to stay below the threshold."""
    last = -sums[0]
    if layer.offset is not None:
        last = last.add_(layer.offset, alpha=steps)
    return Readout(last)


def _shifted(layer: Layer, sums: Tensor, steps: int, keep: bool) -> Activity | Readout:
    """Update z = theta - v, theta = vth << 6, in three passes over memory per step.

    With k = 1 - dv/4096 and A = theta - k theta - B - (a << 6), which `sums` holds:
    z = A + k z;  -spike = clamp(z, -1, 0), since z is an integer and v > theta is z <= -1;
    z = theta where z < 0, which is the reset of v to 0.
    """
    import torch

    threshold = float(layer.population.vth << 6)
    factor = 1 - layer.population.dv / 4096
    # Each step's sums are needed once: its spikes take their place, unless one image is for all.
    spikes = sums if len(sums) == steps else _like(sums, steps, sums.dtype)
    voltages = _like(sums, steps, sums.dtype) if keep else None
    total = torch.zeros_like(sums[0], dtype=torch.float64) if layer.accumulates else None
    z = torch.full_like(sums[0], threshold)
    for t in range(steps):
        z = torch.add(sums[t if len(sums) == steps else 0], z, alpha=factor, out=z)
        torch.clamp(z, -1.0, 0.0, out=spikes[t])
        if voltages is not None:
            torch.sub(threshold, z, out=voltages[t])
        if total is not None:
            total += threshold - z
        if t + 1 < steps:
            z = torch.threshold_(z, -0.5, threshold)
    if layer.population.spiking:
        return Activity(spikes, voltages)
    return Readout(threshold - z if total is None else total)


def _like(sums: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Return an empty [T, B, ...] with the memory layout of `sums`."""
    import torch

    count, *shape = sums.shape[1:]
    if len(shape) < 3:
        return torch.empty((steps, count, *shape), dtype=dtype, device=sums.device)
    layout = torch.channels_last
    flat = torch.empty(
        (steps * count, *shape), dtype=dtype, device=sums.device, memory_format=layout
    )
    return flat.view(steps, count, *shape)


def _stepwise(
    layer: Layer, sums: Tensor, steps: int, keep: bool, host: Tensor | None
) -> Activity | Readout:
    import torch

    threshold = float(layer.population.vth << 6)
    spikes = _like(sums, steps, torch.float32)
    voltages = _like(sums, steps, sums.dtype) if keep else None
    u = voltage = reached = torch.zeros_like(sums[0])
    total = torch.zeros_like(sums[0], dtype=torch.float64) if layer.accumulates else None
    for t in range(steps):
        u = _current(layer, u, sums[min(t, len(sums) - 1)])
        reached = _voltage(layer, voltage, u, host)
        fired = reached > threshold
        unproved = not layer.contained and not layer.emulate
        if unproved and not layer.population.spiking and bool(fired.any()):
            raise EngineError(
                f"read-out {layer.population.name}: the summed voltage exceeds the threshold "
                f"mantissa {layer.population.vth}, so it would spike and reset on the chip"
            )
        torch.neg(fired.float(), out=spikes[t])
        if voltages is not None:
            voltages[t] = reached
        if total is not None:
            total += reached
        voltage = reached.masked_fill(fired, 0)
    if layer.population.spiking:
        return Activity(spikes, voltages)
    return Readout(reached if total is None else total)


def _current(layer: Layer, u: Tensor, activation: Tensor) -> Tensor:
    """u = tz(u (4096 - (du + 1)) / 4096) + (a << 6), wrapped into 24 bits."""
    import torch

    if layer.population.du != NO_MEMORY:
        u = (u * (1 - (layer.population.du + 1) / 4096)).trunc_()
        activation = u.add_(activation)
    if layer.contained:
        return activation
    above, below = activation > STATE_LIMIT, activation <= -STATE_LIMIT
    if not layer.emulate and bool((above | below).any()):
        raise EngineError(_overflow(layer, "the current u wraps"))
    turn = 2.0 * STATE_LIMIT
    wrapped = torch.where(below, activation + turn, activation)
    return torch.where(above, activation - turn, wrapped)


def _voltage(layer: Layer, voltage: Tensor, u: Tensor, host: Tensor | None) -> Tensor:
    """v = tz(v (4096 - dv) / 4096) + u + B, clipped to 24 bits; the host adds to B per image."""
    voltage = voltage * (1 - layer.population.dv / 4096)
    if layer.truncates:
        voltage = voltage.trunc_()
    voltage = voltage.add_(u)
    if layer.offset is not None:
        voltage = voltage.add_(layer.offset)
    if host is not None:
        voltage = voltage.add_(host[0])
    if layer.contained:
        return voltage
    if not layer.emulate and bool((voltage.abs() >= STATE_LIMIT).any()):
        raise EngineError(_overflow(layer, "the voltage v clips"))
    return voltage.clamp_(1 - STATE_LIMIT, STATE_LIMIT - 1)


def _overflow(layer: Layer, what: str) -> str:
    return (
        f"population {layer.population.name}: {what} at 2^23 = {STATE_LIMIT} on this input; "
        f"export again with smaller weights (a smaller scale)"
    )
