"""A graph as stages: linear operators, each from one population, that end in one population.

Everything that has no place in such a chain becomes a finding that names its node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.geometry import Shape, output_shapes, window_of
from stars_deploy.graph.groups import compact_kernel, expand_kernel, find_groups
from stars_deploy.graph.order import input_name, sources, topological_order
from stars_deploy.targets.findings import Finding

Reals = NDArray[np.float64]
INPUT = "input"
FIELD_LIMIT = 127  # Lava's Conv keeps kernel size, stride, padding, dilation, groups in 8 bits

_LINEAR = (nir.Conv2d, nir.Affine, nir.Linear)
_NEURONS = (nir.LIF, nir.IF)


@dataclass(frozen=True)
class Incoming:
    """A linear operator: weight [O, I / groups, KH, KW] or [N_out, N_in], bias [O]."""

    node: str
    source: str  # INPUT, or the neuron node that it listens to
    kind: str  # conv or dense
    weight: Reals
    bias: Reals
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Stage:
    """A population and the operators that end in it; `neuron` is None for the read-out."""

    name: str
    shape: Shape
    incoming: tuple[Incoming, ...]
    neuron: nir.LIF | nir.IF | None
    depth: int


def stages_of(graph: nir.NIRGraph) -> tuple[list[Stage], list[Finding]]:
    """Return the stages of a pool-free runnable graph, and a finding for all that is none."""
    shapes = output_shapes(graph)
    found: list[Finding] = []
    stages: list[Stage] = []
    depths = {INPUT: 0}
    for name in topological_order(graph):
        node = graph.nodes[name]
        if isinstance(node, _LINEAR):
            found += _misplaced(graph, name)
        if not isinstance(node, (*_NEURONS, nir.Output)):
            continue
        feeding = sources(graph, name)
        if isinstance(node, nir.Output):
            feeding = [_through_flatten(graph, item) for item in feeding]
        if len(feeding) > 1:
            found.append(_residual(name, feeding))
            continue
        if not isinstance(graph.nodes[feeding[0]], _LINEAR):
            found.append(_not_linear(graph, name, feeding[0]))
            continue
        incoming = _incoming(graph, feeding[0], shapes)
        if incoming.source not in depths:
            continue  # its source was refused already
        found += _fields(incoming)
        spiking = isinstance(node, _NEURONS)
        title = name if spiking else feeding[0]
        depths[title] = depths[incoming.source] + 1
        stages.append(
            Stage(
                name=title,
                shape=shapes[feeding[0]],
                incoming=(incoming,),
                neuron=node if spiking else None,
                depth=depths[title],
            )
        )
    return stages, found


def _through_flatten(graph: nir.NIRGraph, name: str) -> str:
    """Return the node before a chain of flattens that ends in `name`."""
    while isinstance(graph.nodes[name], nir.Flatten) and len(sources(graph, name)) == 1:
        name = sources(graph, name)[0]
    return name


def _incoming(graph: nir.NIRGraph, name: str, shapes: dict[str, Shape]) -> Incoming:
    node = graph.nodes[name]
    source = _through_flatten(graph, sources(graph, name)[0])
    source = INPUT if source == input_name(graph) else source
    weight = np.asarray(node.weight, np.float64)
    outputs = len(weight)
    bias = np.asarray(getattr(node, "bias", np.zeros(outputs)), np.float64).reshape(outputs)
    if not isinstance(node, nir.Conv2d):
        return Incoming(name, source, "dense", weight, bias)
    window = window_of(name, node)
    dense = expand_kernel(weight, int(node.groups))
    groups = find_groups(dense)
    # Lava silently computes zeros for 128 groups: fewer, larger blocks hold the same kernel.
    while groups > FIELD_LIMIT:
        groups = max(g for g in range(1, groups) if groups % g == 0)
    kernel = compact_kernel(dense, groups)
    return Incoming(
        name, source, "conv", kernel, bias, window.stride, window.padding, window.dilation, groups
    )


def _fields(item: Incoming) -> list[Finding]:
    fields: dict[str, Any] = {
        "kernel": item.weight.shape[2:],
        "stride": item.stride,
        "padding": item.padding,
        "dilation": item.dilation,
    }
    return [
        Finding(
            code="convolution_field",
            severity="error",
            node=item.node,
            message=f"{field} is {tuple(values)}; Lava keeps it in 8 bits",
            value=float(max(values)),
            limit=float(FIELD_LIMIT),
            remedy="use smaller pools or strides, or a dense layer",
        )
        for field, values in fields.items()
        if item.kind == "conv" and max(values) > FIELD_LIMIT
    ]


def _misplaced(graph: nir.NIRGraph, name: str) -> list[Finding]:
    """A linear operator must listen to one population, or to the input."""
    feeding = sources(graph, name)
    if len(feeding) > 1:
        return [_residual(name, feeding)]
    source = _through_flatten(graph, feeding[0])
    if len(sources(graph, source)) > 1 and not isinstance(graph.nodes[source], _NEURONS):
        return [_residual(source, sources(graph, source))]
    if isinstance(graph.nodes[source], (*_NEURONS, nir.Input)):
        return []
    return [
        Finding(
            code="structure",
            severity="error",
            node=name,
            message=f"takes the value of {source}, which is not a spiking node",
            remedy="put a LIF or IF between them, or merge the two linear operators into one",
        )
    ]


def _residual(name: str, feeding: list[str]) -> Finding:
    return Finding(
        code="residual",
        severity="error",
        node=name,
        message=f"adds the values of {', '.join(feeding)}; only chains are lowered to Loihi so far",
        value=float(len(feeding)),
        limit=1.0,
        remedy="use a student without skip connections",
    )


def _not_linear(graph: nir.NIRGraph, name: str, source: str) -> Finding:
    if isinstance(graph.nodes[name], nir.Output):
        message = f"the output is {source} ({type(graph.nodes[source]).__name__})"
        remedy = "end the network in a linear layer, whose mean over T is the read-out"
    else:
        message = f"is fed by {source} ({type(graph.nodes[source]).__name__}) without weights"
        remedy = "put a convolution or linear layer directly before it; flatten before that"
    return Finding("structure", "error", name, message, remedy=remedy)
