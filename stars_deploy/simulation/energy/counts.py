"""What a graph makes a chip do: synapses between populations, and the multiplications of its ANN.

A population is everything that holds a state on a chip: the spiking nodes, leaky integrators, and
the read-out, whose neurons sum without spiking. Pools and flattening have no neurons: they are
part of the connection that they stand in, as `graph/linear.py` composes them for a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.geometry import Window, output_shapes, window_of
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import (
    SPIKING,
    input_name,
    output_name,
    sources,
    spiking_nodes,
    topological_order,
)

Array = NDArray[Any]
Counts = NDArray[np.int64]
Synapses = dict[tuple[str, str], Counts]


def populations(graph: nir.NIRGraph) -> list[str]:
    """Return the nodes that are neurons on a chip, in execution order.

    The output node counts, as neurons that sum without spiking, unless leaky integrators (which
    do exactly that) come right before it.
    """
    held = [n for n in topological_order(graph) if isinstance(graph.nodes[n], (*SPIKING, nir.LI))]
    readout = output_name(graph)
    before = [graph.nodes[name] for name in sources(graph, readout)]
    integrators = bool(before) and all(isinstance(node, nir.LI) for node in before)
    return held if integrators else [*held, readout]


def synapses(graph: nir.NIRGraph) -> Synapses:
    """Return per (source, target) how many synapses each source element has into the target.

    Sources are the input and the populations, targets the populations; arrays have the source's
    shape without batch and time. A kernel's zero weights count (a chip stores them with the
    others) as long as the two channels are linked by any weight at all, so the blocks of a
    grouped convolution, written expanded, count alone. An edge without a weight in between, such
    as an identity shortcut, is one synapse a neuron.
    """
    shapes = output_shapes(graph)
    found: Synapses = {}
    for target in populations(graph):
        for source, count in _into(graph, target, np.ones(shapes[target], np.int64), shapes):
            key = (source, target)
            found[key] = found[key] + count if key in found else count
    return found


def _into(
    graph: nir.NIRGraph, name: str, reached: Counts, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Counts]]:
    """Walk back from `name` to the populations; `reached` is the synapses behind each element."""
    held = {input_name(graph), *populations(graph)}
    for source in sources(graph, name):
        if source in held:
            yield source, reached
        else:
            node = graph.nodes[source]
            before = shapes[sources(graph, source)[0]]
            yield from _into(graph, source, _through(source, node, reached, before), shapes)


def fan_out(graph: nir.NIRGraph) -> dict[str, Counts]:
    """Return for the input and every spiking node how many synapses each element drives."""
    shapes = output_shapes(graph)
    names = [input_name(graph), *spiking_nodes(graph)]
    driven = {name: np.zeros(shapes[name], np.int64) for name in names}
    for (source, _target), count in synapses(graph).items():
        if source in driven:
            driven[source] += count
    return driven


def synaptic_operations(graph: nir.NIRGraph, spikes: Mapping[str, Counts], images: int) -> float:
    """Return the synaptic operations of one image: T sum fan_out(input) + sum spikes fan_out.

    Args: spikes: per spiking node those of each neuron, summed over steps and images.
    """
    driven = fan_out(graph)
    received = sum(int((count * driven[node]).sum()) for node, count in spikes.items())
    return metadata_of(graph).T * int(driven[input_name(graph)].sum()) + received / images


def _through(name: str, node: nir.NIRNode, reached: Counts, shape: tuple[int, ...]) -> Counts:
    """Return the synapses behind each element of `shape`, which `node` turns into `reached`."""
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        mixed = np.tensordot(links(node).astype(np.int64), reached, axes=(0, 0))  # [I, ...]
        return _windows(mixed, window_of(name, node), shape[1:])
    if isinstance(node, nir.Affine | nir.Linear):
        return np.full(shape, reached.sum(), np.int64)
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        return _windows(reached, window_of(name, node), shape[1:])
    return reached.reshape(shape)  # flattening and scaling


def links(node: nir.NIRNode) -> NDArray[np.bool_]:
    """Return [O, I]: which input channels of a convolution any weight links to which output."""
    linked = (node.weight != 0).any(axis=tuple(range(2, node.weight.ndim)))
    expanded: NDArray[np.bool_] = expand_kernel(linked, int(node.groups))
    return expanded


def _windows(reached: Counts, window: Window, size: tuple[int, ...]) -> Counts:
    """Return per input position the sum of `reached` over the outputs whose window reads it."""
    total = reached
    for axis, length in enumerate(size):
        taps = _taps(window, axis, length, reached.shape[1 + axis])
        total = np.moveaxis(np.tensordot(total, taps, axes=(1 + axis, 0)), -1, 1 + axis)
    return total


def _taps(window: Window, axis: int, given: int, made: int) -> Counts:
    """Return [output, input]: how often an output reads an input position of this axis."""
    matrix = np.zeros((made, given), np.int64)
    for out in range(made):
        first = out * window.stride[axis] - window.padding[axis]
        reads = first + window.dilation[axis] * np.arange(window.kernel[axis])
        matrix[out, reads[(reads >= 0) & (reads < given)]] += 1
    return matrix


def depths(graph: nir.NIRGraph) -> dict[str, int]:
    """Return per population the longest way from the input, in populations; the first has 1.

    A pipelined chip hands spikes on from one step to the next, so a population of depth d works
    on step t of an image d steps after that step's messages were sent.
    """
    found = {input_name(graph): 0}
    for name in topological_order(graph):
        if name not in found:
            held = isinstance(graph.nodes[name], (*SPIKING, nir.LI, nir.Output))
            found[name] = max(found[source] for source in sources(graph, name)) + held
    # Behind integrators, which are the read-out themselves, the output node adds no step.
    return {name: found[name] for name in populations(graph)}


def ann_macs(graph: nir.NIRGraph) -> int:
    """Return the multiply-accumulates of one pass of the ANN with the same linear operators.

    sum over convolutions of (output positions x kernel taps x linked channel pairs), plus the
    sizes of all dense matrices: the usual count, in which a padded zero is multiplied like any
    other value. Biases, pools and activation functions are left out.
    """
    shapes = output_shapes(graph)
    total = 0
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Conv1d | nir.Conv2d):
            taps = math.prod(node.weight.shape[2:])
            total += math.prod(shapes[name][1:]) * taps * int(links(node).sum())
        elif isinstance(node, nir.Affine | nir.Linear):
            total += int(node.weight.size)
    return total
