"""Random NIR graphs for property tests: small chains whose populations do fire.

`random_graph(seed)` is deterministic; `graphs()` is the hypothesis strategy over it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from stars_deploy.graph.geometry import Window
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.recording import Recording
from stars_deploy.simulation.reference import FloatEngine

Array = NDArray[Any]
Shape = tuple[int, ...]
ALIVE = (0.02, 0.60)


@dataclass
class _Chain:
    """A graph under construction: the last node and the shape it puts out."""

    nodes: dict[str, nir.NIRNode]
    edges: list[tuple[str, str]]
    last: str
    shape: Shape
    metadata: GraphMetadata

    def add(self, name: str, node: nir.NIRNode, shape: Shape) -> None:
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last, self.shape = name, shape

    def graph(self) -> nir.NIRGraph:
        """The chain so far as a whole graph; maps are flattened into the output."""
        nodes, edges, last, size = dict(self.nodes), list(self.edges), self.last, self.shape
        if len(size) > 1:
            nodes["end_flat"] = nir.Flatten({"input": np.array(size)}, 0, -1)
            edges.append((last, "end_flat"))
            last, size = "end_flat", (math.prod(size),)
        nodes["output"] = nir.Output({"output": np.array(size)})
        graph = nir.NIRGraph(nodes, [*edges, (last, "output")], type_check=False)
        return with_metadata(graph, self.metadata)


def full(value: float, shape: Shape) -> Array:
    """Full-shape float64 parameter."""
    return np.full(shape, value, np.float64)


def lif(
    shape: Shape, tau: float = 2.0, v_threshold: float = 1.0, v_reset: float = 0.0, r: float = 1.0
) -> nir.LIF:
    """LIF node with tau in steps."""
    values = (tau * DT, r, v_reset, v_threshold, v_reset)
    return nir.LIF(*(full(value, shape) for value in values))


def random_images(count: int, shape: Shape, seed: int = 0) -> NDArray[np.uint8]:
    """Random images with some structure along the batch, uint8 [N, C, H, W]."""
    rng = np.random.default_rng(seed)
    level = rng.integers(64, 256, (count, *(1,) * len(shape)))
    return (rng.random((count, *shape)) * level).astype(np.uint8)


def random_graph(
    seed: int,
    blocks: int | None = None,
    pools: bool = True,
    groups: bool = True,
    dyadic: bool = False,
    folded: bool = False,
    taus: tuple[float, ...] = (1.0, 4 / 3, 1.5, 2.0, 2.7, 4.0),
    v_resets: tuple[float, ...] = (0.0,),
    steps: tuple[int, int] = (1, 8),
    global_pool: bool | None = None,
) -> nir.NIRGraph:
    """Return a random chain input -> (conv -> LIF [-> pool])* -> [pool] -> flatten -> fc -> output.

    Square kernels, stride, padding and groups vary; weights are scaled so that each population
    fires on random images at a rate inside ALIVE where that is possible.

    Args:
        dyadic: weights and biases are multiples of 1/64, tau = 2: ties H == V_th do occur.
        folded: neurons with r = tau_steps, as graphs with folded gain have.
        v_resets: choices of v_reset = v_leak (= V_0).
        steps: smallest and largest T.
    """
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)), *(int(rng.integers(5, 13)),) * 2)
    mean, std = rng.uniform(0.3, 0.6, shape[0]), rng.uniform(0.2, 0.4, shape[0])
    total = int(rng.integers(steps[0], steps[1] + 1))
    metadata = GraphMetadata(
        T=total, mean=tuple(map(float, mean)), std=tuple(map(float, std)), tool_version="test"
    )
    chain = _Chain({"input": nir.Input({"input": np.array(shape)})}, [], "input", shape, metadata)
    for index in range(1, (blocks or int(rng.integers(1, 4))) + 1):
        _add_convolution(chain, rng, f"conv{index}", groups and index > 1)
        tau = 2.0 if dyadic else float(rng.choice(taus))
        threshold = 1.0 if dyadic else float(rng.uniform(0.5, 1.5))
        neuron = lif(
            chain.shape, tau, threshold, float(rng.choice(v_resets)), tau if folded else 1.0
        )
        chain.add(f"lif{index}", neuron, chain.shape)
        _scale(chain, f"conv{index}", seed, dyadic)
        if pools and min(chain.shape[1:]) >= 4 and rng.random() < 0.4:
            _add_pool(chain, f"pool{index}", 2)
    if rng.random() < 0.5 if global_pool is None else global_pool:
        _add_pool(chain, "pool", chain.shape[1])
    chain.add("flatten", nir.Flatten({"input": np.array(chain.shape)}, 0, -1), _flat(chain.shape))
    outputs = int(rng.integers(3, 11))
    weight = rng.normal(0, 1 / math.sqrt(chain.shape[0]), (outputs, chain.shape[0]))
    bias = rng.normal(0, 0.1, outputs)
    if dyadic:
        weight, bias = _to_64ths(weight), _to_64ths(bias)
    chain.add("fc", nir.Affine(weight.astype(np.float32), bias.astype(np.float32)), (outputs,))
    return chain.graph()


def graphs(**choices: Any) -> st.SearchStrategy[nir.NIRGraph]:
    """Hypothesis strategy: random_graph(seed, **choices)."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random_graph(seed, **choices))


