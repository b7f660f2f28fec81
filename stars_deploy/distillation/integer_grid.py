"""A graph rewritten so that a power of two times its weights is what a chip rounds.

A population of integer scale s computes round(s g W) and round(s g b), with g = r dv / 4096 the
gain of its neurons, and fires above M = round(s V_th). s is seldom a power of two, so integers / s
is seldom a float. A layer of LIF or IF neurons does the same whatever unit its potential has, so

    W <- c W,  b <- c b,  V_th <- M / 2^e    with c = s / 2^e

computes what it did, and on the grid of 2^e nothing is rounded: a lowering that looks for exact
scales finds the integers back. Spikes that lead into a population without weights (identity
shortcuts) get a Scale node, whose factor c is rounded like any weight. Where the unit is not free,
s is a power of two itself: at the read-out, and in populations that share an operator with another
one (membrane shortcuts).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.distillation.integer_paths import (
    NEURONS,
    bias_of,
    is_free,
    is_power,
    operators_of,
    path_into,
    require_known,
    weight_of,
    weighted_shortcuts,
    with_weight,
)
from stars_deploy.errors import GraphError
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import topological_order

Reals = NDArray[np.float64]
DECAY_ONE = 4096  # decays are multiples of 1/4096


@dataclass(frozen=True)
class Population:
    """What a lowering chose for a population: scale s, and dv (0: IF neurons, or a read-out)."""

    scale: float
    decay: int = 0


@dataclass(frozen=True)
class Grid:
    """Weights of an operator are integers times `step`, its biases integers times `bias_step`.

    Attributes:
        high, bias_high: the largest integers; the smallest are their negatives.
        threshold: of the neurons that it feeds, as an integer (of a read-out: `high`).
        graded: whether it takes messages of the input, which stand for 1/k each.
    """

    step: float
    bias_step: float
    high: int
    bias_high: int
    threshold: float
    graded: bool


@dataclass(frozen=True)
class Gridded:
    """The rewritten graph, its weights not rounded yet, with the grids of its operators.

    scales: 2^e of every population, by its node; of the read-out, by the output node.
    """

    graph: nir.NIRGraph
    grids: Mapping[str, Grid]
    scales: Mapping[str, float]


def on_grid(
    graph: nir.NIRGraph,
    populations: Mapping[str, Population],
    readout: Population | None,
    k: float,
    high: int,
    bias_high: int,
    parallel: int,
) -> Gridded:
    """Rewrite `graph` for populations, by the name of their node, and the read-out.

    Args:
        readout: of operators that feed the output; None where neurons do.
        k: messages per unit of the input.
        high, bias_high: largest integer weight and bias; the smallest are their negatives.
        parallel: synapses that a Scale beside other operators may take, whose weights add up.

    Raises:
        GraphError: a node, or an order of nodes, whose weights cannot be put on a grid one by one.
    """
    require_known(graph)
    graph = weighted_shortcuts(graph)
    dt = metadata_of(graph).dt
    nodes = dict(graph.nodes)
    grids: dict[str, Grid] = {}
    scales: dict[str, float] = {}

    def place(name: str, neurons: _Neurons) -> None:
        operators = operators_of(graph, name)
        for operator in operators:
            share, graded = path_into(graph, operator)
            unit = 1 / (neurons.power * neurons.gain)
            step = unit / share * (k if graded else 1.0)
            skip = len(operators) > 1 and isinstance(graph.nodes[operator], nir.Scale)
            most = high * parallel if skip else high
            grid = Grid(step, unit, most, bias_high, neurons.threshold, graded)
            shared = grids.get(operator)
            if shared is None:
                nodes[operator] = _changed(graph.nodes[operator], neurons.change)
            # Of several populations the coarsest grid is on the grids of all of them.
            grids[operator] = max(shared or grid, grid, key=lambda item: item.step)

    for name in topological_order(graph):
        node = graph.nodes[name]
        if isinstance(node, NEURONS):
            free = is_free(graph, name)
            neurons = _Neurons.of(name, node, populations[name], free, dt)
            nodes[name], scales[name] = neurons.node, neurons.power
            place(name, neurons)
        elif isinstance(node, nir.Output):
            operators = operators_of(graph, name)
            if operators and readout is not None:
                power = _best_power(graph, operators, readout.scale, high)
                scales[name] = power
                place(name, _Neurons(node, power, 1.0, 1.0, float(high)))
    rewritten = nir.NIRGraph(nodes, list(graph.edges), metadata=graph.metadata, type_check=False)
    return Gridded(rewritten, grids, scales)


@dataclass(frozen=True)
class _Neurons:
    """A rewritten neuron node; W <- change * W, and integers = power * gain * W."""

    node: nir.NIRNode
    power: float
    gain: float
    change: float
    threshold: float

    @classmethod
    def of(
        cls, name: str, node: nir.LIF | nir.IF, given: Population, free: bool, dt: float
    ) -> _Neurons:
        r, v_threshold = _first(node.r), _first(node.v_threshold)
        decay = given.decay or DECAY_ONE  # IF neurons add their input as it is
        before = after = r * decay / DECAY_ONE
        if free and is_power(decay):
            r, after = 1.0, decay / DECAY_ONE
        elif free:
            decay, r = _unit_gain(decay)
            after = 1.0
        if not is_power(after):
            raise GraphError(
                f"{name}: its input gain is {after:g}, and it shares an operator with another "
                "population; that is exact for gains of 1, 1/2, 1/4 only: "
                "use tau = 1, 2 or 4 steps"
            )
        nearest = round(math.log2(given.scale)) if free else math.floor(math.log2(given.scale))
        power = 2.0**nearest
        threshold = max(1, round((given.scale if free else power) * v_threshold))
        change = (threshold / power / v_threshold if free else 1.0) * before / after
        fields = {
            "r": np.full(np.shape(node.r), r),
            "v_threshold": np.full(np.shape(node.v_threshold), threshold / power),
        }
        if isinstance(node, nir.LIF):
            fields["tau"] = np.full(np.shape(node.tau), dt * (DECAY_ONE / decay))
        return cls(dataclasses.replace(node, **fields), power, after, change, threshold)


def _unit_gain(decay: int) -> tuple[int, float]:
    """Return r with r dv / 4096 = 1 in floats, and dv: for 6 % of all dv only a neighbour has one.

    Such a neighbour, 1/4096 away, is trained with, so that the difference does no harm.
    """
    for near in (decay, decay + 1, decay - 1, decay + 2, decay - 2):
        r = DECAY_ONE / near
        for item in (r, float(np.nextafter(r, np.inf)), float(np.nextafter(r, 0))):
            if item * near / DECAY_ONE == 1:
                return near, item
    raise GraphError(f"a decay of {decay}/4096 has no exact input gain; use another tau")


def _changed(node: nir.NIRNode, factor: float) -> nir.NIRNode:
    return with_weight(node, weight_of(node) * factor, bias_of(node) * factor)


def _best_power(graph: nir.NIRGraph, operators: list[str], scale: float, high: int) -> float:
    """Return the power of two beside `scale` whose rounding of the weights costs less."""
    weights = [weight_of(graph.nodes[name]) * path_into(graph, name)[0] for name in operators]
    lower = 2.0 ** math.floor(math.log2(scale))

    def error(power: float) -> float:
        rounded = (np.clip(np.rint(weight * power), -high, high) / power for weight in weights)
        return sum(
            float(np.square(one - other).sum()) for one, other in zip(rounded, weights, strict=True)
        )

    return min((lower, 2 * lower), key=error)


def _first(values: object) -> float:
    return float(np.asarray(values, np.float64).flat[0])
