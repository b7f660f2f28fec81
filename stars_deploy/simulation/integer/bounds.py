"""What an integer network can reach at worst, so that the engine need not look at run time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.simulation.integer.extremes import host_range, sum_range, table_range
from stars_deploy.simulation.integer.network import INPUT, Connection, IntegerNetwork, Population

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Reach:
    """Bounds of one population over all inputs.

    Attributes:
        activation: largest |a|, which also bounds every partial sum of one connection.
        bias: largest |B|, with what the host adds for an image.
        state: largest |u| or |v| before a reset; below 2^23 nothing wraps or clips.
        below_threshold: v never exceeds the threshold.
    """

    activation: float
    bias: float
    state: float
    below_threshold: bool


def reach(network: IntegerNetwork, population: Population) -> Reach:
    """Bound the activation and the state of a population over T steps from rest."""
    low, high, largest = np.zeros(()), np.zeros(()), 0.0
    host_low = host_high = np.zeros(())
    for connection in network.into(population.name):
        if connection.shift is not None:
            below, above = host_range(connection, network.input_table, population.shape)
            host_low, host_high = host_low + below, host_high + above
            continue
        below, above = _activation(network, connection, population)
        low, high = low + below, high + above
        largest = max(largest, float(-below.min()), float(above.max()))
    largest = max(largest, float(-low.min()), float(high.max()))
    bias = np.zeros(()) if population.bias is None else population.bias.astype(np.float64)
    unit = float(1 << population.bias_exp)
    least, most = bias + unit * host_low, bias + unit * host_high
    keep_u, keep_v = 1 - (population.du + 1) / 4096, 1 - population.dv / 4096
    threshold = float(population.vth << 6)
    currents = [np.zeros(()), np.zeros(())]
    voltages = [np.zeros(()), np.zeros(())]
    state = top = 0.0
    for _ in range(network.T):
        currents = [
            np.minimum(currents[0], 0) * keep_u + 64 * low,
            np.maximum(currents[1], 0) * keep_u + 64 * high,
        ]
        carried = np.clip(voltages[1], 0, threshold)
        voltages = [
            np.minimum(voltages[0], 0) * keep_v + currents[0] + least,
            carried * keep_v + currents[1] + most,
        ]
        for low_end, high_end in (currents, voltages):
            state = max(state, float(-low_end.min()), float(high_end.max()))
        top = max(top, float(voltages[1].max()))
    largest_bias = max(float(most.max()), -float(least.min()))
    return Reach(largest, largest_bias, state, below_threshold=top <= threshold)


def _activation(
    network: IntegerNetwork, connection: Connection, target: Population
) -> tuple[Reals, Reals]:
    """Least and greatest sum per output channel or neuron, shaped to broadcast over the target.

    Zero is always a possible message, since padding sends nothing.
    """
    low, high = _messages(network, connection)
    groups = connection.groups if connection.kind == "conv" else None
    return sum_range(connection.weight, groups, low, high, target.shape)


def _messages(network: IntegerNetwork, connection: Connection) -> tuple[Reals, Reals]:
    """Least and greatest message per source channel, zero included."""
    if connection.source == INPUT and connection.graded:
        return table_range(network.input_table)
    shape = (
        network.input_shape
        if connection.source == INPUT
        else next(item.shape for item in network.populations if item.name == connection.source)
    )
    return np.zeros(shape[0]), np.ones(shape[0])
