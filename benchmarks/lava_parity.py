"""Our integers against Lava, run for real, on networks whose populations fire.

The demo's student, a residual network of two blocks with a projection (balanced by relays and by
synaptic delays), a depthwise, an average-pooled, an IF and a PLIF network, S-ResNet-20 (random
weights, or a RUN given with --resnet20; one image), with the firing rate and the number of spikes
that differ in every population. Weights are random and scaled, layer by layer, until the
population fires in about 15 % of its neuron-steps on the images used.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np
from common import environment, save

from stars_deploy.config.profile import load_profile
from stars_deploy.graph.geometry import input_shape, output_shapes
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.graph.order import sources, spiking_nodes
from stars_deploy.simulation.integer.engine import IntegerEngine, open_engine
from stars_deploy.simulation.lava.engine import LavaEngine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.loihi import Balance, lower
from stars_deploy.workflow.sources import open_source

SEED, STEPS, IMAGES = 0, 4, 4
RATE = 0.15
Shape = tuple[int, ...]


class Builder:
    """A graph that grows node by node; `add` connects a node to what feeds it."""

    def __init__(self, shape: Shape) -> None:
        self.rng = np.random.default_rng(SEED)
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: nir.NIRNode, *feeding: str) -> str:
        self.nodes[name] = node
        self.edges += [(source, name) for source in feeding]
        return name

    def conv(
        self, name: str, source: str, inputs: int, outputs: int, size: int, *,
        kernel: int = 3, stride: int = 1, groups: int = 1,
    ) -> str:  # fmt: skip
        weight = self.rng.normal(0, 1, (outputs, inputs // groups, kernel, kernel))
        dense = expand_kernel(weight / math.sqrt(inputs // groups * kernel**2), groups)
        bias = self.rng.normal(0, 0.1, outputs)
        node = nir.Conv2d((size, size), dense, stride, kernel // 2, 1, 1, bias)
        return self.add(name, node, source)

    def lif(self, name: str, shape: Shape, *feeding: str, tau: float = 2.0) -> str:
        values = (tau * DT, 1.0, 0.0, 1.0, 0.0)
        node = nir.LIF(*(np.full(shape, value, np.float64) for value in values))
        return self.add(name, node, *feeding)

    def graph(self, last: str, shape: Shape) -> nir.NIRGraph:
        """Close with flatten, dense layer and output, then scale the weights until all fire."""
        inputs = math.prod(shape)
        self.add("flatten", nir.Flatten({"input": np.array(shape)}, 0, -1), last)
        weight = self.rng.normal(0, 1, (10, inputs)) / math.sqrt(inputs)
        self.add("fc", nir.Affine(weight, np.zeros(10)), "flatten")
        self.add("output", nir.Output({"output": np.array((10,))}), "fc")
        channels = self.nodes["input"].input_type["input"][0]
        metadata = GraphMetadata(T=STEPS, mean=(0.5,) * channels, std=(0.25,) * channels)
        graph = nir.NIRGraph(self.nodes, self.edges, type_check=False)
        return lively(with_metadata(graph, metadata))


def lively(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Set thresholds, first population first, so that each fires in about RATE of the steps."""
    images = random_images(graph)
    for name in spiking_nodes(graph):
        node = graph.nodes[name]
        low, high = 1e-3, 100.0
        for _ in range(24):
            middle = math.sqrt(low * high)
            node.v_threshold[:] = middle
            rate = FloatEngine(graph).run(images).spikes[name].mean()
            low, high = (middle, high) if rate > RATE else (low, middle)
    return graph


def random_images(graph: nir.NIRGraph, count: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 256, (count, *input_shape(graph)), np.uint8)


def residual() -> nir.NIRGraph:
    b = Builder((3, 16, 16))
    b.conv("conv0", "input", 3, 8, 16)
    b.lif("lif0", (8, 16, 16), "conv0")
    b.conv("conv1", "lif0", 8, 8, 16)
    b.lif("lif1", (8, 16, 16), "conv1")
    b.conv("conv2", "lif1", 8, 8, 16)
    b.lif("lif2", (8, 16, 16), "conv2", "lif0")  # identity skip
    b.conv("conv3", "lif2", 8, 16, 16, stride=2)
    b.lif("lif3", (16, 8, 8), "conv3")
    b.conv("conv4", "lif3", 16, 16, 8)
    b.conv("project", "lif2", 8, 16, 16, kernel=1, stride=2)
    b.lif("lif4", (16, 8, 8), "conv4", "project")
    return b.graph("lif4", (16, 8, 8))


def chain(tau: float = 2.0, integrate: bool = False) -> nir.NIRGraph:
    b = Builder((3, 16, 16))
    b.conv("conv1", "input", 3, 8, 16)
    b.lif("lif1", (8, 16, 16), "conv1", tau=tau)
    b.conv("conv2", "lif1", 8, 16, 16, stride=2)
    b.lif("lif2", (16, 8, 8), "conv2", tau=tau)
    if integrate:
        for name, shape in (("lif1", (8, 16, 16)), ("lif2", (16, 8, 8))):
            b.nodes[name] = nir.IF(np.ones(shape), np.ones(shape))
    return b.graph("lif2", (16, 8, 8))


