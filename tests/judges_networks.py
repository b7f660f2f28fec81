"""Networks that outside judges run: students of the families, random chains, single neurons.

Weights of NETWORKS are random reals, so no potential lies exactly at its threshold. EDGES are
neurons that a pencil can follow, where judges differ from NIR's equations, or refuse.
"""

from __future__ import annotations

import itertools

import nir
import numpy as np
import random_networks
from small_recipes import lively_student, recipe

from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.networks.to_nir import student_to_nir

STEPS = 6
IMAGE = {"shape": [2, 16, 16], "mean": [0.4, 0.5], "std": [0.3, 0.25]}


def chain(seed: int) -> nir.NIRGraph:
    """conv -> LIF three times, global average pool, read-out: a student of family cnn."""
    args = {"channels": [6, 8, 12], "strides": [1, 2, 2]}
    return _student(seed, {"family": "cnn", "args": args})


def residual(seed: int, shortcut: str = "projection") -> nir.NIRGraph:
    """A stem and three blocks whose sums enter the neuron: an S-ResNet-20 with a block a stage."""
    args = {"width": 0.375, "blocks": [1, 1, 1], "shortcut": shortcut}
    return _student(seed, {"family": "resnet20", "args": args})


def padded(seed: int) -> nir.NIRGraph:
    """The same with shortcuts that subsample and pad with zero channels (option A)."""
    return residual(seed, "pad")


def average_pooled(seed: int) -> nir.NIRGraph:
    """A VGG-16 of one eighth of the width whose four pools between layers take averages."""
    return _student(seed, {"family": "vgg16", "args": {"width": 0.125, "pooling": "average"}})


def by_hand(seed: int, v_reset: float = 0.0) -> nir.NIRGraph:
    """A random chain with 2x2 pools, several decays, thresholds, kernels and strides."""
    return random_networks.random_graph(
        seed, 3, groups=False, taus=(4 / 3, 1.5, 2.0, 2.7, 4.0), v_resets=(v_reset,), steps=(4, 8)
    )


def resnet20() -> nir.NIRGraph:
    """The whole S-ResNet-20 for CIFAR-sized images, T = 4."""
    colours = {"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    return _student(0, {"family": "resnet20", "args": {}}, colours, 4)


def _student(
    seed: int,
    teacher: dict[str, object],
    data: dict[str, object] = IMAGE,
    steps: int = STEPS,
) -> nir.NIRGraph:
    chosen = recipe(teacher=teacher, data=data, student={"T": steps})
    return student_to_nir(lively_student(chosen, seed), chosen)


NETWORKS = {
    "chain": chain,
    "residual, projection": residual,
    "residual, pad": padded,
    "average-pooled": average_pooled,
    "by hand": by_hand,
}


def one_neuron(node: nir.NIRNode, x: float, steps: int) -> nir.NIRGraph:
    """A white pixel (1) times x -> `node` -> 1, for T `steps`."""
    nodes = {
        "input": nir.Input({"input": np.array((1, 1, 1))}),
        "conv": nir.Conv2d((1, 1), np.full((1, 1, 1, 1), x), 1, 0, 1, 1, np.zeros(1)),
        "lif1": node,
        "flat": nir.Flatten({"input": np.array((1, 1, 1))}, 0, -1),
        "fc": nir.Affine(np.ones((1, 1)), np.zeros(1)),
        "output": nir.Output({"output": np.array((1,))}),
    }
    edges = list(itertools.pairwise(nodes))
    metadata = GraphMetadata(T=steps, mean=(0.0,), std=(1.0,))
    return with_metadata(nir.NIRGraph(nodes, edges, type_check=False), metadata)


def neuron(tau: float = 2.0, v_leak: float = 0.0, v_reset: float = 0.0, r: float = 1.0) -> nir.LIF:
    values = (tau * DT, r, v_leak, 1.0, v_reset)
    return nir.LIF(*(np.full((1, 1, 1), value) for value in values))


def integrator(r: float) -> nir.IF:
    return nir.IF(*(np.full((1, 1, 1), value) for value in (r, 1.0)))


EDGES = {
    "tie": one_neuron(neuron(), 2.0, 4),
    "IF": one_neuron(integrator(1.0), 0.15, 12),
    "IF with r = 1/dt": one_neuron(integrator(1 / DT), 0.15, 12),
    "v_reset without v_leak": one_neuron(neuron(v_reset=0.5), 1.8, 4),
    "v_leak = v_reset": one_neuron(neuron(v_leak=-0.25, v_reset=-0.25), 1.8, 4),
    "tau = dt": one_neuron(neuron(tau=1.0), 0.9, 4),
}
