"""A graph as stages: populations, and the linear operators that lead into each of them.

Between two populations a graph may hold convolutions, dense layers, pools, scales, flattens and
adds in any order; each path becomes one operator (graph/linear.py), and all paths into a neuron
add up. What has no place in such a network becomes a finding that names its node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import Shape, output_shapes
from stars_deploy.graph.groups import compact_kernel, expand_kernel, find_groups
from stars_deploy.graph.linear import (
    LinearMap,
    as_operator,
    identity,
)
from stars_deploy.graph.order import output_name, sources, topological_order
from stars_deploy.targets.findings import Finding
from stars_deploy.targets.loihi.paths import Path, Refused, Value, inexact, through, total_of

Reals = NDArray[np.float64]
INPUT = "input"
FIELD_LIMIT = 127  # Lava's Conv keeps kernel size, stride, padding, dilation, groups in 8 bits

_SPIKING = (nir.LIF, nir.IF, nir.Threshold)
_NEURONS = (*_SPIKING, nir.LI)
_WEIGHTED = (nir.Conv2d, nir.Affine, nir.Linear)


@dataclass(frozen=True)
class Incoming:
    """A linear operator: weight [O, I / groups, KH, KW] or [N_out, N_in]."""

    name: str  # of the connection
    node: str  # whose weights these are; the population's own where nothing lies on the path
    source: str  # INPUT, or the population that it listens to
    kind: str  # conv or dense
    weight: Reals
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    delay: int = 0  # steps that messages wait, besides the one of every connection
    given: Shape = ()  # of the source


@dataclass(frozen=True)
class Stage:
    """A population and the operators that end in it.

    `neuron` is None for a read-out that only adds up, and for relays, which repeat the spikes of
    their source one step later. `bias` [C, 1, 1], [C, H, W] or [N] is what drives the population
    when everything before it is silent.
    """

    name: str
    shape: Shape
    incoming: tuple[Incoming, ...]
    bias: Reals
    neuron: nir.NIRNode | None
    relay: bool = False
    depth: int = 0

    @property
    def spiking(self) -> bool:
        """Whether the population sends spikes."""
        return self.relay or isinstance(self.neuron, _SPIKING)


def stages_of(graph: nir.NIRGraph) -> tuple[list[Stage], list[Finding]]:
    """Return the stages of a runnable graph, in execution order, and a finding for what is none.

    The last stage, or the last spiking or leaking neuron, is the read-out.
    """
    shapes = output_shapes(graph)
    values: dict[str, Value] = {}
    found: list[Finding] = []
    stages: list[Stage] = []
    taken: set[str] = set()  # names of connections
    for name in topological_order(graph):
        node = graph.nodes[name]
        feeding = sources(graph, name)
        if any(source not in values for source in feeding):
            continue  # refused already
        try:
            if isinstance(node, nir.Input):
                values[name] = Value((Path(INPUT, identity(shapes[name])),))
                continue
            total = total_of(name, [values[source] for source in feeding])
            if isinstance(node, _NEURONS):
                stages.append(_stage(name, shapes[name], total, node, taken))
                values[name] = Value((Path(name, identity(shapes[name])),))
            elif not isinstance(node, nir.Output):
                given = shapes[feeding[0]]
                values[name] = through(name, node, total, given, shapes[name])
            elif not _is_neuron(total, stages):
                title = feeding[0] if len(feeding) == 1 else name
                stages.append(_stage(title, shapes[name], total, None, taken))
        except Refused as problem:
            found.append(problem.finding)
    found += [item for stage in stages for part in stage.incoming for item in _fields(part)]
    return stages, [*found, *_leaky_sources(stages)]


def readout_of(graph: nir.NIRGraph, stages: list[Stage]) -> Stage:
    """Return the stage that the graph's output is taken from."""
    if stages[-1].neuron is None:
        return stages[-1]
    name = sources(graph, output_name(graph))[0]
    while not isinstance(graph.nodes[name], _NEURONS):
        name = sources(graph, name)[0]
    return next(stage for stage in stages if stage.name == name)