def depthwise() -> nir.NIRGraph:
    b = Builder((3, 16, 16))
    b.conv("conv1", "input", 3, 16, 16)
    b.lif("lif1", (16, 16, 16), "conv1")
    b.conv("deep", "lif1", 16, 16, 16, groups=16)
    b.lif("lif2", (16, 16, 16), "deep")
    b.conv("point", "lif2", 16, 24, 16, kernel=1)
    b.lif("lif3", (24, 16, 16), "point")
    return b.graph("lif3", (24, 16, 16))


def pooled() -> nir.NIRGraph:
    b = Builder((3, 16, 16))
    window = [np.array((2, 2)), np.array((2, 2)), np.array((0, 0))]
    b.conv("conv1", "input", 3, 8, 16)
    b.lif("lif1", (8, 16, 16), "conv1")
    b.add("pool1", nir.AvgPool2d(*window), "lif1")
    b.conv("conv2", "pool1", 8, 16, 8)
    b.lif("lif2", (16, 8, 8), "conv2")
    b.add("pool2", nir.AvgPool2d(*window), "lif2")
    return b.graph("pool2", (16, 4, 4))


def resnet20(run: Path | None) -> nir.NIRGraph:
    if run is not None:
        return open_source(run).graph
    from student_step import recipe_of

    from stars_deploy.graph.canonical import canonical
    from stars_deploy.networks.families import build_student, seeded
    from stars_deploy.networks.to_nir import student_to_nir

    recipe = recipe_of("resnet20", STEPS)
    student = seeded(build_student, recipe, SEED)
    student.eval()
    return lively(canonical(student_to_nir(student, recipe)))


def judged(name: str, graph: nir.NIRGraph, balance: Balance, images: np.ndarray) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        network = lower(graph, load_profile("loihi2"), balance)
        network.write(Path(folder) / "loihi")
        relays = [item["name"] for item in network.document["populations"] if not item["node"]]
        engine = open_engine(Path(folder) / "loihi")
        result = compared(engine, LavaEngine(Path(folder), timeout=3600), images)
    fed = max(len(sources(graph, node)) for node in graph.nodes)
    result = {"balance": balance if fed > 1 else None, "relays": len(relays), **result}
    print(name, balance, {k: v for k, v in result.items() if k != "populations"}, flush=True)
    return {"network": name, **result}


def compared(engine: IntegerEngine, lava: LavaEngine, images: np.ndarray) -> dict[str, Any]:
    ours = engine.run(images)
    start = time.perf_counter()
    theirs = lava.run(images)
    populations = {
        node: {
            "neurons": math.prod(train.shape[2:]),
            "rate": float(train.mean()),
            "mismatches": int(np.count_nonzero(train != theirs.spikes[node])),
        }
        for node, train in ours.spikes.items()
    }
    rates = [item["rate"] for item in populations.values()]
    return {
        "images": len(images),
        "mismatches": sum(item["mismatches"] for item in populations.values()),
        "neuron_steps": sum(train.size for train in ours.spikes.values()),
        "logits_equal": bool(np.array_equal(ours.logits, theirs.logits)),
        "least_rate": min(rates),
        "greatest_rate": max(rates),
        "lava_seconds": time.perf_counter() - start,
        "populations": populations,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resnet20", type=Path, help="RUN of a trained S-ResNet-20")
    parser.add_argument("--demo", type=Path, default=Path("demo/bundle"), help="the demo's bundle")
    options = parser.parse_args(arguments)
    both: tuple[Balance, ...] = ("relay", "delay")
    cases: list[tuple[str, nir.NIRGraph, Balance, int]] = [
        ("demo", open_source(options.demo).graph, "relay", IMAGES),
        *(("two residual blocks, projection", residual(), way, IMAGES) for way in both),
        ("depthwise", depthwise(), "relay", IMAGES),
        ("average-pooled", pooled(), "relay", IMAGES),
        ("IF", chain(integrate=True), "relay", IMAGES),
        ("PLIF, 1/tau = sigmoid(0.3)", chain(tau=1 + math.exp(-0.3)), "relay", IMAGES),
        *(("S-ResNet-20", resnet20(options.resnet20), way, 1) for way in both),
    ]
    results = []
    for name, graph, balance, count in cases:
        assert output_shapes(graph)
        results.append(judged(name, graph, balance, images_for(name, graph, count)))
    trained = options.resnet20 is not None
    save(
        "lava_parity",
        {
            "environment": environment(1),
            "seed": SEED,
            "T": STEPS,
            "resnet20": "trained" if trained else "random weights",
            "networks": results,
        },
    )


def images_for(name: str, graph: nir.NIRGraph, count: int) -> np.ndarray:
    if name != "demo":
        return random_images(graph, count)
    from stars_deploy.config.recipe import load_recipe
    from stars_deploy.data import load_data

    images, _ = load_data("evaluation", load_recipe("fashion-mnist").data)
    return images[:count]


if __name__ == "__main__":
    main()
