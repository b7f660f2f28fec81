"""A graph rewritten so that a power of two times its weights is what a chip rounds.

A population of integer scale s computes round(s g W) and round(s g b), with g = r dv / 4096 the
gain of its neurons, and fires above M = round(s V_th). s is seldom a power of two, so integers / s
is seldom a float. A layer of LIF or IF neurons does the same whatever unit its potential has, so

    W <- c W,  b <- c b,  V_th <- M / 2^e    with c = s / 2^e

computes what it did, and on the grid of 2^e nothing is rounded: a lowering that looks for exact
scales finds the integers back. Where the unit is not free, s is a power of two itself: at the
read-out, in populations that also take spikes without weights (identity shortcuts), and in those
that share an operator with another one (membrane shortcuts).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import window_of
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import input_name, sources, targets, topological_order

Reals = NDArray[np.float64]
DECAY_ONE = 4096  # decays are multiples of 1/4096
LINEAR = (nir.Conv2d, nir.Affine, nir.Linear)
NEURONS = (nir.LIF, nir.IF)
_POOLS = (nir.AvgPool2d, nir.SumPool2d)
_KNOWN = (nir.Input, nir.Output, nir.Flatten, *LINEAR, *NEURONS, *_POOLS)


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
) -> Gridded:
    """Rewrite `graph` for populations, by the name of their node, and the read-out.

    Args:
        readout: of operators that feed the output; None where neurons do.
        k: messages per unit of the input.
        high, bias_high: largest integer weight and bias; the smallest are their negatives.

    Raises:
        GraphError: a node, or an order of nodes, whose weights cannot be put on a grid one by one.
    """
    _require_known(graph)
    dt = metadata_of(graph).dt
    nodes = dict(graph.nodes)
    grids: dict[str, Grid] = {}
    scales: dict[str, float] = {}

    def place(name: str, neurons: _Neurons) -> None:
        for operator in _operators(graph, name):
            share, graded = _path_into(graph, operator)
            unit = 1 / (neurons.power * neurons.gain)
            step = unit / share * (k if graded else 1.0)
            grid = Grid(step, unit, high, bias_high, neurons.threshold, graded)
            shared = grids.get(operator)
            if shared is None:
                nodes[operator] = _changed(graph.nodes[operator], neurons.change)
            # Of several populations the coarsest grid is on the grids of all of them.
            grids[operator] = max(shared or grid, grid, key=lambda item: item.step)

    for name in topological_order(graph):
        node = graph.nodes[name]
        if isinstance(node, NEURONS):
            free = _is_free(graph, name)
            neurons = _Neurons.of(name, node, populations[name], free, dt)
            nodes[name], scales[name] = neurons.node, neurons.power
            place(name, neurons)
        elif isinstance(node, nir.Output):
            operators = _operators(graph, name)
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
        before = r * decay / DECAY_ONE
        after = before if not free else decay / DECAY_ONE if _is_power(decay) else 1.0
        if not _is_power(after):
            raise GraphError(
                f"{name}: its input gain is {after:g}, and it takes spikes without weights, or "
                "shares an operator; their weight is exact for gains of 1, 1/2, 1/4 only: "
                "use tau = 1, 2 or 4 steps"
            )
        nearest = round(math.log2(given.scale)) if free else math.floor(math.log2(given.scale))
        power = 2.0**nearest
        threshold = max(1, round((given.scale if free else power) * v_threshold))
        change = (threshold / power / v_threshold if free else 1.0) * before / after
        fields = {
            "r": np.full(np.shape(node.r), after / (decay / DECAY_ONE)),
            "v_threshold": np.full(np.shape(node.v_threshold), threshold / power),
        }
        if isinstance(node, nir.LIF):
            fields["tau"] = np.full(np.shape(node.tau), dt * (DECAY_ONE / decay))
        return cls(dataclasses.replace(node, **fields), power, after, change, threshold)


def _changed(node: nir.NIRNode, factor: float) -> nir.NIRNode:
    fields = {"weight": np.asarray(node.weight, np.float64) * factor}
    if hasattr(node, "bias"):
        fields["bias"] = np.asarray(node.bias, np.float64) * factor
    return dataclasses.replace(node, **fields)


def _operators(graph: nir.NIRGraph, name: str) -> list[str]:
    """Return the linear operators that feed a neuron or the output, through flattens."""
    return [item for item in _before(graph, name) if isinstance(graph.nodes[item], LINEAR)]


def _before(graph: nir.NIRGraph, name: str) -> Iterator[str]:
    for source in sources(graph, name):
        if isinstance(graph.nodes[source], nir.Flatten):
            yield from _before(graph, source)
        else:
            yield source


def _after(graph: nir.NIRGraph, name: str) -> Iterator[str]:
    for target in targets(graph, name):
        if isinstance(graph.nodes[target], nir.Flatten):
            yield from _after(graph, target)
        else:
            yield target


def _is_free(graph: nir.NIRGraph, name: str) -> bool:
    """Whether all that a population takes comes from operators of its own."""
    feeding = list(_before(graph, name))
    return all(
        isinstance(graph.nodes[item], LINEAR) and list(_after(graph, item)) == [name]
        for item in feeding
    )


def _path_into(graph: nir.NIRGraph, operator: str) -> tuple[float, bool]:
    """Return what average pools before an operator divide by (as a share), and if it is graded."""
    found: set[tuple[float, bool]] = set()
    waiting = [(operator, 1.0)]
    while waiting:
        name, share = waiting.pop()
        for source in sources(graph, name):
            node = graph.nodes[source]
            if isinstance(node, LINEAR):
                raise GraphError(
                    f"{operator}: follows {source} without neurons between; the weights of the two "
                    "are one operator on the chip, merge them"
                )
            if isinstance(node, nir.AvgPool2d):
                size = math.prod(window_of(source, node).kernel)
                if not _is_power(size):
                    raise GraphError(
                        f"{source}: averages {size} places; shares of 2, 4, 8, ... places are "
                        "exact in integers"
                    )
                waiting.append((source, share / size))
            elif isinstance(node, nir.SumPool2d | nir.Flatten):
                waiting.append((source, share))
            else:
                found.add((share, source == input_name(graph)))
    if len(found) != 1:
        raise GraphError(f"{operator}: adds spikes and pixels, or pools of several sizes")
    return found.pop()


def _best_power(graph: nir.NIRGraph, operators: list[str], scale: float, high: int) -> float:
    """Return the power of two beside `scale` whose rounding of the weights costs less."""
    weights = [
        np.asarray(graph.nodes[name].weight, np.float64) * _path_into(graph, name)[0]
        for name in operators
    ]
    lower = 2.0 ** math.floor(math.log2(scale))

    def error(power: float) -> float:
        rounded = (np.clip(np.rint(weight * power), -high, high) / power for weight in weights)
        return sum(
            float(np.square(one - other).sum()) for one, other in zip(rounded, weights, strict=True)
        )

    return min((lower, 2 * lower), key=error)


def _require_known(graph: nir.NIRGraph) -> None:
    for name, node in graph.nodes.items():
        if not isinstance(node, _KNOWN):
            raise GraphError(
                f"{name}: a {type(node).__name__} node is not fine-tuned; "
                f"known: {', '.join(kind.__name__ for kind in _KNOWN)}"
            )
        if isinstance(node, _POOLS) and any(
            isinstance(graph.nodes[item], LINEAR) for item in sources(graph, name)
        ):
            raise GraphError(
                f"{name}: pools the values of an operator, which makes other weights of them on "
                "the chip; pool spikes instead"
            )


def _is_power(value: float) -> bool:
    return value > 0 and math.frexp(value)[0] == 0.5


def _first(values: object) -> float:
    return float(np.asarray(values, np.float64).flat[0])
