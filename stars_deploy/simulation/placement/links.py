"""Connections of a written network as a core sees them: what it stores and to whom it listens.

Everything separates into channels, rows and columns, so that no synapse is ever enumerated: output
row y of a convolution with tap k reads row y * stride - padding + k * dilation, if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.simulation.placement.types import Masks, Shape3

Array = NDArray[Any]
Counts = NDArray[np.int64]
SPARSE = "sparse_delay"


@dataclass(frozen=True)
class Link:
    """A connection into a population of shape (C, H, W) from a source of shape (I, Y, X).

    Attributes:
        reads: masks [C, I], [H, Y], [W, X]: neuron (c, h, w) listens to the product of its rows.
            A zero weight in a kernel that is not all zero counts as a synapse, except of a
            sparse_delay connection, whose reads are the smallest product that holds them all.
        synapses: per neuron [C, H, W], individually stored; None for a shared kernel.
        kernel: per output channel the weights [C] of a shared kernel; None otherwise.
        weight_shape: of a convolution (O, I / groups, KH, KW), or (O, I) as stored.
    """

    entry: Mapping[str, Any]
    given: Shape3
    weight_shape: tuple[int, ...]
    reads: Masks
    synapses: Counts | None
    kernel: Counts | None

    @property
    def source(self) -> str:
        """Name of the population, or of the input, that sends."""
        return str(self.entry["source"])


def shape_of(entry: Mapping[str, Any]) -> Shape3:
    """Return (C, H, W) of a population or of the input; (N, 1, 1) for one without a map."""
    sizes = [int(size) for size in reversed(entry["shape_whc"])]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else (sizes[0], 1, 1)


def link_of(
    entry: Mapping[str, Any], weight: Array, given: Shape3, made: Shape3, shares: bool
) -> Link:
    """Return a connection as a link from shape `given` to shape `made`."""
    if weight.ndim == 4:
        return _convolution(entry, weight, given, made, shares)
    if entry["kind"] == SPARSE:
        return _sparse_matrix(entry, weight, given, made)
    reads = tuple(np.ones((m, g), bool) for m, g in zip(made, given, strict=True))
    synapses = np.full(made, weight.shape[1], np.int64)
    return Link(entry, given, weight.shape, (reads[0], reads[1], reads[2]), synapses, None)


def _convolution(
    entry: Mapping[str, Any], weight: Array, given: Shape3, made: Shape3, shares: bool
) -> Link:
    taps = weight != 0
    per_pair = taps.any(axis=(2, 3))  # [O, I / groups]
    if entry["kind"] != SPARSE:
        taps = np.broadcast_to(per_pair[:, :, None, None], weight.shape)
    axes = [_positions(made[1 + i], given[1 + i], weight.shape[2 + i], entry, i) for i in range(2)]
    used = taps.any(axis=(0, 1))
    rows = np.logical_or.reduce(axes[0][:, used.any(axis=1)], axis=1)
    columns = np.logical_or.reduce(axes[1][:, used.any(axis=0)], axis=1)
    reads = (_channels(per_pair, int(entry["groups"]), given[0]), rows, columns)
    stored = taps.sum(axis=1, dtype=np.int64)  # [O, KH, KW]
    if shares and entry["kind"] != SPARSE:
        return Link(entry, given, weight.shape, reads, None, stored.sum(axis=(1, 2)))
    inside = [axis.any(axis=2).astype(np.int64) for axis in axes]  # [outputs, taps]
    synapses = np.einsum("okl,yk,xl->oyx", stored, *inside, optimize=True)
    return Link(entry, given, weight.shape, reads, synapses, None)


def _positions(made: int, given: int, kernel: int, entry: Mapping[str, Any], axis: int) -> Array:
    """Return a mask [outputs, taps, inputs] of one spatial axis."""
    start = np.arange(made)[:, None] * entry["stride"][axis] - entry["padding"][axis]
    read = start + np.arange(kernel) * entry["dilation"][axis]
    mask: Array = read[:, :, None] == np.arange(given)
    return mask


def _channels(per_pair: Array, groups: int, inputs: int) -> NDArray[np.bool_]:
    """Return which input channels [O, I] an output channel listens to."""
    outputs, per_group = per_pair.shape
    mask = np.zeros((outputs, inputs), bool)
    first = np.arange(outputs) // max(1, outputs // groups) * per_group
    np.put_along_axis(mask, first[:, None] + np.arange(per_group), per_pair, axis=1)
    return mask


def _sparse_matrix(entry: Mapping[str, Any], weight: Array, given: Shape3, made: Shape3) -> Link:
    used = (weight != 0).reshape(*made, *given)
    reads = tuple(
        used.any(axis=tuple(other for other in range(6) if other not in (axis, 3 + axis)))
        for axis in range(3)
    )
    synapses = np.count_nonzero(weight, axis=1).astype(np.int64).reshape(made)
    return Link(entry, given, weight.shape, (reads[0], reads[1], reads[2]), synapses, None)


def merged(masks: Masks, edges: Sequence[Array]) -> Masks:
    """Return what whole blocks read: rows of each mask joined between the edges of the blocks."""
    joined = [np.logical_or.reduceat(m, e, axis=0) for m, e in zip(masks, edges, strict=True)]
    return joined[0], joined[1], joined[2]


def union(reads: Sequence[Masks]) -> list[tuple[int, Masks]]:
    """Return products with signs whose sum counts every element of the union of `reads` once.

    Inclusion and exclusion: the intersection of products of sets is the product of intersections.
    """
    distinct: list[Masks] = []
    for masks in reads:
        if not any(all(map(np.array_equal, masks, known)) for known in distinct):
            distinct.append(masks)
    terms = []
    for size in range(1, len(distinct) + 1):
        for chosen in combinations(distinct, size):
            axes = [np.logical_and.reduce(axis) for axis in zip(*chosen, strict=True)]
            terms.append(((-1) ** (size + 1), (axes[0], axes[1], axes[2])))
    return terms