def _flat(shape: Shape) -> Shape:
    return (math.prod(shape),)


def _add_convolution(chain: _Chain, rng: np.random.Generator, name: str, grouped: bool) -> None:
    channels, height, width = chain.shape
    kernel = int(rng.choice([k for k in (1, 2, 3, 5) if k <= min(height, width)]))
    padding = int(rng.integers(0, kernel // 2 + 1))
    stride = int(rng.choice([1, 1, 2])) if min(height, width) > kernel else 1
    common = [g for g in (1, 2, 4) if channels % g == 0]
    groups = int(rng.choice(common)) if grouped else 1
    outputs = groups * int(rng.integers(1, 7 if groups == 1 else 3)) * (2 if groups == 1 else 1)
    fan_in = channels // groups * kernel**2
    weight = rng.normal(0, 1 / math.sqrt(fan_in), (outputs, channels // groups, kernel, kernel))
    node = nir.Conv2d(
        input_shape=(height, width),
        weight=expand_kernel(weight.astype(np.float32), groups),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(1, 1),
        groups=1,
        bias=rng.normal(0.1, 0.2, outputs).astype(np.float32),
    )
    window = Window((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1))
    chain.add(name, node, (outputs, *window.output((height, width))))


def _add_pool(chain: _Chain, name: str, size: int) -> None:
    channels, height, width = chain.shape
    node = nir.AvgPool2d(np.array([size, size]), np.array([size, size]), np.array([0, 0]))
    chain.add(name, node, (channels, height // size, width // size))


def _to_64ths(values: Array) -> Array:
    return np.round(values * 64) / 64


def _scale(chain: _Chain, operator: str, seed: int, dyadic: bool) -> None:
    """Scale the last operator by powers of 1.5 until its population fires at about 20 %."""
    node = chain.nodes[operator]
    weight, bias = node.weight.astype(np.float64), node.bias.astype(np.float64)
    images = random_images(6, image_shape(chain), seed)
    best = (math.inf, node.weight, node.bias)
    low, high = -8, 12
    while low <= high:
        power = (low + high) // 2
        gain = 1.5**power
        scaled = (weight * gain, bias * gain)
        if dyadic:
            scaled = (_to_64ths(scaled[0]), _to_64ths(scaled[1]))
        node.weight, node.bias = (x.astype(np.float32) for x in scaled)
        rate = float(FloatEngine(chain.graph()).run(images).spikes[chain.last].mean())
        if abs(rate - 0.2) < best[0]:
            best = (abs(rate - 0.2), node.weight, node.bias)
        low, high = (power + 1, high) if rate < 0.2 else (low, power - 1)
    _, node.weight, node.bias = best


def clear_mismatches(reference: Recording, spikes: Mapping[str, Array], tolerance: float) -> int:
    """Count spikes that differ from `reference` although no margin so far was below `tolerance`.

    A neuron that was once within `tolerance` of its threshold may have gone either way, and
    differs from then on; all others must agree. `reference` needs margins.
    """
    total = 0
    for name, expected in reference.spikes.items():
        near = np.abs(reference.margins[name]) < tolerance
        unclear = np.logical_or.accumulate(near, axis=0)
        total += int(((spikes[name] != expected) & ~unclear).sum())
    return total


def image_shape(graph: nir.NIRGraph | _Chain) -> Shape:
    """Shape [C, H, W] of the images a graph takes."""
    return tuple(int(x) for x in graph.nodes["input"].input_type["input"])
