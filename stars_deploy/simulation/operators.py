"""Stateless NIR operators in float64, on arrays [S, N, ...] with S = 1 (static) or T steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import Window, window_of
from stars_deploy.graph.groups import compact_kernel, expand_kernel, find_groups

Array = NDArray[Any]
Operator = Callable[[Array], Array]

# Columns of one convolution in memory at once: small enough for a cache, large enough for BLAS.
_COLUMN_BYTES = 8 << 20


def operator_of(name: str, node: nir.NIRNode) -> Operator:
    """Return the function of a stateless node; GraphError when the node type is unknown."""
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        return _convolution(name, node)
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        return _pool(name, node)
    if isinstance(node, nir.Affine | nir.Linear):
        return _affine(node)
    if isinstance(node, nir.Scale):
        scale = np.asarray(node.scale, np.float64)
        return lambda x: x * scale
    if isinstance(node, nir.Flatten):
        return _flatten(node)
    if isinstance(node, nir.Output):
        return lambda x: x
    raise GraphError(f"{name}: node type {type(node).__name__} has no float implementation")


def _affine(node: nir.NIRNode) -> Operator:
    """y = W x + b with W [K, M]."""
    weight = np.asarray(node.weight, np.float64).T
    bias = np.asarray(node.bias, np.float64) if isinstance(node, nir.Affine) else 0.0

    def affine(x: Array) -> Array:
        return np.asarray(x, np.float64) @ weight + bias

    return affine


def _flatten(node: nir.Flatten) -> Operator:
    start, end = int(node.start_dim), int(node.end_dim)

    def flatten(x: Array) -> Array:
        shape = x.shape[2:]
        first, last = (axis + len(shape) if axis < 0 else axis for axis in (start, end))
        middle = math.prod(shape[first : last + 1])
        return x.reshape(*x.shape[:2], *shape[:first], middle, *shape[last + 1 :])

    return flatten


def _merged(x: Array, function: Operator) -> Array:
    """Apply a function of [M, ...] to [S, N, ...] with M = S * N."""
    y = function(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _pad(x: Array, padding: tuple[int, ...]) -> Array:
    if not any(padding):
        return x
    return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])


def _windows(x: Array, window: Window) -> Array:
    """Return the view [M, C, H', W', KH, KW] of all windows of x [M, C, H, W]."""
    views = sliding_window_view(_pad(x, window.padding), window.extent, axis=(2, 3))
    (sy, sx), (dy, dx) = window.stride, window.dilation
    return views[:, :, ::sy, ::sx, ::dy, ::dx]


def _pool(name: str, node: nir.NIRNode) -> Operator:
    """Sum over each window, divided by its full size (padding counts) for an average."""
    window = window_of(name, node)
    size = math.prod(window.kernel) if isinstance(node, nir.AvgPool2d) else 1

    def pool(x: Array) -> Array:
        total: Array = _windows(x, window).sum(axis=(4, 5), dtype=np.float64)
        return total / size

    return lambda x: _merged(x, pool)


def _convolution(name: str, node: nir.NIRNode) -> Operator:
    """Cross-correlation with zero padding; a Conv1d is a Conv2d of height 1."""
    window = window_of(name, node)
    weight = expand_kernel(np.asarray(node.weight, np.float64), int(node.groups))
    bias = np.asarray(node.bias, np.float64)
    if isinstance(node, nir.Conv2d):
        return lambda x: _merged(x, lambda y: correlate(y, weight, bias, window))
    flat = Window(
        (1, *window.kernel), (1, *window.stride), (0, *window.padding), (1, *window.dilation)
    )
    tall = weight[:, :, None]
    return lambda x: _merged(x, lambda y: correlate(y[:, :, None], tall, bias, flat)[:, :, 0])


def correlate(x: Array, weight: Array, bias: Array, window: Window) -> Array:
    """Return y[m, o, i, j] = b[o] + sum over c, a, b of W[o, c, a, b] x[m, c, i*s + a*d - p, ...].

    Args: x: [M, C, H, W]; weight: dense [O, C, KH, KW], block-diagonal parts are skipped.
    Returns: float64 [M, O, H', W'].
    """
    groups = find_groups(weight)
    kernel = compact_kernel(weight, groups).reshape(
        groups, -1, x.shape[1] // groups, *window.kernel
    )
    matrix = kernel.transpose(0, 3, 4, 2, 1).reshape(groups, -1, kernel.shape[1])
    height, width = window.output(x.shape[2:])
    out = np.empty((len(x), weight.shape[0], height, width))
    step = max(1, _COLUMN_BYTES // (8 * groups * matrix.shape[1] * height * width))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        product = _columns(x[part], window, groups) @ matrix
        maps = product.reshape(groups, -1, height, width, kernel.shape[1])
        out[part] = maps.transpose(1, 0, 4, 2, 3).reshape(out[part].shape)
    out += bias[:, None, None]
    return out


def _columns(x: Array, window: Window, groups: int) -> Array:
    """Return the windows of x [M, C, H, W] as rows: float64 [G, M * H' * W', KH * KW * C / G].

    Channels come last, so that rows are copied in runs.
    """
    last = np.ascontiguousarray(_pad(x, window.padding).transpose(0, 2, 3, 1))
    split = last.reshape(*last.shape[:3], groups, -1)
    (sy, sx), (dy, dx) = window.stride, window.dilation
    views = sliding_window_view(split, window.extent, axis=(1, 2))
    views = views[:, ::sy, ::sx, :, :, ::dy, ::dx].transpose(3, 0, 1, 2, 5, 6, 4)
    rows = math.prod(views.shape[1:4])
    return views.astype(np.float64, order="C").reshape(groups, rows, -1)
