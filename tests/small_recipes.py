"""Small recipes and networks for the tests of networks, data and evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stars_deploy.config.recipe import Recipe, parse_recipe
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import build_student, seeded


def recipe(**sections: Any) -> Recipe:
    """A recipe for 1x12x12 images of three classes and a three-block network."""
    document: dict[str, Any] = {
        "name": "small",
        "data": {
            "name": "small",
            "shape": [1, 12, 12],
            "classes": ["a", "b", "c"],
            "mean": [0.4],
            "std": [0.3],
        },
        "teacher": {"args": {"channels": [4, 4, 6], "strides": [1, 2, 2]}},
    }
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return parse_recipe(document, "test")


def lively_student(chosen: Recipe, seed: int = 0) -> Network:
    """A student in eval mode whose random BatchNorm makes every layer fire."""
    student = seeded(build_student, chosen, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in student.state_dict().items():
        low_high = {"running_mean": (-0.3, 0.3), "running_var": (0.1, 0.6)}.get(
            name.rpartition(".")[2]
        )
        if ".bn." in name and low_high is None and tensor.is_floating_point():
            low_high = (0.8, 1.8) if name.endswith("weight") else (0.2, 1.2)
        if low_high is not None:
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
            tensor.mul_(low_high[1] - low_high[0]).add_(low_high[0])
    return student


def random_images(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Uniform random pixels uint8 [count, C, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
