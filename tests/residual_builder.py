"""A NIR graph that grows node by node with the values of its calibration images beside it.

Each node is computed once, when it is added, by the package's float operators. The newest
population is tuned on the spot: its own convolution is scaled, and where that is not enough its
threshold moves, until it fires at the wanted rate. So no earlier layer is ever run twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray
from random_networks import full, random_images

from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.neurons import run_neurons
from stars_deploy.simulation.operators import operator_of

Array = NDArray[Any]
Shape = tuple[int, ...]
NEAR = 0.06  # distance from the wanted rate at which the gain alone is good enough
# Trained networks have thresholds that eight-bit weights can resolve: a few times their rounding.
LARGEST, LEAST = 3.0, 0.15  # weight, and threshold of a neuron with gain 1


class Dag:
    """Nodes, edges and the value [1 or T, N, ...] of each node on the calibration images."""

    def __init__(self, seed: int, shape: Shape, metadata: GraphMetadata, count: int = 8) -> None:
        self.metadata = metadata
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.feeding: dict[str, list[str]] = {"input": []}
        mean, std = (np.array(x).reshape(-1, 1, 1) for x in (metadata.mean, metadata.std))
        images = random_images(count, shape, seed)
        self.values: dict[str, Array] = {"input": ((images / 255 - mean) / std)[None]}

    def shape(self, name: str) -> Shape:
        """What `name` puts out, without batch and time."""
        return self.values[name].shape[2:]

    def name(self, kind: str) -> str:
        """A new name; numbers follow the order of construction."""
        return f"{kind}{len(self.nodes)}"

    def current(self, feeding: Sequence[str]) -> Array:
        """The sum of several nodes."""
        return sum(self.values[name] for name in feeding[1:]) + self.values[feeding[0]]

    def add(self, kind: str, node: nir.NIRNode, feeding: Sequence[str]) -> str:
        """Add a stateless node that takes the sum of `feeding`."""
        name = self.name(kind)
        value = operator_of(name, node)(np.asarray(self.current(feeding), np.float64))
        return self._put(name, node, feeding, value)

    def leaky(self, node: nir.LI, feeding: Sequence[str]) -> str:
        """Add an LI read-out."""
        value = run_neurons(node, self.current(feeding), self.metadata.T, DT, False).output
        return self._put(self.name("li"), node, feeding, value)

    def neurons(
        self, kind: str, node: nir.NIRNode, feeding: Sequence[str], tuned: str | None, rate: float
    ) -> str:
        """Add spiking neurons; scale `tuned`, a weighted node before them, to reach `rate`."""
        feeding = list(dict.fromkeys(feeding))
        if tuned is not None:
            self._tune_gain(node, feeding, tuned, rate)
        if abs(self._rate(node, self.current(feeding)) - rate) > NEAR:
            self._tune_threshold(node, self.current(feeding), rate)
        spikes = self._spikes(node, self.current(feeding))
        return self._put(self.name(kind), node, feeding, spikes.astype(np.float64))

    def graph(self, feeding: Sequence[str]) -> nir.NIRGraph:
        """The whole graph, whose output is the sum of `feeding`."""
        size = self.shape(feeding[0])
        nodes = self.nodes | {"output": nir.Output({"output": np.array(size)})}
        edges = [*self.edges, *((name, "output") for name in feeding)]
        return with_metadata(nir.NIRGraph(nodes, edges, type_check=False), self.metadata)

    def _put(self, name: str, node: nir.NIRNode, feeding: Sequence[str], value: Array) -> str:
        self.nodes[name], self.values[name] = node, value
        self.feeding[name] = list(dict.fromkeys(feeding))
        self.edges += [(source, name) for source in self.feeding[name]]
        return name

    def _spikes(self, node: nir.NIRNode, current: Array) -> Array:
        return run_neurons(node, current, self.metadata.T, DT, False).output

    def _rate(self, node: nir.NIRNode, current: Array) -> float:
        return float(self._spikes(node, current).mean())

    def _after(self, tuned: str) -> list[str]:
        """`tuned` and the nodes behind it, all without bias but `tuned`: they scale with it."""
        found = [tuned]
        for name, sources in self.feeding.items():
            if set(sources) & set(found):
                found.append(name)
        return found

    def _tune_gain(self, node: nir.NIRNode, feeding: list[str], tuned: str, rate: float) -> None:
        scaled = self._after(tuned)
        own = self.current([name for name in feeding if name in scaled])
        others = [name for name in feeding if name not in scaled]
        rest = self.current(others) if others else np.zeros(1)
        weighted = self.nodes[tuned]
        largest = float(np.abs(weighted.weight).max())
        best, low, high = (math.inf, 1.0), -8, math.floor(math.log(LARGEST / largest, 1.5))
        while low <= high:
            power = (low + high) // 2
            found = self._rate(node, own * 1.5**power + rest)
            best = min(best, (abs(found - rate), 1.5**power))
            low, high = (power + 1, high) if found < rate else (low, power - 1)
        weighted.weight = (weighted.weight * best[1]).astype(np.float32)
        weighted.bias = (weighted.bias * best[1]).astype(np.float32)
        for name in scaled:
            self.values[name] = self.values[name] * best[1]

    def _tune_threshold(self, node: nir.NIRNode, current: Array, rate: float) -> None:
        field = "threshold" if isinstance(node, nir.Threshold) else "v_threshold"
        shape, low, high = np.shape(getattr(node, field)), LEAST * _gain(node), 1e3
        best = (math.inf, 1.0)
        for _ in range(14):
            value = math.sqrt(low * high)
            setattr(node, field, full(value, shape))
            found = self._rate(node, current)
            best = min(best, (abs(found - rate), value))
            low, high = (low, value) if found < rate else (value, high)
        setattr(node, field, full(best[1], shape))


def _gain(node: nir.NIRNode) -> float:
    """By how much a neuron's potential rises with a current of 1."""
    if isinstance(node, nir.Threshold):
        return 1.0
    tau = float(node.tau.flat[0]) / DT if isinstance(node, nir.LIF) else 1.0
    return float(node.r.flat[0]) / tau
