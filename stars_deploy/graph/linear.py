"""Linear maps between populations: what lies between two neurons as one convolution or matrix.

A graph puts convolutions, dense layers, pools, scales, flattens and adds between its neurons. A
chip has one kind of thing there, synapses, so every path from one population to the next must
become a single operator. Two convolutions in a row are one convolution

    K[o, i, a d_2 s_1 + b d_1] = sum over c of W_2[o, c, a] W_1[c, i, b],   stride s_1 s_2

exactly where the zeros that the second one reads around its map are what the first one would have
put there; elsewhere the pair becomes a matrix, if that is small enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import Shape, Window, window_of
from stars_deploy.graph.groups import compact_kernel, expand_kernel, find_groups

Reals = NDArray[np.float64]
#: Entries of a matrix that stands for convolutions that do not merge exactly.
LARGEST_MATRIX = 1 << 22
POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))


@dataclass(frozen=True)
class LinearMap:
    """y = M x for x of shape `given` and y of shape `made`.

    With a `window`, M is a cross-correlation with zero padding: `weight` [O, I / groups, KH, KW].
    Without, `weight` is a matrix [outputs, inputs] on flattened values, or None for the identity.
    """

    given: Shape
    made: Shape
    weight: Reals | None = None
    window: Window | None = None
    groups: int = 1

    @property
    def grid(self) -> Shape:
        """Shape [C, H, W] that the convolution puts out, before any flattening."""
        assert self.window is not None and self.weight is not None
        return (len(self.weight), *self.window.output(self.given[1:]))


def identity(shape: Shape) -> LinearMap:
    """Return the map that changes nothing."""
    return LinearMap(shape, shape)


def map_of(name: str, node: nir.NIRNode, given: Shape, made: Shape) -> LinearMap:
    """Return the linear part of a stateless node; GraphError where it has none."""
    if isinstance(node, nir.Conv2d):
        dense = expand_kernel(np.asarray(node.weight, np.float64), int(node.groups))
        groups = find_groups(dense)
        kernel = compact_kernel(dense, groups)
        return LinearMap(given, made, kernel, window_of(name, node), groups)
    if isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        window = window_of(name, node)
        share = 1.0 if isinstance(node, nir.SumPool2d) else 1.0 / math.prod(window.kernel)
        kernel = np.full((given[0], 1, *window.kernel), share)
        return LinearMap(given, made, kernel, window, given[0])
    if isinstance(node, nir.Affine | nir.Linear):
        return LinearMap(given, made, np.asarray(node.weight, np.float64))
    if isinstance(node, nir.Flatten | nir.Output):
        return LinearMap(given, made)
    if isinstance(node, nir.Scale):
        return _scale(np.asarray(node.scale, np.float64), given)
    raise GraphError(f"{name}: a {type(node).__name__} node is not linear")


def _scale(factors: Reals, shape: Shape) -> LinearMap:
    if len(shape) == 3 and (np.ptp(factors, axis=(1, 2)) == 0).all():
        kernel = factors[:, :1, :1, None]
        return LinearMap(shape, shape, kernel, POINT, shape[0])
    _require_small(math.prod(shape), math.prod(shape), "a Scale that differs within a channel")
    return LinearMap(shape, shape, np.diag(factors.reshape(-1)))


def compose(first: LinearMap, second: LinearMap) -> LinearMap:
    """Return second after first, as a convolution where that is exact, else as a matrix.

    Raises: GraphError when the matrix would be too large.
    """
    if second.weight is None:
        return replace(first, made=second.made)
    if first.weight is None:
        return (
            replace(second, given=first.given)
            if first.given == second.given
            else _late(first, second)
        )
    if first.window is not None and second.window is not None and _exact(first, second):
        return _merged(first, second)
    if second.window is not None:
        _require_small(math.prod(second.made), math.prod(first.given), "the pair")
    matrix = as_matrix(second).weight
    assert matrix is not None
    weight = matrix @ first.weight if first.window is None else _adjoint(matrix, first)
    return LinearMap(first.given, second.made, weight)


def _late(first: LinearMap, second: LinearMap) -> LinearMap:
    """Return a map of flattened values as a matrix on the values before flattening."""
    return LinearMap(first.given, second.made, as_matrix(second).weight)


def added(one: LinearMap, other: LinearMap) -> LinearMap | None:
    """Return the sum of two maps where it is a single operator of the same kind, else None."""
    if one.weight is None or other.weight is None:
        return None
    same = (one.given, one.made, one.window, one.weight.shape, one.groups) == (
        (other.given, other.made, other.window, other.weight.shape, other.groups)
    )
    return replace(one, weight=one.weight + other.weight) if same else None


def as_matrix(linear: LinearMap) -> LinearMap:
    """Return a map as a matrix [outputs, inputs]; GraphError when that is too large."""
    if linear.weight is not None and linear.window is None:
        return linear
    outputs, inputs = math.prod(linear.made), math.prod(linear.given)
    _require_small(outputs, inputs, "a convolution without a neuron beside it")
    if linear.window is None:
        weight = np.eye(outputs)
    elif inputs < outputs:  # a padded map may be far larger than the matrix: column by column
        basis = np.eye(inputs).reshape(inputs, *linear.given)
        weight = np.stack([applied(linear, one).reshape(-1) for one in basis], axis=1)
    else:
        weight = _adjoint(np.eye(outputs), linear)
    return LinearMap(linear.given, linear.made, weight)


def as_operator(linear: LinearMap) -> LinearMap:
    """Return a map whose weights are explicit: an identity becomes a 1x1 convolution or matrix."""
    if linear.weight is not None:
        flattened = linear.window is not None and linear.made != linear.grid
        return as_matrix(linear) if flattened else linear
    if len(linear.given) == 3 and linear.made == linear.given:
        return LinearMap(
            linear.given, linear.made, np.ones((linear.given[0], 1, 1, 1)), POINT, linear.given[0]
        )
    return as_matrix(linear)


def applied(linear: LinearMap, values: Reals) -> Reals:
    """Return M x for one x of shape `given`."""
    if linear.weight is None:
        return values.reshape(linear.made)
    if linear.window is None:
        return (linear.weight @ values.reshape(-1)).reshape(linear.made)
    out = np.zeros(linear.grid)
    padded = np.pad(values, [(0, 0), *((p, p) for p in linear.window.padding)])
    per_group = linear.weight.shape[1]
    rows = len(linear.weight) // linear.groups
    for place, (a, b) in _taps(linear.window, linear.grid):
        seen = padded[:, *place]
        for group in range(linear.groups):
            block = slice(group * rows, (group + 1) * rows)
            part = seen[group * per_group : (group + 1) * per_group]
            out[block] += np.tensordot(linear.weight[block, :, a, b], part, 1)
    return out.reshape(linear.made)


def _taps(window: Window, grid: Shape) -> list[tuple[tuple[slice, slice], tuple[int, int]]]:
    """Return per kernel tap the places of the padded input that it reads."""
    found = []
    for a in range(window.kernel[0]):
        for b in range(window.kernel[1]):
            start = (a * window.dilation[0], b * window.dilation[1])
            place = tuple(
                slice(at, at + (size - 1) * step + 1, step)
                for at, size, step in zip(start, grid[1:], window.stride, strict=True)
            )
            found.append(((place[0], place[1]), (a, b)))
    return found


def _adjoint(matrix: Reals, conv: LinearMap) -> Reals:
    """Return matrix @ M for a convolution M, as [rows, C * H * W]."""
    assert conv.window is not None and conv.weight is not None
    channels, height, width = conv.given
    (py, px), grid = conv.window.padding, conv.grid
    rows = matrix.reshape(len(matrix), *grid)
    padded = np.zeros((len(matrix), channels, height + 2 * py, width + 2 * px))
    outputs, per_group = len(conv.weight) // conv.groups, conv.weight.shape[1]
    for place, (a, b) in _taps(conv.window, grid):
        if outputs == per_group == 1:  # depthwise
            padded[:, :, *place] += rows * conv.weight[:, 0, a, b][:, None, None]
            continue
        for group in range(conv.groups):
            block = slice(group * outputs, (group + 1) * outputs)
            into = slice(group * per_group, (group + 1) * per_group)
            padded[:, into, *place] += np.einsum(
                "rohw,oi->rihw", rows[:, block], conv.weight[block, :, a, b], optimize=True
            )
    return padded[:, :, py : py + height, px : px + width].reshape(len(matrix), -1)


def _exact(first: LinearMap, second: LinearMap) -> bool:
    """Whether what the second convolution reads beside its map would be zero in the merged one.

    A place q outside of the first one's map stands for the window that begins at pixel
    q s_1 - p_1; if it touches a pixel, the merged kernel would see that pixel, the pair does not.
    """
    inner, outer = first.window, second.window
    assert inner is not None and outer is not None
    if first.made != first.grid or first.made != second.given:
        return False
    for axis in (0, 1):
        pooled, length = first.grid[1 + axis], first.given[1 + axis]
        outputs = second.grid[1 + axis]
        read = {
            o * outer.stride[axis] + a * outer.dilation[axis] - outer.padding[axis]
            for o in range(outputs)
            for a in range(outer.kernel[axis])
        }
        for q in read - set(range(pooled)):
            begin = q * inner.stride[axis] - inner.padding[axis]
            touched = range(begin, begin + inner.extent[axis], inner.dilation[axis])
            if any(0 <= pixel < length for pixel in touched):
                return False
    merged = _merged_window(inner, outer)
    return merged.output(first.given[1:]) == second.grid[1:]


def _merged_window(inner: Window, outer: Window) -> Window:
    """Return the window of outer after inner; a point-wise one leaves the other's dilation."""
    steps = [d * s for d, s in zip(outer.dilation, inner.stride, strict=True)]
    stride = tuple(s * t for s, t in zip(outer.stride, inner.stride, strict=True))
    axes = zip(outer.padding, inner.stride, inner.padding, strict=True)
    padding = tuple(p * s + q for p, s, q in axes)
    if inner.kernel == (1, 1):
        return Window(outer.kernel, stride, padding, tuple(steps))
    if outer.kernel == (1, 1):
        return Window(inner.kernel, stride, padding, inner.dilation)
    spans = zip(outer.kernel, steps, inner.extent, strict=True)
    return Window(tuple((k - 1) * t + extent for k, t, extent in spans), stride, padding, (1, 1))


