"""Modeled energy: what an engine counted times what a profile says one event costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Energy
from stars_deploy.graph.geometry import Window, output_shapes, window_of
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import (
    SPIKING,
    input_name,
    spiking_nodes,
    targets,
    topological_order,
)
from stars_deploy.simulate.recording import Engine, EngineInfo, Recording, Spikes

Array = NDArray[Any]


class CountingEngine:
    """An engine that also adds up, per neuron, the spikes of the images it has run."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.info: EngineInfo = engine.info
        self.nodes: list[str] = engine.nodes
        self.images = 0
        self.spikes: dict[str, NDArray[np.int64]] = {}

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Run the engine and count."""
        recording = self.engine.run(images, feed, margins)
        self.images += len(images)
        for node, train in recording.spikes.items():
            counts = train.sum(axis=(0, 1), dtype=np.int64)
            self.spikes[node] = self.spikes.get(node, np.zeros_like(counts)) + counts
        return recording


def fan_out(graph: nir.NIRGraph) -> dict[str, NDArray[np.int64]]:
    """Return for the input and every spiking node how many synapses each neuron drives.

    Pools and flattening are not counted: on a chip they are part of the layer that follows.
    A grouped convolution, written expanded, counts only its own blocks.
    """
    shapes = output_shapes(graph)
    driven: dict[str, NDArray[np.int64]] = {}
    for name in reversed(topological_order(graph)):
        total = np.zeros(shapes[name], np.int64)
        for target in targets(graph, name):
            node = graph.nodes[target]
            total += _through(target, node, driven[target], shapes[name])
        driven[name] = total
    return {name: driven[name] for name in [input_name(graph), *spiking_nodes(graph)]}


def _through(name: str, node: nir.NIRNode, driven: Array, shape: tuple[int, ...]) -> Array:
    """Return the synapses per element of `shape` that lead into or through `node`."""
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        linked = (node.weight != 0).any(axis=tuple(range(2, node.weight.ndim)))  # [O, I / groups]
        per_channel = linked.reshape(int(node.groups), -1, linked.shape[1]).sum(axis=1).reshape(-1)
        return _spread(per_channel, window_of(name, node), shape[1:], driven.shape[1:])
    if isinstance(node, nir.Affine | nir.Linear):
        return np.full(shape, node.weight.shape[0], np.int64)
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        return _pooled(driven, window_of(name, node), shape)
    if isinstance(node, nir.Flatten | nir.Scale):
        return driven.reshape(shape)
    return np.zeros(shape, np.int64)  # a neuron or the output: the synapses end before it


def _spread(
    channels: Array, window: Window, given: tuple[int, ...], made: tuple[int, ...]
) -> Array:
    """Return channels[c] * (kernel taps that read the position), over all positions."""
    total = channels.astype(np.int64)
    for taps in _taps(window, given, made):
        total = total[..., None] * taps.sum(axis=0)
    return total


def _taps(window: Window, given: tuple[int, ...], made: tuple[int, ...]) -> list[Array]:
    """Return per axis a matrix [output, input]: how often an output reads an input position."""
    matrices = []
    for axis, (size, outputs) in enumerate(zip(given, made, strict=True)):
        matrix = np.zeros((outputs, size), np.int64)
        for out in range(outputs):
            first = out * window.stride[axis] - window.padding[axis]
            reads = first + window.dilation[axis] * np.arange(window.kernel[axis])
            matrix[out, reads[(reads >= 0) & (reads < size)]] += 1
        matrices.append(matrix)
    return matrices


def _pooled(driven: Array, window: Window, shape: tuple[int, ...]) -> Array:
    rows, columns = _taps(window, shape[1:], driven.shape[1:])
    summed: Array = np.einsum("cyx,yh,xw->chw", driven, rows, columns)
    return summed


def modeled_energy(
    graph: nir.NIRGraph, spikes: Mapping[str, Array], images: int, energy: Energy
) -> list[dict[str, Any]]:
    """Return energy per image in nJ, as {name, value, unit, kind, source}.

    E = e_syn * synops + e_neuron * T * neurons + e_spike * spikes. The input drives its synapses
    at every step, every neuron update counts as active, and hops between cores are left out,
    since they depend on placement.

    Args:
        spikes: per spiking node the spikes of each neuron, summed over steps and images.
    """
    steps = metadata_of(graph).T
    driven = fan_out(graph)
    image = input_name(graph)
    received = sum(int((spikes[node] * driven[node]).sum()) for node in spikes)
    operations = steps * int(driven[image].sum()) + received / images
    shapes = output_shapes(graph)
    stateful = (*SPIKING, nir.LI, nir.Output)  # the output: neurons that sum without spiking
    held = [name for name, node in graph.nodes.items() if isinstance(node, stateful)]
    neurons = sum(int(np.prod(shapes[name])) for name in held)
    emitted = sum(int(counts.sum()) for counts in spikes.values()) / images
    parts = {
        "synaptic_operations": (operations, energy.synaptic_operation_pj),
        "neuron_updates": (steps * neurons, energy.neuron_update_active_pj),
        "spikes": (emitted, energy.spike_within_tile_pj),
    }
    rows = [
        _row(name, count * cost.value / 1000, f"{count:,.0f} x {cost.value:g} pJ; {cost.source}")
        for name, (count, cost) in parts.items()
    ]
    note = "sum of the above; without hops between cores and static power"
    if energy.extrapolated_from:
        note += f"; constants of {energy.extrapolated_from}"
    return [*rows, _row("total", sum(row["value"] for row in rows), note)]


def _row(name: str, value: float, source: str) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": "nJ/image", "kind": "modeled", "source": source}
