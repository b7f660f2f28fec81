"""Networks that outside judges run: students of the families and graphs made by hand.

Weights are random reals, so no potential lies exactly at its threshold.
"""

from __future__ import annotations

import nir
import random_networks
from small_recipes import lively_student, recipe

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


def _student(seed: int, teacher: dict[str, object]) -> nir.NIRGraph:
    chosen = recipe(teacher=teacher, data=IMAGE, student={"T": STEPS})
    return student_to_nir(lively_student(chosen, seed), chosen)


NETWORKS = {
    "chain": chain,
    "residual, projection": residual,
    "residual, pad": padded,
    "average-pooled": average_pooled,
    "by hand": by_hand,
}
