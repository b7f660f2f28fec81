"""Moving the gain 1/tau between neurons and the weights in front of them.

raw:     H = V + (r X - (V - v_leak)) / tau with r as trained, 1 for the usual LIF;
folded:  r = tau (in steps), so H = V + X' - (V - v_leak) / tau with X' = (r / tau) X: the factor
stands in the weights and biases, as integer targets and some compilers want it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.arrays import exact_cast
from stars_deploy.graph.geometry import Shape, output_shapes
from stars_deploy.graph.metadata import metadata_of, with_metadata
from stars_deploy.graph.order import STATEFUL, targets, topological_order

Array = NDArray[Any]
_WEIGHTED = (nir.Conv1d, nir.Conv2d, nir.Affine, nir.Linear, nir.Scale)
_PASSING = (nir.AvgPool2d, nir.SumPool2d, nir.Flatten)


def fold_gain(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` with 1/tau in the weights and r = tau in steps; outputs stay the same.

    A factor no operator can take (an identity skip, an operator that others use too) becomes a
    Scale node in front of the neuron. IF nodes get r = 1.
    Raises: GraphError when the metadata lack dt.
    """
    dt = metadata_of(graph).dt

    def folded(node: nir.NIRNode) -> Array:
        if isinstance(node, nir.IF):
            return np.ones_like(node.r)
        return np.asarray(node.tau, np.float64) / dt

    return _with_gain(graph, folded, "folded")


def unfold_gain(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` with r = 1 in every neuron, its factor in the weights; outputs stay."""
    return _with_gain(graph, lambda node: np.ones_like(node.r, np.float64), "raw")


def _with_gain(
    graph: nir.NIRGraph,
    wanted: Callable[[nir.NIRNode], Array],
    gain: Literal["raw", "folded"],
) -> nir.NIRGraph:
    nodes, edges = dict(graph.nodes), list(graph.edges)
    factors: dict[str, Array] = {}  # node -> what its input must be multiplied by
    for name, node in graph.nodes.items():
        if isinstance(node, STATEFUL):
            r = wanted(node)
            factors[name] = np.asarray(node.r, np.float64) / r
            nodes[name] = dataclasses.replace(node, r=r)
    factors = {name: factor for name, factor in factors.items() if (factor != 1).any()}
    shapes = output_shapes(graph)
    for name in reversed(topological_order(graph)):
        _satisfy(graph, name, nodes, edges, factors, shapes[name])
    changed = nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
    return with_metadata(changed, dataclasses.replace(metadata_of(graph), gain=gain))


def _satisfy(
    graph: nir.NIRGraph,
    name: str,
    nodes: dict[str, nir.NIRNode],
    edges: list[tuple[str, str]],
    factors: dict[str, Array],
    shape: Shape,
) -> None:
    """Multiply the value of `name` by what the nodes after it ask for."""
    followers = targets(graph, name)
    asking = [target for target in followers if target in factors]
    if not asking:
        return
    factor = factors[asking[0]]
    agreed = asking == followers and all(np.array_equal(factors[t], factor) for t in asking)
    if agreed and isinstance(nodes[name], _WEIGHTED):
        scaled = _scaled(nodes[name], factor)
        if scaled is not None:
            nodes[name] = scaled
            return
    if agreed and isinstance(nodes[name], _PASSING) and (factor == factor.flat[0]).all():
        factors[name] = factor.flat[:1]
        return
    for target in asking:
        _insert_scale(name, target, nodes, edges, np.broadcast_to(factors[target], shape))


def _scaled(node: nir.NIRNode, factor: Array) -> nir.NIRNode | None:
    """Return `node` with its output times `factor`, None if factors differ within a channel."""
    if isinstance(node, nir.Scale):
        scale = np.asarray(node.scale, np.float64) * factor
        return dataclasses.replace(node, scale=exact_cast(scale, node.scale.dtype))
    outputs = node.weight.shape[0]
    rows = np.broadcast_to(factor.reshape(factor.shape[0], -1), (outputs, factor[0].size))
    channel = rows[:, 0]
    if (rows != channel[:, None]).any():
        return None
    weight = node.weight * channel.reshape(-1, *(1,) * (node.weight.ndim - 1))
    changes = {"weight": exact_cast(weight, node.weight.dtype)}
    if hasattr(node, "bias"):
        changes["bias"] = exact_cast(node.bias * channel, node.bias.dtype)
    return dataclasses.replace(node, **changes)


def _insert_scale(
    source: str,
    target: str,
    nodes: dict[str, nir.NIRNode],
    edges: list[tuple[str, str]],
    factor: Array,
) -> None:
    name = f"{target}_gain_{source}"
    while name in nodes:
        name += "_"
    nodes[name] = nir.Scale(np.array(factor))
    position = edges.index((source, target))
    edges[position : position + 1] = [(source, name), (name, target)]
