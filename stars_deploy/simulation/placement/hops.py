"""Messages between cores: how many, and how far they travel on the mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import InputError
from stars_deploy.simulation.placement.links import union
from stars_deploy.simulation.placement.types import Part, PlacedPopulation, Placement, Route

Reals = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Hops:
    """Messages of one image, and the tile-to-tile hops they make on their chip.

    Attributes:
        messages: a spike is one message to each core that listens to it.
        within_tile: messages whose two cores share a tile (or are one core).
        east_west, north_south: hops from tile to tile, first along the row, then the column.
        off_chip: messages to another chip, whose hops are not counted.
    The three on the mesh are None where the profile does not know its mesh.
    """

    messages: float
    within_tile: float | None
    east_west: float | None
    north_south: float | None
    off_chip: float


def message_hops(placement: Placement, spikes: Mapping[str, NDArray[Any]]) -> Hops:
    """Return how many messages the spikes of an image make, and how far they go.

    Messages from the image into the first population come from outside and are not counted.

    Args:
        spikes: per population, relays included, the mean number of spikes of each neuron per
            image, as (C, H, W) or (N,); populations that nobody listens to may be absent.

    Raises:
        InputError: the spikes of a population are missing, or not of its shape.
    """
    placed = {population.name: population for population in placement.populations}
    total = np.zeros(5)
    for route in placement.routes:
        source, target = placed[route.source], placed[route.target]
        rows = _sent(source, target, route, _counts(source, spikes))
        chips = np.array([part.chip for part in target.parts])
        tiles = None
        if placement.mesh is not None:
            tiles = np.array([part.tile for part in target.parts])
        for part, sent in zip(source.parts, rows, strict=True):
            total += _travelled(part, sent, chips, tiles, placement.mesh)
    messages, off_chip, *on_mesh = (float(value) for value in total)
    if placement.mesh is None:
        return Hops(messages, None, None, None, off_chip)
    return Hops(messages, on_mesh[0], on_mesh[1], on_mesh[2], off_chip)


def _travelled(
    part: Part,
    sent: Reals,
    chips: Indices,
    tiles: Indices | None,
    mesh: tuple[int, int, int] | None,
) -> Reals:
    """Return messages, off-chip messages, messages in the tile, hops east-west and north-south.

    `sent` are the messages of one core to the cores on `chips` and `tiles`.
    """
    same = chips == part.chip
    found = np.zeros(5)
    found[:2] = sent.sum(), sent[~same].sum()
    if mesh is None or tiles is None or part.tile is None:
        return found
    stays, columns = np.where(same, sent, 0.0), mesh[0]
    found[2] = stays[tiles == part.tile].sum()
    found[3] = stays @ np.abs(tiles % columns - part.tile % columns)
    found[4] = stays @ np.abs(tiles // columns - part.tile // columns)
    return found


def _counts(population: PlacedPopulation, spikes: Mapping[str, NDArray[Any]]) -> Reals:
    if population.name not in spikes:
        raise InputError(f"spikes: {population.name} is missing, its spikes travel between cores")
    counts = np.asarray(spikes[population.name], np.float64)
    channels, rows, columns = population.shape
    if counts.shape != population.shape and counts.shape != (channels * rows * columns,):
        raise InputError(
            f"spikes: {population.name} has shape {counts.shape}, expected {population.shape}"
        )
    return counts.reshape(population.shape)


def _sent(
    source: PlacedPopulation, target: PlacedPopulation, route: Route, counts: Reals
) -> Iterator[Reals]:
    """Yield for every part of the source its messages to each part of the target."""
    terms = [
        (sign, [axis.astype(np.float64) for axis in product])
        for sign, product in union(route.reads)
    ]
    for part in source.parts:
        c, h, w = slice(*part.channels), slice(*part.rows), slice(*part.columns)
        sent = np.zeros(len(target.parts))
        for sign, (channels, rows, columns) in terms:
            summed = np.tensordot(channels[:, c], counts[c, h, w], 1)  # [blocks of C, H, W]
            sent += sign * (rows[:, h] @ summed @ columns[:, w].T).reshape(-1)
        yield sent
