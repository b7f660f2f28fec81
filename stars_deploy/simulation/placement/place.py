"""Placement of a written network (`network.json`) on the cores of a profile's chips.

One rule: a core holds neurons of one population. Populations take cores in the order of the
document, chips are filled in order, a population may go on on the next chip, and the cores of a
chip are numbered along its mesh row by row, tile after tile. The image is not placed: it comes from
outside, though its pixels take input axons.

Stored per core: with convolution sharing a kernel once for every output channel of the core,
otherwise each synapse of each neuron (padding holds none; channel pairs of a grouped kernel that
are zero throughout hold none). A dense matrix is stored in full. Synapses with a delay of their own
(`sparse_delay`) are stored singly, the non-zero ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Profile
from stars_deploy.errors import InputError
from stars_deploy.simulation.placement.hops import Hops, message_hops
from stars_deploy.simulation.placement.links import Link, link_of, merged, shape_of
from stars_deploy.simulation.placement.rules import (
    connection_misfits,
    neuron_misfits,
    system_misfits,
)
from stars_deploy.simulation.placement.search import (
    Demand,
    Starts,
    Stored,
    best_grid,
    demand_of,
    largest,
    single,
    whole,
)
from stars_deploy.simulation.placement.types import (
    Misfit,
    Part,
    PlacedPopulation,
    Placement,
    Route,
    Shape3,
)
from stars_deploy.simulation.placement.whole import assign_cores, padded_demand

__all__ = ["Hops", "Misfit", "Part", "PlacedPopulation", "Placement", "message_hops", "place"]

Array = NDArray[Any]
Json = Mapping[str, Any]


def place(document: Json, arrays: Mapping[str, Array], profile: Profile) -> Placement:
    """Place the populations of a written network on the chips of `profile`.

    What does not fit is said in `misfits` and placed all the same, past the limit, so that the
    rest of the network is counted too.

    Args:
        document, arrays: of `network.json` and `network.npz`.

    Raises:
        InputError: the profile has no integers to store, or the network has a loop.
    """
    limits = profile.limits
    populations = {str(entry["name"]): entry for entry in document["populations"]}
    shapes = {name: shape_of(entry) for name, entry in populations.items()}
    given = {**shapes, "input": shape_of(document["input"])}
    links: dict[str, list[Link]] = {name: [] for name in populations}
    for entry in document["connections"]:
        if "host_shift" in entry:
            continue  # the host computes it and writes biases: no synapses, no axons
        target = str(entry["target"])
        weight = arrays[entry["weight_key"]]
        source = given[str(entry["source"])]
        links[target].append(link_of(entry, weight, source, shapes[target], limits.shares))
    grids, demands, misfits = _tile(shapes, links, profile)
    routes = _routes(links, grids, populations)
    cores: Iterator[int] = count()
    if not limits.splits:
        assigned, unplaced = assign_cores({name: demands[name] for name in populations}, limits)
        misfits += unplaced
        cores = iter(assigned)
    placed = tuple(
        _population(entry, shapes[name], grids[name], demands[name], cores, profile)
        for name, entry in populations.items()
    )
    misfits += [item for name in links for item in connection_misfits(name, links[name], profile)]
    misfits += system_misfits(placed, routes, limits)
    return Placement(
        profile.name, placed, tuple(routes), limits.mesh, limits.cores_of_system, limits.shares,
        tuple(misfits),
    )  # fmt: skip


def _tile(
    shapes: Mapping[str, Shape3], links: Mapping[str, Sequence[Link]], profile: Profile
) -> tuple[dict[str, Starts], dict[str, Demand], list[Misfit]]:
    """Return the grid of each population; targets first, since output axons depend on them."""
    stored, limits = _stored(profile), profile.limits
    grids: dict[str, Starts] = {}
    demands: dict[str, Demand] = {}
    misfits: list[Misfit] = []
    known = limits.per_core
    for name in _targets_first(links):
        fans = [
            [merged(link.reads, grids[target]) for link in links[target] if link.source == name]
            for target in grids
        ]
        demand = demand_of(shapes[name], links[name], fans, stored)
        if not limits.splits:
            grids[name] = whole(shapes[name])
            demands[name] = padded_demand(demand, links[name], stored, limits)
            axons = {item: bound for item, bound in known.items() if item.endswith("axons")}
            misfits += neuron_misfits(name, largest(demands[name], grids[name]), axons)
            continue
        found = neuron_misfits(name, largest(demand, single(shapes[name])), known)
        kept = {item: bound for item, bound in known.items() if item not in _names(found)}
        grids[name], demands[name] = best_grid(demand, kept), demand
        misfits += found
    return grids, demands, misfits


def _names(misfits: Sequence[Misfit]) -> set[str]:
    """Return the resources of misfits under the names of a part's fields."""
    return {item.resource.replace("memory", "memory_bit") for item in misfits}


def _targets_first(links: Mapping[str, Sequence[Link]]) -> list[str]:
    order = TopologicalSorter[str]({name: set() for name in links})
    for target, incoming in links.items():
        for link in incoming:
            if link.source in links:
                order.add(link.source, target)
    try:
        return list(order.static_order())
    except CycleError as problem:
        loop = " -> ".join(problem.args[1])
        raise InputError(
            f"populations: a loop, {loop}; only networks without recurrence are placed"
        ) from None


def _stored(profile: Profile) -> Stored:
    if profile.arithmetic is None:
        raise InputError(
            f"profile {profile.name!r} computes in floating point, there is nothing to place; "
            f"choose one with a section 'arithmetic'"
        )
    limits, weight = profile.limits, profile.arithmetic.weight_bits.value
    single = weight + (limits.synapse_index_bits.value if limits.synapse_index_bits else 0)
    late = limits.synapse_delay_bits.value if limits.synapse_delay_bits else 0
    return Stored(weight, single, single + late)


def _routes(
    links: Mapping[str, Sequence[Link]], grids: Mapping[str, Starts], populations: Json
) -> list[Route]:
    routes = []
    for target, incoming in links.items():
        for source in dict.fromkeys(link.source for link in incoming if link.source in populations):
            reads = [merged(ln.reads, grids[target]) for ln in incoming if ln.source == source]
            routes.append(Route(source, target, tuple(reads)))
    return routes


def _population(
    entry: Json,
    shape: Shape3,
    starts: Starts,
    demand: Demand,
    cores: Iterator[int],
    profile: Profile,
) -> PlacedPopulation:
    needs = demand.per_core(starts)
    ends = [np.append(first[1:], size) for first, size in zip(starts, shape, strict=True)]
    per_chip = profile.limits.cores
    mesh = profile.limits.mesh
    parts = []
    for box in np.ndindex(*(len(first) for first in starts)):
        core = next(cores)
        chip, local = divmod(core, per_chip) if per_chip else (0, core)
        channels, rows, columns = (
            (int(starts[axis][block]), int(ends[axis][block])) for axis, block in enumerate(box)
        )
        parts.append(
            Part(
                core=core,
                chip=chip,
                core_on_chip=local,
                tile=local // mesh[2] if mesh else None,
                channels=channels,
                rows=rows,
                columns=columns,
                neurons=int(needs["neurons"][box]),
                synaptic_memory_bit=int(needs["synaptic_memory_bit"][box]),
                input_axons=int(needs["input_axons"][box]),
                output_axons=int(needs["output_axons"][box]),
            )
        )
    return PlacedPopulation(str(entry["name"]), entry["node"], shape, tuple(parts))