def _is_neuron(value: Value, stages: list[Stage]) -> bool:
    """Whether the output is the value of one neuron node: a spiking or leaking read-out."""
    names = {stage.name for stage in stages}
    only = value.paths[0] if len(value.paths) == 1 and value.constant is None else None
    return only is not None and only.source in names and only.linear.weight is None


def _stage(name: str, shape: Shape, total: Value, neuron: Any, taken: set[str]) -> Stage:
    """Make the operators of a population explicit and give the connections their names."""
    if name == INPUT:
        message = f"a population cannot be called {INPUT!r}, which stands for the image"
        raise Refused(Finding("structure", "error", name, message, remedy="rename the node"))
    if len(shape) not in (1, 3):
        message = f"holds neurons of shape {shape}; populations are maps [C, H, W] or vectors [N]"
        remedy = "write a map [C, L] as [C, 1, L], with Conv2d instead of Conv1d"
        raise Refused(Finding("structure", "error", name, message, remedy=remedy))
    incoming: list[Incoming] = []
    for path in total.paths:
        try:
            operator = as_operator(path.linear)
        except GraphError as problem:
            raise Refused(inexact(name, path, problem)) from None
        incoming.append(_named(name, path, operator, taken))
        taken.add(incoming[-1].name)
    bias = np.zeros(shape) if total.constant is None else total.constant.reshape(shape)
    return Stage(name, shape, tuple(incoming), _per_channel(bias), neuron)


def _per_channel(bias: Reals) -> Reals:
    """Return [C, 1, 1] where a map's bias does not differ within its channels."""
    if bias.ndim == 3 and (np.ptp(bias, axis=(1, 2)) == 0).all():
        return bias[:, :1, :1]
    return bias


def _named(name: str, path: Path, operator: LinearMap, taken: set[str]) -> Incoming:
    """Return an operator as a connection, named after the last node on its path.

    A node that leads to several populations, or to one from several, names each connection's ends.
    """
    node = path.nodes[-1] if path.nodes else name
    title = node if path.nodes else f"{name}_from_{path.source}"
    for end in (f"_from_{path.source}", f"_to_{name}"):
        title += end if title in taken else ""
    while title in taken:
        title += "_"
    return connection(title, node, path.source, operator)


def connection(name: str, node: str, source: str, operator: LinearMap) -> Incoming:
    """Return an explicit operator as a connection whose groups Lava can hold."""
    assert operator.weight is not None
    if operator.window is None:
        return Incoming(name, node, source, "dense", operator.weight, given=operator.given)
    groups, kernel, window = operator.groups, operator.weight, operator.window
    if groups == 1:
        groups = find_groups(kernel)
        kernel = compact_kernel(kernel, groups)
    if groups > FIELD_LIMIT:
        # Lava silently computes zeros for 128 groups: fewer, larger blocks hold the same kernel.
        fewer = max(g for g in range(1, FIELD_LIMIT + 1) if groups % g == 0)
        kernel, groups = compact_kernel(expand_kernel(kernel, groups), fewer), fewer
    return Incoming(
        name,
        node,
        source,
        "conv",
        kernel,
        window.stride,
        window.padding,
        window.dilation,
        groups,
        given=operator.given,
    )


def _fields(item: Incoming) -> list[Finding]:
    fields: Mapping[str, Any] = {
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


def _leaky_sources(stages: list[Stage]) -> list[Finding]:
    """A LI node sends no spikes, so nothing but the output may listen to it."""
    silent = {stage.name for stage in stages if isinstance(stage.neuron, nir.LI)}
    return [
        Finding(
            code="structure",
            severity="error",
            node=item.source,
            message=f"is a LI node whose potential drives {stage.name}; only spikes are sent",
            remedy="use LIF or IF between layers; LI is a read-out",
        )
        for stage in stages
        for item in stage.incoming
        if item.source in silent
    ]


def shifted(stage: Stage, index: int, **changes: Any) -> Stage:
    """Return `stage` with one of its operators changed."""
    incoming = list(stage.incoming)
    incoming[index] = replace(incoming[index], **changes)
    return replace(stage, incoming=tuple(incoming))
