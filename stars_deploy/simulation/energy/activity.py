"""What an engine's neurons did: spikes and active updates, per step, summed over its images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.geometry import output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import (
    SPIKING,
    input_name,
    sources,
    spiking_nodes,
    topological_order,
)
from stars_deploy.simulation.energy.counts import links, populations
from stars_deploy.simulation.operators import Operator, operator_of
from stars_deploy.simulation.recording import Engine, EngineInfo, Recording, Spikes

Array = NDArray[Any]
Counts = NDArray[np.int64]

_CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class Activity:
    """Events of `images` images.

    Attributes:
        spikes: per spiking node int64 [T, ...], each neuron's spikes at each step over all images.
        active: per population int64 [T], its active neuron updates at each step over all images.
    """

    images: int
    spikes: Mapping[str, Counts]
    active: Mapping[str, Counts]


class CountingEngine:
    """An engine that also adds up what its neurons do in the images it has run."""

    def __init__(self, engine: Engine, graph: nir.NIRGraph) -> None:
        self.engine = engine
        self.info: EngineInfo = engine.info
        self.nodes: list[str] = engine.nodes
        self.images = 0
        self._rule = ActiveRule(graph)
        self._spikes: dict[str, Counts] = {}
        self._active: dict[str, Counts] = {}

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Run the engine and count."""
        recording = self.engine.run(images, feed, margins)
        self.images += len(images)
        for node, train in recording.spikes.items():
            _add(self._spikes, node, train.sum(axis=1, dtype=np.int64))
        for name, steps in self._rule.count(feed or {}, recording.spikes, len(images)).items():
            _add(self._active, name, steps)
        return recording

    @property
    def spikes(self) -> dict[str, Counts]:
        """Spikes of each neuron, summed over steps and images."""
        return {node: counts.sum(axis=0) for node, counts in self._spikes.items()}

    @property
    def activity(self) -> Activity:
        """Everything counted so far."""
        return Activity(self.images, dict(self._spikes), dict(self._active))


def _add(total: dict[str, Counts], name: str, part: Counts) -> None:
    total[name] = total[name] + part if name in total else part


class ActiveRule:
    """Which neuron updates are active: those that have something to compute.

    At step t a neuron is active if a synaptic event reaches it, if it has a bias other than zero,
    or if it still holds charge: it was active at t - 1 and did not spike then (a spike resets it
    to zero). A neuron that rests at another value than zero is always active. All other updates
    are idle: the neuron is looked up and left as it is. Graded messages, which the input and
    neurons that do not spike send, are events at every step.
    """

    def __init__(self, graph: nir.NIRGraph) -> None:
        self._graph = graph
        self._steps = metadata_of(graph).T
        self._shapes = output_shapes(graph)
        self._populations = populations(graph)
        self._order = topological_order(graph)
        values = sum(int(np.prod(shape)) for shape in self._shapes.values())
        self._chunk = max(1, _CHUNK_BYTES // (8 * self._steps * values))  # images at once
        self._operators = _event_operators(graph)
        self._graded = {
            name: np.ones((1, 1, *self._shapes[name]))
            for name in self._populations
            if not isinstance(graph.nodes[name], SPIKING)
        }
        quiet = {name: np.zeros((1, 1, *self._shapes[name])) for name in spiking_nodes(graph)}
        resting = {name: _rests_charged(graph.nodes[name]) for name in self._populations}
        # Behind integrators, which are the read-out themselves, the output node is no neuron.
        wanted = {*self._operators, *self._populations}
        reached = self._reached({**self._graded, **quiet}, wanted)
        self._always = {name: array[0, 0] | resting[name] for name, array in reached.items()}
        open_ = [name for name in self._populations if not self._always[name].all()]
        self._wanted = _before(graph, open_, {input_name(graph), *self._populations})

    def count(self, feed: Spikes, spikes: Spikes, images: int) -> dict[str, Counts]:
        """Return per population int64 [T]: active updates at each step, over all images.

        Args:
            feed: spikes [T, N, ...] that the next layers received instead of `spikes`.
        """
        counts = {
            name: np.full(self._steps, always.size * images if always.all() else 0, np.int64)
            for name, always in self._always.items()
        }
        for start in range(0, images, self._chunk) if self._wanted else ():
            part = slice(start, min(start + self._chunk, images))
            own = {name: train[:, part] for name, train in spikes.items()}
            fed = {name: train[:, part] for name, train in feed.items()}
            reached = self._reached({**self._graded, **own, **fed}, self._wanted)
            for name, arrived in reached.items():
                counts[name] += self._held(name, arrived, own.get(name), part.stop - part.start)
        return counts

    def _held(self, name: str, reached: Array, train: Array | None, images: int) -> Counts:
        shape = (images, *self._shapes[name])
        held = np.zeros(shape, bool)
        counts = np.zeros(self._steps, np.int64)
        memory = not isinstance(self._graph.nodes[name], nir.Threshold)
        for step in range(self._steps):
            now = reached[step if len(reached) > 1 else 0]
            active = np.broadcast_to(now | held | self._always[name], shape)
            counts[step] = np.count_nonzero(active)
            if memory:
                held = active & (train[step] == 0) if train is not None else active
        return counts

    def _reached(self, sent: Mapping[str, Array], wanted: set[str]) -> dict[str, NDArray[np.bool_]]:
        """Return per wanted population bool [S, N, ...]: where an event or a bias arrives."""
        start = input_name(self._graph)
        values: dict[str, Array] = {start: np.ones((1, 1, *self._shapes[start]))}
        reached = {}
        for name in self._order:
            if name == start or name not in wanted:
                continue
            # A population's value is what it sent.
            given = [
                values[source] if source in values else np.asarray(sent[source], np.float64)
                for source in sources(self._graph, name)
            ]
            x: Array = sum(given[1:], given[0])
            if name in self._populations:
                reached[name] = x > 0
            else:
                values[name] = self._operators[name](x)
        return reached


def _before(graph: nir.NIRGraph, names: list[str], held: set[str]) -> set[str]:
    """Return `names` and the operators between them and what they listen to."""
    found, waiting = set(names), list(names)
    while waiting:
        for source in sources(graph, waiting.pop()):
            if source not in held and source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _rests_charged(node: nir.NIRNode) -> NDArray[np.bool_]:
    """Return where a neuron's resting or reset value is not zero."""
    fields = [getattr(node, field, 0.0) for field in ("v_leak", "v_reset")]
    charged: NDArray[np.bool_] = np.logical_or(*(np.asarray(field) != 0 for field in fields))
    return charged


def _event_operators(graph: nir.NIRGraph) -> dict[str, Operator]:
    """Return the graph's operators with weight 1 on every synapse and 1 for a non-zero bias."""
    found = {}
    for name, node in graph.nodes.items():
        if isinstance(node, (nir.Input, nir.Output, nir.LI, *SPIKING)):
            continue
        copied = copy.copy(node)
        if isinstance(node, nir.Conv1d | nir.Conv2d):
            axes = (1,) * (node.weight.ndim - 2)
            linked = links(node).astype(np.float64)
            copied.weight = linked.reshape(*linked.shape, *axes) * np.ones(node.weight.shape[2:])
            copied.groups = 1
        elif isinstance(node, nir.Affine | nir.Linear):
            copied.weight = np.ones(node.weight.shape)
        elif isinstance(node, nir.Scale):
            copied.scale = np.ones(np.shape(node.scale))
        if hasattr(node, "bias"):
            copied.bias = (np.asarray(node.bias) != 0).astype(np.float64)
        found[name] = operator_of(name, copied)
    return found
