"""Third-party graphs: one flat graph with our names, full shapes and an image as its input.

What other exporters write and NIR allows, or lets pass: subgraphs; names with dots; the batch axis
in shapes and in the axes of Flatten; one neuron parameter for a whole layer; vector inputs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import MAX_ELEMENTS, Shape, input_shape, node_shape
from stars_deploy.graph.order import input_name, sources, targets, topological_order
from stars_deploy.graph.problems import NAME

#: Fields that hold one value per neuron.
PARAMETERS = ("tau", "r", "v_leak", "v_reset", "v_threshold", "threshold", "scale")


@dataclass(frozen=True)
class Note:
    """Something that was read into a third-party graph, or assumed about it."""

    code: str
    node: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.node}: {self.message}" if self.node else self.message


def inlined(graph: nir.NIRGraph, notes: list[Note]) -> nir.NIRGraph:
    """Return `graph` with the nodes of its subgraphs in it, named <subgraph>_<node>.

    Raises: GraphError naming a subgraph without exactly one input and one output.
    """
    nodes: dict[str, nir.NIRNode] = {}
    edges = [(str(a), str(b)) for a, b in graph.edges]
    entry: dict[str, str] = {}  # subgraph, or its port -> the node that stands for its input
    leave: dict[str, str] = {}
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.NIRGraph):
            nodes[name] = node
            continue
        inner = inlined(node, notes)
        ports = [_port(name, inner, kind) for kind in (nir.Input, nir.Output)]
        named = {child: f"{name}_{child}" for child in inner.nodes}
        taken = next((new for new in named.values() if new in nodes or new in graph.nodes), None)
        if taken is not None:
            raise GraphError(f"{name}: subgraph and graph both have a node {taken!r}; rename one")
        nodes |= {named[child]: inner.nodes[child] for child in inner.nodes}
        edges += [(named.get(a, a), named.get(b, b)) for a, b in inner.edges]
        entry |= {name: named[ports[0]], f"{name}.{ports[0]}": named[ports[0]]}
        leave |= {name: named[ports[1]], f"{name}.{ports[1]}": named[ports[1]]}
        notes.append(Note("subgraph", name, f"subgraph of {len(inner.nodes)} nodes inlined"))
    edges = [(leave.get(a, a), entry.get(b, b)) for a, b in edges]
    for port in {**dict.fromkeys(entry.values()), **dict.fromkeys(leave.values())}:
        edges = _bridged(edges, port)
        del nodes[port]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def _port(name: str, graph: nir.NIRGraph, kind: type) -> str:
    found: list[str] = [child for child, node in graph.nodes.items() if isinstance(node, kind)]
    if len(found) != 1:
        raise GraphError(
            f"{name}: subgraph with {len(found)} {kind.__name__.lower()} nodes, expected one; "
            "inline it, prefixing its node names"
        )
    return found[0]


def _bridged(edges: list[tuple[str, str]], port: str) -> list[tuple[str, str]]:
    """Connect whatever feeds `port` to whatever it feeds."""
    before = [a for a, b in edges if b == port]
    after = [b for a, b in edges if a == port]
    kept = [edge for edge in edges if port not in edge]
    return kept + [(a, b) for a in before for b in after]


def renamed(graph: nir.NIRGraph, notes: list[Note]) -> nir.NIRGraph:
    """Return `graph` with names of [A-Za-z0-9_]+: they become names of files and arrays."""
    names: dict[str, str] = {name: name for name in graph.nodes if NAME.fullmatch(name)}
    for name in graph.nodes:
        if name in names:
            continue
        new = plain = re.sub(r"[^A-Za-z0-9_]", "_", name) or "node"
        count = 1
        while new in names.values():
            count += 1
            new = f"{plain}_{count}"
        names[name] = new
        notes.append(Note("renamed", new, f"was {name!r} in the file"))
    nodes = {names[name]: node for name, node in graph.nodes.items()}
    edges = [(names.get(a, a), names.get(b, b)) for a, b in graph.edges]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def fitted(graph: nir.NIRGraph, notes: list[Note]) -> nir.NIRGraph:
    """Return `graph` with full-shape parameters and shapes without the batch axis.

    The input's shape is taken as it is; with four axes, or where it does not fit, without a
    leading 1.
    Raises: GraphError naming the first node whose input does not fit.
    """
    declared = input_shape(graph)
    starts = [declared]
    if len(declared) > 1 and declared[0] == 1:
        # An image has three axes: with four, the first is no doubt the batch.
        starts.insert(0 if len(declared) > 3 else 1, declared[1:])
    failures: list[GraphError] = []
    for start in starts:
        found: list[Note] = []
        try:
            nodes = _fitted_nodes(graph, start, found)
        except GraphError as problem:
            failures.append(problem)
            continue
        if start != declared:
            message = f"shape {declared} holds the batch axis, read as {start}"
            notes.append(Note("batch_axis", input_name(graph), message))
        notes += found
        return nir.NIRGraph(nodes, list(graph.edges), metadata=graph.metadata, type_check=False)
    raise failures[0]


def _fitted_nodes(graph: nir.NIRGraph, start: Shape, notes: list[Note]) -> dict[str, nir.NIRNode]:
    nodes, shapes = dict(graph.nodes), {}
    for name in topological_order(graph):
        node = nodes[name]
        if isinstance(node, nir.Input):
            nodes[name], shapes[name] = nir.Input({"input": np.array(start)}), start
            _require_room(name, shapes)
            continue
        given = {source: shapes[source] for source in sources(graph, name)}
        if len(set(given.values())) > 1:
            raise GraphError(f"{name}: adds values of different shapes {given}; make them equal")
        shape = next(iter(given.values()))
        if isinstance(node, nir.Output):
            node = _output(node, shape)
        elif isinstance(node, nir.Flatten):
            node = _flatten(name, node, shape, graph, notes)
        else:
            node = _full_shape(name, node, shape, notes)
        nodes[name], shapes[name] = node, node_shape(name, node, shape)
        _require_room(name, shapes)
    return nodes


def _require_room(name: str, shapes: Mapping[str, Shape]) -> None:
    """Refuse huge layers, which a small file may declare, before they are spread out in memory."""
    if sum(map(math.prod, shapes.values())) > MAX_ELEMENTS:
        raise GraphError(f"{name}: the layers up to here put out more than {MAX_ELEMENTS} values")


def _output(node: nir.Output, given: Shape) -> nir.Output:
    """Return the output without its batch axis; any other shape stays, for the shape check."""
    declared = tuple(int(x) for x in np.asarray(node.output_type["output"]).reshape(-1))
    return nir.Output({"output": np.array(given)}) if declared == (1, *given) else node


def _flatten(
    name: str, node: nir.Flatten, given: Shape, graph: nir.NIRGraph, notes: list[Note]
) -> nir.Flatten:
    """Return Flatten with axes counted without the batch, where only that fits what follows."""
    start, end = int(node.start_dim), int(node.end_dim)
    shifted = nir.Flatten(
        {"input": np.array(given)}, start - 1 if start > 0 else start, end - 1 if end > 0 else end
    )
    following = [graph.nodes[target] for target in targets(graph, name)]
    for candidate in (node, shifted):
        try:
            shape = node_shape(name, candidate, given)
        except GraphError:
            continue
        if all(_takes(target, shape) for target in following):
            if candidate is shifted and start > 0:
                message = f"start_dim {start} counts the batch axis, read as {start - 1}"
                notes.append(Note("batch_axis", name, message))
            return candidate
    return node


def _takes(node: nir.NIRNode, shape: Shape) -> bool:
    try:
        if isinstance(node, nir.Output):
            node = _output(node, shape)
        node_shape("", _full_shape("", node, shape, []), shape)
    except GraphError:
        return False
    return True


def _full_shape(name: str, node: nir.NIRNode, given: Shape, notes: list[Note]) -> nir.NIRNode:
    """Return a node whose parameters have the shape of its layer."""
    arrays = {field: np.asarray(getattr(node, field)) for field in PARAMETERS if _has(node, field)}
    short = {field: array for field, array in arrays.items() if array.shape != given}
    if not short:
        return node
    changes = {field: _broadcast(name, field, array, given) for field, array in arrays.items()}
    shapes = " and ".join(sorted({str(array.shape) for array in short.values()}))
    notes.append(Note("broadcast", name, f"parameters of shape {shapes} stand for {given}"))
    return dataclasses.replace(node, **changes)


def _has(node: nir.NIRNode, field: str) -> bool:
    return field in type(node).__dataclass_fields__


def _broadcast(name: str, field: str, array: Any, given: Shape) -> Any:
    values = np.asarray(array, np.float64)
    if values.size == 1:
        return np.full(given, values.reshape(-1)[0])
    if values.ndim == len(given) + 1 and values.shape[0] == 1:
        values = values[0]
    fits = values.ndim == len(given) and all(
        n in (1, m) for n, m in zip(values.shape, given, strict=True)
    )
    if not fits:
        raise GraphError(
            f"{name}: {field} has shape {array.shape}, the layer has {given}; "
            "write one value, one per channel as (C, 1, 1), or one per neuron"
        )
    return np.broadcast_to(values, given).copy()


def with_image_input(graph: nir.NIRGraph, wanted: Shape | None, notes: list[Note]) -> nir.NIRGraph:
    """Return `graph` with an image [C, H, W] as its input.

    A vector of N values becomes an image (1, 1, N), or `wanted`, which a Flatten turns back; a
    sequence [C, L] becomes (C, 1, L).
    Raises: GraphError for another number of axes, or where `wanted` does not fit.
    """
    shape, name = input_shape(graph), input_name(graph)
    if len(shape) not in (1, 2, 3):
        raise GraphError(f"{name}: shape {shape} is no image [C, H, W]; use a graph that takes one")
    usual = {1: (1, 1, shape[-1]), 2: (shape[0], 1, shape[-1]), 3: shape}[len(shape)]
    image = usual if wanted is None else wanted
    # Only a vector says nothing about its image.
    if image != usual and (len(shape) > 1 or len(image) != 3 or math.prod(image) != shape[0]):
        raise GraphError(
            f"{name}: takes {shape}, --image-shape is {','.join(map(str, image))}; "
            + (
                f"give three numbers whose product is {shape[0]}"
                if len(shape) == 1
                else "leave --image-shape out, it is for vector inputs"
            )
        )
    if len(shape) == 3:
        return graph
    flat = f"{name}_flat"
    while flat in graph.nodes:
        flat += "_"
    nodes = dict(graph.nodes)
    nodes[name] = nir.Input({"input": np.array(image)})
    nodes[flat] = nir.Flatten({"input": np.array(image)}, len(shape) - 1, -1)
    edges = [(flat if a == name else a, b) for a, b in graph.edges]
    notes.append(Note("image_input", name, f"{shape} is read from an image {image}"))
    return nir.NIRGraph(nodes, [(name, flat), *edges], metadata=graph.metadata, type_check=False)
