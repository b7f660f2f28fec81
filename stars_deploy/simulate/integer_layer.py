"""One population of the integer engine on a chunk of images, in torch.

Integers are held in float32 or float64 only where every result, partial sum and product is an
integer below 2^24 or 2^53: then floating point is exact, whatever the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stars_deploy.errors import EngineError
from stars_deploy.simulate.integer_bounds import STATE_LIMIT, reach
from stars_deploy.simulate.integer_network import INPUT, Connection, IntegerNetwork, Population

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLOAT64_EXACT = 1 << 53


@dataclass(frozen=True)
class Synapse:
    """Weights times 64 (state units), laid out for the kernel that uses them."""

    connection: Connection
    weight: Tensor


@dataclass(frozen=True)
class Layer:
    """A population and its synapses, and what is known about their ranges."""

    population: Population
    synapses: tuple[Synapse, ...]
    bias: Tensor | None
    dtype: torch.dtype
    contained: bool  # proved: no wrap, no clip
    emulate: bool  # otherwise: wrap and clip as Lava does instead of raising
    truncates: bool  # whether the voltage decay can leave a fraction to be cut
    sums: bool  # a read-out whose last voltage is the plain sum over T


@dataclass(frozen=True)
class Answer:
    """Spikes and, if asked, voltages before reset [T, B, ...]; the last voltage [B, ...].

    Spikes are 0.0 or 1.0; voltages are in state units.
    """

    spikes: Tensor
    voltages: Tensor | None
    last: Tensor


def prepare(network: IntegerNetwork, population: Population, device: str, emulate: bool) -> Layer:
    """Choose number format and layouts for a population from its worst case."""
    import torch

    limits = reach(network, population)
    contained = limits.contained and (population.spiking or limits.below_threshold)
    halves = population.dv == 4096 or float(np.log2(1 - population.dv / 4096)).is_integer()
    single = contained and halves and population.du == 4095 and limits.activation < 1 << 18
    if limits.activation * 64 * network.T >= FLOAT64_EXACT:
        raise EngineError(f"{population.name}: sums of weighted messages exceed 2^53")
    dtype = torch.float32 if single else torch.float64
    connections = network.into(population.name)
    return Layer(
        population=population,
        synapses=tuple(_synapse(item, network, dtype, device) for item in connections),
        bias=None if population.bias is None else _tensor(population.bias, dtype, device),
        dtype=dtype,
        contained=contained,
        emulate=emulate,
        truncates=_truncates(population, network.T),
        sums=contained and not population.spiking and population.du == 4095 and population.dv == 0,
    )


def _truncates(population: Population, steps: int) -> bool:
    """Whether T - 1 decays of a voltage that starts as a multiple of 2^k can leave a fraction."""
    keep = 4096 - population.dv
    if keep in (0, 4096):
        return False
    if population.du != 4095 or keep & (keep - 1):
        return True
    zeros = 6  # a << 6; the bias may be finer
    if population.bias is not None:
        bits = int(np.bitwise_or.reduce(population.bias, axis=None))
        while bits % (1 << zeros):
            zeros -= 1
    return (steps - 1) * (12 - (keep.bit_length() - 1)) > zeros


def _synapse(item: Connection, network: IntegerNetwork, dtype: torch.dtype, device: str) -> Synapse:
    import torch

    weight = _tensor(item.weight * 64, dtype, device)
    if item.kind == "conv":
        return Synapse(item, weight.contiguous(memory_format=torch.channels_last))
    shape = (
        network.input_shape
        if item.source == INPUT
        else next(p.shape for p in network.populations if p.name == item.source)
    )
    if len(shape) == 3:  # activity lies in memory as H, W, C: turn the columns, not the activity
        weight = weight.reshape(-1, *shape).permute(0, 2, 3, 1).flatten(1)
    return Synapse(item, weight.contiguous())


def _tensor(values: object, dtype: torch.dtype, device: str) -> Tensor:
    import torch

    return torch.as_tensor(values, dtype=dtype, device=device)


def activation(layer: Layer, messages: Mapping[str, Tensor]) -> Tensor:
    """Sum the weighted messages, times 64: [T, B, ...], or [1, B, ...] if they are constant."""
    total: Tensor | None = None
    for synapse in layer.synapses:
        message = messages[synapse.connection.source]
        steps, count = message.shape[:2]
        part = _weighted(synapse, message.flatten(0, 1).to(layer.dtype))
        if layer.emulate and synapse.connection.kind == "conv":
            part = _wrapped(part, 64 * STATE_LIMIT)  # the 24-bit output buffer of Lava's Conv
        part = part.reshape(steps, count, *part.shape[1:])
        total = part if total is None else total + part
    if total is None:
        raise EngineError(f"{layer.population.name}: no connection ends here")
    return total


def _weighted(synapse: Synapse, message: Tensor) -> Tensor:
    import torch.nn.functional as F

    item = synapse.connection
    if not item.graded and item.source == INPUT:
        message = (message != 0).to(message.dtype)
    if item.kind == "dense":
        if message.ndim == 4:
            message = message.permute(0, 2, 3, 1)
        return F.linear(message.flatten(1), synapse.weight)
    return F.conv2d(
        message,
        synapse.weight,
        None,
        item.stride,
        item.padding,
        item.dilation,
        item.groups,
    )


def _wrapped(value: Tensor, half: int) -> Tensor:
    """Two's complement wrap into [-half, half)."""
    return (value + half).remainder(2 * half) - half


def advance(layer: Layer, current: Tensor, steps: int, keep: bool) -> Answer:
    """Integrate `current` [T or 1, B, ...] (state units) over T steps from rest."""
    import torch

    threshold = float(layer.population.vth << 6)
    shape = (steps, *current.shape[1:])
    spikes = torch.empty(shape, dtype=torch.float32, device=current.device)
    voltages = torch.empty(shape, dtype=layer.dtype, device=current.device) if keep else None
    u = voltage = reached = torch.zeros_like(current[0])
    for t in range(steps):
        u = _current(layer, u, current[min(t, len(current) - 1)])
        reached = _voltage(layer, voltage, u)
        fired = reached > threshold
        if not layer.population.spiking and not layer.contained and bool(fired.any()):
            raise EngineError(
                f"read-out {layer.population.name}: the summed voltage exceeds the threshold "
                f"mantissa {layer.population.vth}, so it would spike and reset on the chip"
            )
        spikes[t] = fired
        voltage = reached.masked_fill(fired, 0)
        if voltages is not None:
            voltages[t] = reached
    return Answer(spikes, voltages, reached)


def _current(layer: Layer, u: Tensor, activation: Tensor) -> Tensor:
    """u = tz(u (4096 - (du + 1)) / 4096) + (a << 6), wrapped into 24 bits."""
    import torch

    if layer.population.du != 4095:
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


def _voltage(layer: Layer, voltage: Tensor, u: Tensor) -> Tensor:
    """v = tz(v (4096 - dv) / 4096) + u + B, clipped to 24 bits."""
    voltage = voltage * (1 - layer.population.dv / 4096)
    if layer.truncates:
        voltage = voltage.trunc_()
    voltage = voltage.add_(u)
    if layer.bias is not None:
        voltage = voltage.add_(layer.bias)
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
