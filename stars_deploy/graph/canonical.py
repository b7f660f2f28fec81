"""One form for equal graphs: sorted nodes and edges, plain types, complete shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import Shape, output_shapes, window_of
from stars_deploy.graph.order import natural, sources


def canonical(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` in the form under which equal graphs give equal files.

    Nodes and edges are sorted by name, windows are tuples of int, every shape nir leaves open is
    filled in, and the metadata of single nodes, which nothing reads, is left out.
    Raises: GraphError when the shapes do not fit.
    """
    shapes = output_shapes(graph)
    nodes = {}
    for name in sorted(graph.nodes, key=natural):
        given = [shapes[source] for source in sources(graph, name)]
        nodes[name] = _node(name, graph.nodes[name], given[0] if given else shapes[name])
    edges = sorted(
        ((str(a), str(b)) for a, b in graph.edges), key=lambda e: (natural(e[0]), natural(e[1]))
    )
    return nir.NIRGraph(nodes, edges, metadata=_metadata(graph.metadata), type_check=False)


def _node(name: str, node: nir.NIRNode, given: Shape) -> nir.NIRNode:
    if isinstance(node, nir.Input):
        return nir.Input(input_type={"input": np.array(given)})
    if isinstance(node, nir.Output):
        return nir.Output(output_type={"output": np.array(given)})
    if isinstance(node, nir.Flatten):
        start, end = int(node.start_dim), int(node.end_dim)
        return nir.Flatten(input_type={"input": np.array(given)}, start_dim=start, end_dim=end)
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        window = window_of(name, node)
        fields = (np.array(x) for x in (window.kernel, window.stride, window.padding))
        return type(node)(*fields)
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        return _convolution(name, node, given)
    arrays = {
        field: _array(getattr(node, field))
        for field in type(node).__dataclass_fields__
        if field not in ("input_type", "output_type", "metadata")
    }
    return type(node)(**arrays)


def _convolution(name: str, node: nir.NIRNode, given: Shape) -> nir.NIRNode:
    window = window_of(name, node)
    numbers: Any = (window.stride, window.padding, window.dilation)
    size: Any = given[1:]
    if isinstance(node, nir.Conv1d):
        numbers, size = (x[0] for x in numbers), size[0]
    stride, padding, dilation = numbers
    return type(node)(
        input_shape=size,
        weight=_array(node.weight),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(node.groups),
        bias=_array(node.bias),
    )


def _array(value: Any) -> Any:
    """Return a contiguous float array; float32 and float64 stay what they are."""
    array = np.asarray(value)
    kind = array.dtype.newbyteorder("=") if array.dtype in (np.float32, np.float64) else np.float64
    return np.array(array, dtype=kind, order="C")


def _metadata(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        return {}
    return {str(key): _plain(str(key), raw[key]) for key in sorted(raw, key=str)}


def _plain(key: str, value: Any) -> Any:
    """Return metadata in the type it has after a file: str, int, float, bool or float64 array."""
    if isinstance(value, Mapping):
        return _metadata(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise GraphError(f"graph metadata {key!r} is {value!r}, expected text or numbers")
    return array.item() if array.ndim == 0 else array.astype(np.float64)


def difference(one: nir.NIRGraph, other: nir.NIRGraph) -> str | None:
    """Return where two canonical graphs differ, None when they are equal."""
    if list(one.edges) != list(other.edges):
        return f"edges {sorted(set(one.edges) ^ set(other.edges))}"
    if list(one.nodes) != list(other.nodes):
        return f"nodes {sorted(set(one.nodes) ^ set(other.nodes))}"
    pairs = [("metadata", one.metadata, other.metadata)]
    pairs += [(n, one.nodes[n].to_dict(), other.nodes[n].to_dict()) for n in one.nodes]
    for where, a, b in pairs:
        field = _different_field(a, b)
        if field:
            return f"{where}.{field}"
    return None


def _different_field(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    for key in sorted({*a, *b}):
        if key not in a or key not in b or not _equal(a[key], b[key]):
            return key
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return _different_field(a, b) is None
    return np.array_equal(np.asarray(a), np.asarray(b))
