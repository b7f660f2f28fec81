"""The grid of integers that a graph is fine-tuned on: one that a lowering finds back exactly."""

from __future__ import annotations

import math
from typing import Any

import nir

from stars_deploy.config.profile import Profile
from stars_deploy.config.profile_values import Whole
from stars_deploy.config.recipe import Neuron
from stars_deploy.distillation.integer_grid import Gridded, Population, on_grid
from stars_deploy.distillation.integer_twin import IntegerTwin
from stars_deploy.errors import DoesNotFit, RecipeError
from stars_deploy.graph.order import output_name
from stars_deploy.targets.loihi import Analysis, LoweredNetwork, analyse
from stars_deploy.targets.loihi.target import PARALLEL

FEWEST_BITS = 2  # one bit holds no integers but 0 and -1
SMALLER = 0.8  # a scale that overflows is made smaller by this, down to
TRIES = 21  # a hundredth of what the lowering chose
ROOM = 1.25  # by so much all integers may grow before a range overflows


def with_bits(profile: Profile, bits: int | None) -> Profile:
    """Return `profile` with weights of `bits` bits, itself if they are its own or None.

    Raises: RecipeError for bits outside 2 to the profile's, or a profile without integers.
    """
    arithmetic = profile.arithmetic
    if arithmetic is None:
        raise RecipeError(
            f"profile {profile.name!r} computes in floating point, there are no integers to train; "
            "choose a Loihi profile"
        )
    most = arithmetic.weight_bits.value
    if bits is None or bits == most:
        return profile
    if not FEWEST_BITS <= bits <= most:
        raise RecipeError(
            f"--bits {bits}: profile {profile.name!r} has weights of {most} bits, expected "
            f"{FEWEST_BITS} to {most}"
        )
    narrow = Whole(value=bits, source="--bits of stars-deploy finetune", confidence="choice")
    identity = profile.identity.model_copy(update={"name": f"{profile.name}-{bits}bit"})
    narrower = arithmetic.model_copy(update={"weight_bits": narrow})
    return profile.model_copy(update={"identity": identity, "arithmetic": narrower})


def choose_grid(
    graph: nir.NIRGraph, lowered: LoweredNetwork, profile: Profile, neuron: Neuron
) -> tuple[IntegerTwin, LoweredNetwork]:
    """Return a network on a grid near that of `lowered`, and the lowering of its rounded weights.

    Scales are those that the lowering chose, smaller where rounding would overflow a range.

    Raises: GraphError: the graph cannot be fine-tuned. DoesNotFit: no grid was found.
    """
    scales = {item["name"]: float(item["scale"]) for item in lowered.document["populations"]}
    k = float(lowered.document["input"]["scale"])
    for _ in range(TRIES):
        network = IntegerTwin(_grid(graph, lowered, scales, k, profile), k, neuron)
        tried = [analyse(network.to_graph(growth), profile) for growth in (1.0, ROOM)]
        wrong = {name for analysis in tried for name in _wrong(network, analysis)}
        start = tried[0].network
        if start is not None and not wrong:
            finer = float(start.document["input"]["scale"])
            if finer == k:
                return network, start
            for name in _listeners(start):
                scales[name] *= finer / k
            k = finer
        for name in wrong & scales.keys():
            scales[name] *= SMALLER
    raise DoesNotFit(
        f"{', '.join(sorted(wrong)) or 'input'}: no scale is exact and inside all ranges of "
        f"{profile.name}; use a smaller network, or other bits"
    )


def _wrong(network: IntegerTwin, analysis: Analysis) -> set[str]:
    """Return the populations that an analysis refuses, or gives other integers than the grid's."""
    if analysis.network is not None:
        return set(inexact(network.gridded, analysis.network))
    errors = [item for item in analysis.findings if item.severity == "error"]
    return {item.node for item in errors if item.node is not None}


def _listeners(lowered: LoweredNetwork) -> set[str]:
    connections = lowered.document["connections"]
    return {item["target"] for item in connections if item["source"] == "input"}


def inexact(gridded: Gridded, lowered: LoweredNetwork) -> list[str]:
    """Return the populations whose integers are not those of the grid.

    Where all integers of a population are even the lowering doubles the scale, or halves it where
    they are small: the same numbers, and the same spikes.
    """
    readout = lowered.document["readout"]["population"]
    own = dict(gridded.scales)
    own.setdefault(readout, own.get(output_name(gridded.graph), math.nan))
    return [
        item["name"]
        for item in lowered.document["populations"]
        if item["node"] is not None  # a relay has no integers of its own
        and math.frexp(item["scale"] / own[item["name"]])[0] != 0.5
    ]


def _grid(
    graph: nir.NIRGraph,
    lowered: LoweredNetwork,
    scales: dict[str, float],
    k: float,
    profile: Profile,
) -> Gridded:
    populations: dict[str, Population] = {}
    readout = None
    title = lowered.document["readout"]["population"]
    for item in lowered.document["populations"]:
        known = Population(scales[item["name"]], int(item["dv"]))
        if item["name"] == title:
            readout = known
        if item["node"] is not None:
            populations[item["node"]] = known
    arithmetic: Any = profile.arithmetic
    high = (1 << (arithmetic.weight_bits.value - 1)) - 1
    bias_high = (1 << arithmetic.bias_magnitude_bits.value) - 1
    return on_grid(graph, populations, readout, k, high, bias_high, PARALLEL)