def _merged(first: LinearMap, second: LinearMap) -> LinearMap:
    """Add up, for every tap b of the first kernel, the second one shifted by b d_1."""
    inner, outer = first.window, second.window
    assert inner is not None and outer is not None
    window = _merged_window(inner, outer)
    # Distances in the merged kernel, whose own dilation is already taken out.
    axes = list(zip(outer.dilation, inner.stride, inner.dilation, window.dilation, strict=True))
    spread = [dilation * stride // own for dilation, stride, _, own in axes]
    shift = [dilation // own for _, _, dilation, own in axes]
    kernel: Reals | None = None
    groups = 1
    for i in range(inner.kernel[0]):
        for j in range(inner.kernel[1]):
            part, groups = _channels(first, second, i, j)
            if kernel is None:
                kernel = np.zeros((*part.shape[:2], *window.kernel))
            rows = _slots(i * shift[0], outer.kernel[0], spread[0])
            columns = _slots(j * shift[1], outer.kernel[1], spread[1])
            kernel[:, :, rows, columns] += part
    return LinearMap(first.given, second.made, kernel, window, groups)


def _slots(start: int, count: int, step: int) -> slice:
    return slice(start, start + (count - 1) * max(step, 1) + 1, max(step, 1))


def _channels(first: LinearMap, second: LinearMap, i: int, j: int) -> tuple[Reals, int]:
    """Return sum over c of W_2[o, c, :, :] W_1[c, i] for one tap of W_1, and its groups."""
    inner, outer = first.weight, second.weight
    assert inner is not None and outer is not None
    tap = inner[:, :, i, j]
    if inner.shape[1] == 1 and first.groups == len(inner):  # depthwise before
        rows = len(outer) // second.groups
        begin = np.arange(len(outer)) // rows * outer.shape[1]
        channel = begin[:, None] + np.arange(outer.shape[1])
        return outer * tap[channel, 0][:, :, None, None], second.groups
    if outer.shape[1] == 1 and second.groups == len(outer):  # depthwise after
        return outer * tap[:, :, None, None], first.groups
    whole: Any = expand_kernel(tap, first.groups)
    product = np.einsum("ocyx,ci->oiyx", expand_kernel(outer, second.groups), whole, optimize=True)
    return product, 1


def _require_small(outputs: int, inputs: int, what: str) -> None:
    if outputs * inputs > LARGEST_MATRIX:
        raise GraphError(
            f"{what} does not merge exactly into one convolution, and as a matrix it has "
            f"{outputs} x {inputs} weights, more than {LARGEST_MATRIX}; use map sizes divisible by "
            "the pool or stride, no padding or overlap of the pool, or put a neuron between"
        )
