"""Events per image that the energy and latency models charge for, population by population."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Profile
from stars_deploy.graph.geometry import output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import input_name
from stars_deploy.simulation.energy.activity import Activity
from stars_deploy.simulation.energy.counts import depths, synapses

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Relay:
    """A population that hands the spikes of `origin` on, one neuron each, without memory.

    It has one synapse a neuron, and a neuron is active in the steps in which a spike reaches it.
    """

    name: str
    origin: str
    neurons: int
    depth: int


@dataclass(frozen=True)
class PopulationEvents:
    """Events of one population, float64 [T], mean over the images; step t is its own step t."""

    name: str
    neurons: int
    depth: int
    synaptic_operations: Reals
    active: Reals
    messages: Reals

    @property
    def idle(self) -> Reals:
        """Neuron updates that are not active."""
        return self.neurons - self.active


@dataclass(frozen=True)
class Events:
    """Events of one image.

    Attributes:
        input_messages: graded messages per step, one from each input value.
        host_macs: multiply-accumulates that the host does once, in place of input messages.
    """

    populations: tuple[PopulationEvents, ...]
    input_messages: int
    host_macs: int


def input_on_host(profile: Profile) -> bool:
    """Return whether the first layer's current is computed on the host and sent as biases.

    So it is on a Loihi that knows no graded messages: an analog input cannot be sent as spikes.
    """
    known = profile.arithmetic
    return profile.identity.family == "loihi" and known is not None and known.message_bits is None


def events_of(
    graph: nir.NIRGraph, activity: Activity, on_host: bool, relays: Sequence[Relay] = ()
) -> Events:
    """Return what one image costs in events.

    synaptic_operations_p[t] = sum over sources s of sum_i spikes_s[t, i] * synapses_{s -> p}[i],
    where every input value, and every neuron that does not spike but drives synapses, sends one
    graded message at each step; the host may replace the input.
    """
    steps, shapes, order = metadata_of(graph).T, output_shapes(graph), depths(graph)
    image = input_name(graph)
    pixels = math.prod(shapes[image])
    links = synapses(graph)
    operations = {name: np.zeros(steps) for name in order}
    host = 0
    for (source, target), count in links.items():
        if source == image:
            host += int(count.sum()) if on_host else 0
            operations[target] += 0 if on_host else int(count.sum())
        else:
            operations[target] += _sent(activity, source, count.shape, steps) @ count.reshape(-1)
    found = [
        PopulationEvents(
            name=name,
            neurons=math.prod(shapes[name]),
            depth=order[name],
            synaptic_operations=operations[name],
            active=activity.active[name] / activity.images,
            messages=(
                _sent(activity, name, shapes[name], steps).sum(axis=1)
                if any(source == name for source, _ in links)
                else np.zeros(steps)
            ),
        )
        for name in order
    ]
    found += [
        _relayed(item, _sent(activity, item.origin, shapes[item.origin], steps).sum(axis=1))
        for item in relays
    ]
    return Events(tuple(found), 0 if on_host else pixels, host)


def _sent(activity: Activity, name: str, shape: tuple[int, ...], steps: int) -> Reals:
    """Return [T, neurons]: messages per image; a neuron that does not spike sends one a step."""
    if name not in activity.spikes:
        return np.ones((steps, math.prod(shape)))
    sent: Reals = activity.spikes[name].reshape(steps, -1) / activity.images
    return sent


def _relayed(relay: Relay, spikes: Reals) -> PopulationEvents:
    return PopulationEvents(relay.name, relay.neurons, relay.depth, spikes, spikes, spikes)


def relays_of(document: Mapping[str, Any]) -> list[Relay]:
    """Return the relays in `loihi/network.json`: populations that stand for no node."""
    held = {item["name"]: item for item in document["populations"]}
    feeding = {item["target"]: item["source"] for item in document["connections"]}
    found = []
    for name, item in held.items():
        if item["node"] is None:
            origin = name
            while held[origin]["node"] is None:  # relays in a row
                origin = feeding[origin]
            size = math.prod(item["shape_whc"])
            found.append(Relay(name, held[origin]["node"], size, item["depth"]))
    return found
