"""Shapes: windows of convolutions and pools, and the shape that every node puts out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph.order import input_name, sources, topological_order

Shape = tuple[int, ...]
# A guard against absurd paddings and inputs, far above any network this tool is for.
MAX_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Window:
    """Sliding window of a convolution or pool, one value per spatial axis (H, W)."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape

    @property
    def extent(self) -> Shape:
        """Size of the window on the padded input: dilation * (kernel - 1) + 1."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def output(self, size: Shape) -> Shape:
        """Return floor((size + 2 padding - extent) / stride) + 1 for each axis."""
        axes = zip(size, self.extent, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - e) // s + 1 for n, e, s, p in axes)


def window_of(name: str, node: nir.NIRNode) -> Window:
    """Return the window of a Conv1d, Conv2d, AvgPool2d or SumPool2d.

    Raises: GraphError for impossible values, and for padding "same" where it is not symmetric.
    """
    pool = isinstance(node, nir.AvgPool2d | nir.SumPool2d)
    axes = 1 if isinstance(node, nir.Conv1d) else 2
    kernel = _ints(name, "kernel_size", node.kernel_size, axes) if pool else node.weight.shape[2:]
    dilation = (1,) * axes if pool else _ints(name, "dilation", node.dilation, axes)
    stride = _ints(name, "stride", node.stride, axes)
    for field, values in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if min(values) < 1:
            raise GraphError(f"{name}: {field} is {tuple(values)}, expected at least 1")
    window = Window(tuple(kernel), stride, (0,) * axes, dilation)
    padding = _padding(name, node, window)
    if pool and any(p >= k for p, k in zip(padding, window.kernel, strict=True)):
        raise GraphError(f"{name}: padding {padding} of a pool must be smaller than its kernel")
    return Window(window.kernel, stride, padding, dilation)


def _padding(name: str, node: nir.NIRNode, window: Window) -> Shape:
    value = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if isinstance(value, str) and value == "valid":
        return window.padding
    if isinstance(value, str) and value == "same":
        if max(window.stride) > 1 or any(e % 2 == 0 for e in window.extent):
            raise GraphError(
                f"{name}: padding 'same' with kernel {window.kernel}, stride {window.stride} is "
                "not symmetric; write the padding as numbers"
            )
        return tuple(e // 2 for e in window.extent)
    padding = _ints(name, "padding", value, len(window.kernel))
    if min(padding) < 0:
        raise GraphError(f"{name}: padding is {padding}, expected at least 0")
    return padding


def _ints(name: str, field: str, value: Any, axes: int) -> Shape:
    """Return `value` as one int per axis; a single number counts for every axis."""
    try:
        array = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        array = np.array([])
    if array.size not in (1, axes) or not np.array_equal(array, np.floor(array)):
        raise GraphError(f"{name}: {field} is {value!r}, expected {axes} whole numbers")
    if np.abs(array).max() > MAX_ELEMENTS:
        raise GraphError(f"{name}: {field} is {value!r}, larger than {MAX_ELEMENTS}")
    return tuple(int(x) for x in np.broadcast_to(array, (axes,)))


def node_shape(name: str, node: nir.NIRNode, given: Shape) -> Shape:
    """Return the output shape of `node` for the input shape `given`, both without batch and time.

    Raises: GraphError when the node cannot take `given`.
    """
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        window = window_of(name, node)
        axes = len(window.kernel)
        _require(name, node, len(given) == axes + 1, given, f"{axes + 1} axes")
        channels = node.weight.shape[1] * int(node.groups)
        _require(name, node, given[0] == channels, given, f"{channels} channels")
        return _nonempty(name, node, given, (node.weight.shape[0], *window.output(given[1:])))
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        _require(name, node, len(given) == 3, given, "[C, H, W]")
        shape = (given[0], *window_of(name, node).output(given[1:]))
        return _nonempty(name, node, given, shape)
    if isinstance(node, nir.Affine | nir.Linear):
        inputs = int(node.weight.shape[-1])
        _require(name, node, given == (inputs,), given, str((inputs,)))
        return (int(node.weight.shape[-2]),)
    if isinstance(node, nir.Flatten):
        return _flattened(name, node, given)
    if isinstance(node, nir.Output):
        expected = tuple(int(x) for x in node.output_type["output"])
        _require(name, node, given == expected, given, str(expected))
        return given
    for field in ("v_threshold", "r", "scale", "threshold"):
        if hasattr(node, field):
            expected = np.shape(getattr(node, field))
            _require(name, node, given == expected, given, f"the shape of {field}, {expected}")
            return given
    raise GraphError(f"{name}: the output shape of a {type(node).__name__} node is not known")


def _require(name: str, node: nir.NIRNode, fine: bool, given: Shape, expected: str) -> None:
    if not fine:
        kind = type(node).__name__
        raise GraphError(
            f"{name} ({kind}): gets shape {given}, expected {expected}; "
            "correct the node before it or this node's parameters"
        )


def _nonempty(name: str, node: nir.NIRNode, given: Shape, shape: Shape) -> Shape:
    _require(name, node, min(shape) > 0, given, "a map at least as large as the kernel")
    if math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"{name}: output shape {shape} exceeds {MAX_ELEMENTS} values")
    return shape


def _flattened(name: str, node: nir.Flatten, given: Shape) -> Shape:
    start, end = int(node.start_dim), int(node.end_dim)
    start, end = (x + len(given) if x < 0 else x for x in (start, end))
    if not 0 <= start <= end < len(given):
        raise GraphError(
            f"{name} (Flatten): start_dim {node.start_dim}, end_dim {node.end_dim} do not fit "
            f"shape {given}; NIR counts axes without the batch, use start_dim 0 and end_dim -1"
        )
    return (*given[:start], math.prod(given[start : end + 1]), *given[end + 1 :])


def input_shape(graph: nir.NIRGraph) -> Shape:
    """Return the shape of the graph's input, [C, H, W] for images."""
    declared = graph.nodes[input_name(graph)].input_type["input"]
    return tuple(int(x) for x in np.asarray(declared).reshape(-1))


def output_shapes(graph: nir.NIRGraph) -> dict[str, Shape]:
    """Return what every node puts out, in execution order, computed from the input shape.

    Computed here because nir types rectangular kernels and grouped convolutions wrongly.
    Raises: GraphError naming the first node whose inputs do not fit.
    """
    start = input_shape(graph)
    if not start or min(start) < 1 or math.prod(start) > MAX_ELEMENTS:
        raise GraphError(f"{input_name(graph)}: input shape is {start}, expected [C, H, W]")
    shapes: dict[str, Shape] = {}
    for name in topological_order(graph):
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            shapes[name] = start
            continue
        given = {source: shapes[source] for source in sources(graph, name)}
        if not given:
            raise GraphError(f"{name}: nothing feeds this node; connect it or remove it")
        if len(set(given.values())) > 1:
            raise GraphError(f"{name}: adds values of different shapes {given}; make them equal")
        shapes[name] = node_shape(name, node, next(iter(given.values())))
    return shapes
