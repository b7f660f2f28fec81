"""What energy_sanafe.py and synops_neurobench.py share: the network, and environments apart."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.lava.environment import cache_dir
from stars_deploy.simulation.reference import FloatEngine

IMAGE = (1, 8, 8)
POPULATIONS = {"lif1": (8, 4, 4), "lif2": (16, 2, 2), "fc": (10,)}


def outside_python(name: str, *requirements: str) -> Path:
    """Return the interpreter of an environment apart from ours, built on first use."""
    folder = cache_dir() / name
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        uv = [sys.executable, "-m", "uv"]
        make = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
        subprocess.run(make, check=True)
        install = [*uv, "pip", "install", "--quiet", "--python", str(python), *requirements]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    return python


def small_network(seed: int, steps: int, rate: float, pruned: float = 0.0) -> nir.NIRGraph:
    """1x8x8 -> 3x3 conv to 8, stride 2 -> LIF -> 3x3 conv to 16, stride 2 -> LIF -> 10 outputs.

    tau = 2, padding 1, random weights, scaled so that both populations fire at about `rate`. Only
    the first layer has a bias, so that neurons of the others can be idle.

    Args:
        pruned: fraction of the weights after the first layer that is set to zero.
    """
    rng = np.random.default_rng(seed)
    nodes = {
        "input": nir.Input(np.array(IMAGE)),
        "conv1": _convolution(rng, 1, 8, 8, rng.normal(0.1, 0.2, 8)),
        "lif1": _lif(POPULATIONS["lif1"]),
        "conv2": _convolution(rng, 8, 16, 4, np.zeros(16)),
        "lif2": _lif(POPULATIONS["lif2"]),
        "flatten": nir.Flatten(np.array(POPULATIONS["lif2"]), 0, -1),
        "fc": nir.Affine(rng.normal(0, 0.2, (10, 64)), np.zeros(10)),
        "output": nir.Output(np.array([10])),
    }
    for name in ("conv2", "fc"):
        nodes[name].weight[rng.random(nodes[name].weight.shape) < pruned] = 0.0
    edges = list(itertools.pairwise(nodes))
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    graph = with_metadata(graph, GraphMetadata(T=steps, mean=(0.5,), std=(0.25,)))
    images = random_images(seed + 1, 16)
    for conv, lif in (("conv1", "lif1"), ("conv2", "lif2")):
        node, weight, bias = nodes[conv], nodes[conv].weight, nodes[conv].bias
        gains = 1.2 ** np.arange(-10, 30)
        rates = []
        for gain in gains:
            node.weight, node.bias = weight * gain, bias * gain
            rates.append(abs(FloatEngine(graph).run(images).spikes[lif].mean() - rate))
        best = gains[int(np.argmin(rates))]
        node.weight, node.bias = weight * best, bias * best
    return graph


def _convolution(
    rng: np.random.Generator, inputs: int, outputs: int, size: int, bias: NDArray[np.float64]
) -> nir.Conv2d:
    weight = rng.normal(0, 1 / np.sqrt(9 * inputs), (outputs, inputs, 3, 3))
    return nir.Conv2d((size, size), weight, (2, 2), (1, 1), (1, 1), 1, bias)


def _lif(shape: tuple[int, ...]) -> nir.LIF:
    zeros, ones = np.zeros(shape), np.ones(shape)
    return nir.LIF(tau=2 * DT * ones, r=ones, v_leak=zeros, v_threshold=ones, v_reset=zeros.copy())


def random_images(seed: int, count: int) -> NDArray[np.uint8]:
    """Return uint8 [count, 1, 8, 8]; no pixel becomes zero when it is normalised."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *IMAGE), dtype=np.uint8)
