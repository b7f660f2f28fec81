"""Average and sum pools merged into the linear operator after them, where that is exact.

A pool has no neuron, so targets that need a population after each operator cannot hold it alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.arrays import exact_cast
from stars_deploy.graph.geometry import Shape, Window, node_shape, output_shapes, window_of
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.order import sources, targets, topological_order

Array = NDArray[Any]
_POOLS = (nir.AvgPool2d, nir.SumPool2d)
_DENSE = (nir.Affine, nir.Linear)


def compose_pooling(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` without pools; outputs stay the same.

    pool + flatten + dense: one dense matrix on the flattened map, always exact.
    pool + convolution: one kernel of size (k - 1) * dilation * s_pool + p and stride s * s_pool,
    exact where the convolution's zero padding never meets a pool window that holds pixels.
    pool + anything else: the pool is written as a convolution.
    Raises: GraphError naming the node that cannot be composed, and what to change.
    """
    while True:
        pools = [n for n in topological_order(graph) if isinstance(graph.nodes[n], _POOLS)]
        if not pools:
            return graph
        # The last pool first: after it there is none, and pools in a row merge one by one.
        graph = _without_pool(graph, pools[-1])


def _without_pool(graph: nir.NIRGraph, pool: str) -> nir.NIRGraph:
    shapes = output_shapes(graph)
    before = sources(graph, pool)
    size = shapes[before[0]]
    nodes = dict(graph.nodes)
    node, window = nodes.pop(pool), window_of(pool, graph.nodes[pool])
    weight = 1.0 if isinstance(node, nir.SumPool2d) else 1.0 / math.prod(window.kernel)
    kept = [edge for edge in graph.edges if pool not in edge]
    direct = False
    for target in targets(graph, pool):
        follower = nodes[target]
        if isinstance(follower, nir.Conv2d):
            _require_alone(graph, pool, target)
            nodes[target] = _merged_kernel(pool, target, follower, window, weight, size)
        elif isinstance(follower, nir.Flatten) and _feeds_dense(graph, pool, target):
            nodes[target] = dataclasses.replace(follower, input_type={"input": np.array(size)})
            for dense in targets(graph, target):
                nodes[dense] = _merged_dense(nodes[dense], window, weight, size)
        else:
            direct = True
            kept.append((pool, target))
            continue
        kept += [(source, target) for source in before]
    if direct:
        nodes[pool] = _as_convolution(window, weight, size)
        kept += [(source, pool) for source in before]
    return nir.NIRGraph(nodes, kept, metadata=graph.metadata, type_check=False)


def _require_alone(graph: nir.NIRGraph, pool: str, target: str) -> None:
    others = [source for source in sources(graph, target) if source != pool]
    if others:
        raise GraphError(
            f"{target}: adds the output of {pool} and of {', '.join(others)}; pooling can only be "
            "merged into an operator that takes nothing else, put a spiking layer after the pool"
        )


def _feeds_dense(graph: nir.NIRGraph, pool: str, flatten: str) -> bool:
    """Whether a flatten leads from the pool to dense layers only."""
    followers = targets(graph, flatten)
    dense = [name for name in followers if isinstance(graph.nodes[name], _DENSE)]
    if not dense:
        return False
    _require_alone(graph, pool, flatten)
    for name in dense:
        _require_alone(graph, flatten, name)
    if dense != followers:
        others = ", ".join(name for name in followers if name not in dense)
        raise GraphError(
            f"{pool}: its flattened output goes to {', '.join(dense)} and to {others}; "
            "pooling is merged into dense layers only, give the others a pool of their own"
        )
    return True


def _as_convolution(window: Window, weight: float, size: Shape) -> nir.Conv2d:
    """The pool as a depthwise convolution, written expanded."""
    channels = size[0]
    kernel = np.full((channels, 1, *window.kernel), weight)
    return nir.Conv2d(
        input_shape=size[1:],
        weight=expand_kernel(kernel, channels),
        stride=window.stride,
        padding=window.padding,
        dilation=(1, 1),
        groups=1,
        bias=np.zeros(channels),
    )


