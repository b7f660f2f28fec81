"""What leads into and out of the operators of a graph, as far as integers on a grid allow it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import output_shapes, window_of
from stars_deploy.graph.order import input_name, sources, targets

LINEAR = (nir.Conv2d, nir.Affine, nir.Linear, nir.Scale)
NEURONS = (nir.LIF, nir.IF)
_POOLS = (nir.AvgPool2d, nir.SumPool2d)
_KNOWN = (nir.Input, nir.Output, nir.Flatten, *LINEAR, *NEURONS, *_POOLS)


def require_known(graph: nir.NIRGraph) -> None:
    """Raise GraphError for a node that is not known, and for pools of what is no spike."""
    for name, node in graph.nodes.items():
        if not isinstance(node, _KNOWN):
            raise GraphError(
                f"{name}: a {type(node).__name__} node is not fine-tuned; "
                f"known: {', '.join(kind.__name__ for kind in _KNOWN)}"
            )
        if isinstance(node, _POOLS) and any(
            isinstance(graph.nodes[item], LINEAR) for item in sources(graph, name)
        ):
            raise GraphError(
                f"{name}: pools the values of an operator, which makes other weights of them on "
                "the chip; pool spikes instead"
            )


def operators_of(graph: nir.NIRGraph, name: str) -> list[str]:
    """Return the linear operators that feed a neuron or the output, through flattens."""
    return [item for item in _before(graph, name) if isinstance(graph.nodes[item], LINEAR)]


def _before(graph: nir.NIRGraph, name: str) -> Iterator[str]:
    for source in sources(graph, name):
        if isinstance(graph.nodes[source], nir.Flatten):
            yield from _before(graph, source)
        else:
            yield source


def _after(graph: nir.NIRGraph, name: str) -> Iterator[str]:
    for target in targets(graph, name):
        if isinstance(graph.nodes[target], nir.Flatten):
            yield from _after(graph, target)
        else:
            yield target


def is_free(graph: nir.NIRGraph, name: str) -> bool:
    """Whether all that a population takes comes from operators of its own."""
    feeding = list(_before(graph, name))
    return all(
        isinstance(graph.nodes[item], LINEAR) and list(_after(graph, item)) == [name]
        for item in feeding
    )


def weighted_shortcuts(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` with a Scale node of factor 1 where spikes lead into neurons without weights.

    Such an identity shortcut has weight 1 in any unit; a Scale can follow the unit.
    """
    nodes, edges = dict(graph.nodes), list(graph.edges)
    shapes = output_shapes(graph)
    for source, target in graph.edges:
        behind = [source] if not isinstance(nodes[source], nir.Flatten) else _before(graph, source)
        if not isinstance(nodes[target], NEURONS) or any(
            isinstance(nodes[item], LINEAR) for item in behind
        ):
            continue
        name = f"{target}_from_{source}"
        while name in nodes:
            name += "_"
        nodes[name] = nir.Scale(np.ones(shapes[source]))
        at = edges.index((source, target))
        edges[at : at + 1] = [(source, name), (name, target)]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def weight_of(node: nir.NIRNode) -> NDArray[np.float64]:
    """Return the weights of an operator; of a Scale one factor per channel, if they are uniform."""
    if not isinstance(node, nir.Scale):
        return np.asarray(node.weight, np.float64)
    factors = np.asarray(node.scale, np.float64)
    if factors.ndim == 3 and not np.ptp(factors, axis=(1, 2)).any():
        return factors[:, :1, :1]
    return factors


def with_weight(
    node: nir.NIRNode, weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> nir.NIRNode:
    """Return an operator with other weights, in the axes of `weight_of`, and another bias."""
    if isinstance(node, nir.Scale):
        shape = np.shape(node.scale)
        return dataclasses.replace(node, scale=np.broadcast_to(weight, shape).copy())
    fields = {"weight": weight} | ({"bias": bias} if hasattr(node, "bias") else {})
    return dataclasses.replace(node, **fields)


def bias_of(node: nir.NIRNode) -> NDArray[np.float64]:
    """Return the bias of an operator, zeros where it has none."""
    return np.asarray(getattr(node, "bias", np.zeros(len(weight_of(node)))), np.float64)


def path_into(graph: nir.NIRGraph, operator: str) -> tuple[float, bool]:
    """Return what average pools before an operator divide by (as a share), and if it is graded."""
    found: set[tuple[float, bool]] = set()
    waiting = [(operator, 1.0)]
    while waiting:
        name, share = waiting.pop()
        for source in sources(graph, name):
            node = graph.nodes[source]
            if isinstance(node, LINEAR):
                raise GraphError(
                    f"{operator}: follows {source} without neurons between; the weights of the two "
                    "are one operator on the chip, merge them"
                )
            if isinstance(node, nir.AvgPool2d):
                size = math.prod(window_of(source, node).kernel)
                if not is_power(size):
                    raise GraphError(
                        f"{source}: averages {size} places; shares of 2, 4, 8, ... places are "
                        "exact in integers"
                    )
                waiting.append((source, share / size))
            elif isinstance(node, nir.SumPool2d | nir.Flatten):
                waiting.append((source, share))
            else:
                found.add((share, source == input_name(graph)))
    if len(found) != 1:
        raise GraphError(f"{operator}: adds spikes and pixels, or pools of several sizes")
    return found.pop()


def is_power(value: float) -> bool:
    """Return whether `value` is a power of two."""
    return value > 0 and math.frexp(value)[0] == 0.5
