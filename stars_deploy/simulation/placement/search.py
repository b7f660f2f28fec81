"""The grid of boxes that puts a population on the fewest cores.

A population (C, H, W) is cut into equal blocks of channels, rows and columns; every box is one
core. Of all such grids whose fullest core stays inside the limits, the one with the fewest cores
is taken, among these the one whose cores listen to the fewest neurons in all, and among these the
one that stores the fewest copies of a kernel; rows are cut before columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.simulation.placement.links import Counts, Link, merged, union
from stars_deploy.simulation.placement.types import RESOURCES, Masks, Shape3

Starts = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Stored:
    """Bits of one stored weight: of a shared kernel, of a synapse, of one with its own delay."""

    weight: int
    synapse: int
    delayed: int


@dataclass(frozen=True)
class Demand:
    """What the neurons of a population take, whatever the grid.

    Attributes:
        kernel_bits: [C], stored once per core; synapse_bits: [C, H, W], stored per neuron.
        reads: per source the masks of the connections from it.
        fans: signed products [C], [H], [W] whose sum is the number of cores a neuron sends to.
    """

    shape: Shape3
    kernel_bits: Counts
    synapse_bits: Counts
    reads: Mapping[str, list[Masks]]
    fans: Sequence[tuple[int, tuple[Counts, Counts, Counts]]]

    def per_core(self, starts: Starts) -> dict[str, Counts]:
        """Return for every resource what each box [blocks of C, of H, of W] takes."""
        lengths = [
            np.diff(np.append(first, size)) for first, size in zip(starts, self.shape, strict=True)
        ]
        memory = np.add.reduceat(self.kernel_bits, starts[0])[:, None, None]
        inputs = output = np.zeros((1, 1, 1), np.int64)
        for masks in self.reads.values():
            for sign, product in union([merged(item, starts) for item in masks]):
                inputs = inputs + sign * _outer(*(axis.sum(axis=1) for axis in product))
        for sign, counts in self.fans:
            sums = [np.add.reduceat(c, first) for c, first in zip(counts, starts, strict=True)]
            output = output + sign * _outer(*sums)
        shape = tuple(len(first) for first in starts)
        found = {
            "neurons": _outer(*lengths),
            "synaptic_memory_bit": memory + _block_sums(self.synapse_bits, starts),
            "input_axons": inputs,
            "output_axons": output,
        }
        return {name: np.broadcast_to(found[name], shape) for name in RESOURCES}


def demand_of(shape: Shape3, links: Sequence[Link], fans: Sequence[Sequence[Masks]],
              stored: Stored) -> Demand:  # fmt: skip
    """Add up the connections into a population, and the reads of the cores it sends to."""
    kernels, synapses = np.zeros(shape[0], np.int64), np.zeros(shape, np.int64)
    reads: dict[str, list[Masks]] = {}
    for link in links:
        reads.setdefault(link.source, []).append(link.reads)
        if link.kernel is not None:
            kernels += link.kernel * stored.weight
        if link.synapses is not None:
            late = link.entry["kind"] == "sparse_delay"
            synapses += link.synapses * (stored.delayed if late else stored.synapse)
    sent = [
        (sign, _three(axis.sum(axis=0, dtype=np.int64) for axis in product))
        for target in fans
        for sign, product in union(target)
    ]
    return Demand(shape, kernels, synapses, reads, sent)


def best_grid(demand: Demand, limits: Mapping[str, int]) -> Starts:
    """Return the first channel, row and column of every block of the best grid.

    Args:
        limits: by resource, only those that one neuron alone respects.
    """
    for sizes in _candidates(demand, limits):
        starts = _starts(demand.shape, sizes)
        needs = demand.per_core(starts)
        if all(int(needs[name].max()) <= limit for name, limit in limits.items()):
            return starts
    return single(demand.shape)


def largest(demand: Demand, starts: Starts) -> dict[str, int]:
    """Return what the fullest core of a grid takes of every resource."""
    return {name: int(values.max()) for name, values in demand.per_core(starts).items()}


def single(shape: Shape3) -> Starts:
    """Return the grid of one neuron a box."""
    return _starts(shape, (1, 1, 1))


def whole(shape: Shape3) -> Starts:
    """Return the grid of one box."""
    return _starts(shape, shape)


def _candidates(demand: Demand, limits: Mapping[str, int]) -> Iterator[tuple[int, int, int]]:
    """Yield block sizes that may fit, the best first."""
    axes = [_block_sizes(size) for size in demand.shape]
    cores = _outer(*(-(-size // axis) for size, axis in zip(demand.shape, axes, strict=True)))
    possible = np.ones(cores.shape, bool)
    if "neurons" in limits:
        possible &= _outer(*axes) <= limits["neurons"]
    if "synaptic_memory_bit" in limits:
        largest = np.array(
            [np.add.reduceat(demand.kernel_bits, np.arange(0, demand.shape[0], size)).max()
             for size in axes[0]]
        )  # fmt: skip
        room = limits["synaptic_memory_bit"] - largest[:, None, None]
        possible &= (room >= 0) & (demand.synapse_bits.sum() <= cores * np.maximum(room, 0))
    if "output_axons" in limits:
        sent = sum(sign * _product(counts) for sign, counts in demand.fans)
        possible &= sent <= cores * limits["output_axons"]
    total = np.zeros(cores.shape, np.int64)
    for masks in demand.reads.values():
        # The first connection of a source alone: no more than the union of them all.
        counts = [[merged_counts(mask, int(size)) for size in axis]
                  for mask, axis in zip(masks[0], axes, strict=True)]  # fmt: skip
        total += _outer(*(np.array([c.sum() for c in axis]) for axis in counts))
        if "input_axons" in limits:
            most = _outer(*(np.array([c.max() for c in axis]) for axis in counts))
            possible &= most <= limits["input_axons"]
    chosen = np.argwhere(possible)
    where = tuple(chosen.T)
    # The first block of each axis is all of it: boxes of a map, and boxes of a row.
    copies, columns = (np.broadcast_to(one, cores.shape) for one in (cores[0], cores[0, 0]))
    for index in np.lexsort((columns[where], copies[where], total[where], cores[where])):
        c, h, w = chosen[index]
        yield int(axes[0][c]), int(axes[1][h]), int(axes[2][w])


def merged_counts(mask: NDArray[np.bool_], size: int) -> Counts:
    """Return how many elements each block of `size` outputs reads along one axis."""
    joined = np.logical_or.reduceat(mask, np.arange(0, len(mask), size), axis=0)
    counts: Counts = joined.sum(axis=1, dtype=np.int64)
    return counts


def _block_sizes(size: int) -> Counts:
    """Return the sizes of equal blocks, ceil(size / n) for every n, largest first."""
    return np.unique(-(-size // np.arange(1, size + 1)))[::-1].astype(np.int64)


def _starts(shape: Shape3, sizes: Sequence[int]) -> Starts:
    first = [np.arange(0, size, step) for size, step in zip(shape, sizes, strict=True)]
    return first[0], first[1], first[2]


def _block_sums(values: Counts, starts: Starts) -> Counts:
    for axis, first in enumerate(starts):
        values = np.add.reduceat(values, first, axis=axis)
    return values


def _outer(a: Counts, b: Counts, c: Counts) -> Counts:
    product: Counts = (a[:, None, None] * b[:, None] * c).astype(np.int64)
    return product


def _product(counts: tuple[Counts, Counts, Counts]) -> int:
    return int(counts[0].sum()) * int(counts[1].sum()) * int(counts[2].sum())


def _three(values: Iterator[Counts]) -> tuple[Counts, Counts, Counts]:
    first, second, third = values
    return first, second, third