def _merged_dense(node: nir.NIRNode, window: Window, weight: float, size: Shape) -> nir.NIRNode:
    """W'[k, c, y, x] = weight * sum of W[k, c, q] over the windows q that hold pixel (y, x)."""
    channels, height, width = size
    pooled = window.output(size[1:])
    given = np.asarray(node.weight, np.float64).reshape(-1, channels, *pooled)
    (ky, kx), (sy, sx), (py, px) = window.kernel, window.stride, window.padding
    padded = np.zeros((len(given), channels, height + 2 * py, width + 2 * px))
    for i in range(ky):
        for j in range(kx):
            rows = slice(i, i + (pooled[0] - 1) * sy + 1, sy)
            columns = slice(j, j + (pooled[1] - 1) * sx + 1, sx)
            padded[:, :, rows, columns] += given * weight
    full = padded[:, :, py : py + height, px : px + width].reshape(len(given), -1)
    return dataclasses.replace(node, weight=exact_cast(full, node.weight.dtype))


def _merged_kernel(
    pool: str, name: str, conv: nir.Conv2d, window: Window, weight: float, size: Shape
) -> nir.Conv2d:
    """K[a * d * s_pool + b] += weight * W[a] for every pool offset b."""
    outer = window_of(name, conv)
    pooled = window.output(size[1:])
    for axis in (0, 1):
        _require_exact(pool, name, size[1 + axis], pooled[axis], window, outer, axis)
    inner = expand_kernel(np.asarray(conv.weight, np.float64), int(conv.groups))
    step = [d * s for d, s in zip(outer.dilation, window.stride, strict=True)]
    extent = [(k - 1) * t + p for k, t, p in zip(outer.kernel, step, window.kernel, strict=True)]
    kernel = np.zeros((*inner.shape[:2], *extent))
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            rows = slice(i, i + (outer.kernel[0] - 1) * step[0] + 1, step[0])
            columns = slice(j, j + (outer.kernel[1] - 1) * step[1] + 1, step[1])
            kernel[:, :, rows, columns] += inner * weight
    axes = list(zip(outer.padding, window.stride, window.padding, strict=True))
    merged = nir.Conv2d(
        input_shape=size[1:],
        weight=exact_cast(kernel, conv.weight.dtype),
        stride=tuple(s * t for s, t in zip(outer.stride, window.stride, strict=True)),
        padding=tuple(p * s + q for p, s, q in axes),
        dilation=(1, 1),
        groups=1,
        bias=conv.bias,
    )
    expected = node_shape(name, conv, (size[0], *pooled))
    if node_shape(name, merged, size) != expected:
        raise _inexact(pool, name, size)
    return merged


def _require_exact(
    pool: str, name: str, length: int, pooled: int, window: Window, outer: Window, axis: int
) -> None:
    """Refuse if the convolution reads a padded zero where the merged kernel would see pixels."""
    stride, reach = outer.stride[axis], outer.dilation[axis]
    outputs = (pooled + 2 * outer.padding[axis] - outer.extent[axis]) // stride + 1
    read = {
        o * stride + a * reach - outer.padding[axis]
        for o in range(outputs)
        for a in range(outer.kernel[axis])
    }
    for q in read - set(range(pooled)):
        first = q * window.stride[axis] - window.padding[axis]
        if first < length and first + window.kernel[axis] > 0:
            raise _inexact(pool, name, (length,))


def _inexact(pool: str, name: str, size: Shape) -> GraphError:
    return GraphError(
        f"{pool}: cannot be merged into {name} exactly, because its windows cross the border of "
        f"a map of size {'x'.join(map(str, size))}; use map sizes divisible by the pool, a pool "
        "without padding and overlap, or a strided convolution instead of the pool"
    )
