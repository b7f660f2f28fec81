"""Modeled latency: how long the steps of a chip last that waits for its slowest core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Timing
from stars_deploy.config.profile_limits import Limits
from stars_deploy.simulation.energy.events import Events, PopulationEvents

Reals = NDArray[np.float64]
CORES_PER_TILE = 4  # Davies et al. 2018: a Loihi chip has 32 tiles of four cores
TILES = 32  # over which the barrier is stated


@dataclass(frozen=True)
class Latency:
    """Duration in ns of an image from its first step to its read-out, and between two images."""

    first_ns: float
    interval_ns: float


def work(population: PopulationEvents, timing: Timing) -> Reals:
    """Return [T] ns that one core would need for a population's step, one event after the other.

    w_p[t] = synaptic_operations * t_syn + active * t_active + idle * t_idle.
    """
    total: Reals = (
        population.synaptic_operations * timing.synaptic_operation_ns.value
        + population.active * timing.neuron_update_active_ns.value
        + population.idle * timing.neuron_update_inactive_ns.value
    )
    return total


def in_pipeline(events: Events, timing: Timing) -> dict[str, Reals]:
    """Return the work of every population at the chip's steps s = 0 .. T - 1 of a full pipeline.

    Images follow each other every T steps, and a population of depth d is d - 1 steps behind
    the first one: at chip step s it does its own step (s - (d - 1)) mod T.
    """
    return {p.name: np.roll(work(p, timing), p.depth - 1) for p in events.populations}


def bounds(events: Events, timing: Timing, limits: Limits) -> tuple[Latency, Latency]:
    """Return the least and the greatest latency that any placement can have in this model.

    Least: all work spread evenly over all cores (a core per neuron where their number is not
    known), and the barrier of one tile. Greatest: one core does everything, one message after the
    other included, and the barrier of all tiles.
    """
    total = np.sum(list(in_pipeline(events, timing).values()), axis=0)
    cores = sum(population.neurons for population in events.populations)
    if limits.cores_per_chip is not None:
        cores = limits.cores_per_chip.value * (limits.chips.value if limits.chips else 1)
    least = total / cores + timing.barrier_one_tile_ns.value
    steps = [np.roll(p.messages, p.depth - 1) for p in events.populations]
    messages = np.sum(steps, axis=0) + events.input_messages
    greatest = total + messages * timing.spike_within_tile_ns.value
    most = greatest + timing.barrier_all_tiles_ns.value
    return _latency(least, events), _latency(most, events)


def placed(events: Events, timing: Timing, cores: Mapping[str, int]) -> Latency:
    """Return the latency of populations that lie on so many cores of their own each.

    step[s] = max over populations of w_p[s] / cores_p + barrier; a population's work is even on
    its cores, and messages travel while cores compute. The barrier is interpolated linearly
    between one tile and all 32 from the number of tiles (of four cores) that are used.
    """
    shares = [w / cores[name] for name, w in in_pipeline(events, timing).items()]
    tiles = min(-(-sum(cores.values()) // CORES_PER_TILE), TILES)
    one, whole = timing.barrier_one_tile_ns.value, timing.barrier_all_tiles_ns.value
    barrier = one + (whole - one) * (tiles - 1) / (TILES - 1)
    return _latency(np.max(shares, axis=0) + barrier, events)


def _latency(steps: Reals, events: Events) -> Latency:
    """Return first = sum of the T + L steps from an image's entry on, interval = sum of T steps.

    L is the depth of the read-out. Step 0 of the image enters with the first chip step that
    `steps` holds; the L steps more are those in which its last spikes reach the read-out.
    """
    depth = max(population.depth for population in events.populations)
    count = len(steps)
    # Messages of step 0 are sent in the chip step before depth 1 receives them.
    passed = [steps[s % count] for s in range(-1, count + depth - 1)]
    return Latency(float(sum(passed)), float(steps.sum()))
