"""Each method and neuron model learns from nothing: over 3 times chance.

The data are the packaged Fashion-MNIST images at 14x14: 1,500 train a small teacher, 500 judge. A
student starts from random weights, sees no image but synthetic ones, and gets under a minute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stars_deploy.config.recipe import Recipe, load_recipe, parse_recipe
from stars_deploy.data import load_data
from stars_deploy.distillation.schedule import steps
from stars_deploy.distillation.session import Session
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import build_teacher, seeded
from stars_deploy.networks.images import augment, to_input
from stars_deploy.workflow.evaluate import accuracy

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
CHANCE = 0.1


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    found, labels = load_data("evaluation", load_recipe("fashion-mnist").data)
    small = F.avg_pool2d(torch.from_numpy(found).float(), 2).round().to(torch.uint8)
    return small.numpy(), labels


def recipe(teacher: dict[str, Any], **sections: Any) -> Recipe:
    base = load_recipe("fashion-mnist").resolved()
    data = {**base["data"], "shape": [1, 16, 16], "crop_padding": 1}
    document = {
        "name": "learning",
        "data": data,
        "teacher": teacher,
        "neuron": {"decay_input": False},  # learns faster from random weights
        "synthesis": {
            "method": "nayer", "batch_size": 100, "bn": 10.0, "oh": 0.5,
            "nayer": {"g_steps": 20, "g_life": 0, "g_loops": 1, "gwp_loops": 5, "lte_dim": 64,
                      "le_emb": 64, "ngf": 16, "harvest_every": 4, "harvest_from": 8},
            "cmi": {"g_steps": 30, "nz": 64, "ngf": 16, "n_neg": 512, "head_dim": 64},
            "deepinversion": {"g_steps": 60},
        },
        "kd": {"steps": 60, "batch_size": 64, "lr": 0.1},
        "run": {"epochs": 7, "warmup": 2, "seed": 0},
    }  # fmt: skip
    for name, section in sections.items():
        document[name] = {**document.get(name, {}), **section}
    return parse_recipe(document, "learning")


CNN = {"family": "cnn", "args": {"channels": [16, 32, 32], "strides": [1, 2, 2]}}


def padded(images: np.ndarray) -> np.ndarray:
    return np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))


def train(chosen: Recipe, images: np.ndarray, labels: np.ndarray, epochs: int) -> Network:
    network = seeded(build_teacher, chosen, 0)
    rng = torch.Generator().manual_seed(0)
    total = epochs * (len(labels) // 100)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for _ in range(epochs):
        for picked in torch.randperm(len(labels), generator=rng).split(100):
            pixels = augment(torch.from_numpy(images)[picked], 1, True, rng)
            loss = F.cross_entropy(
                network(to_input(pixels, chosen.data, CPU)), torch.from_numpy(labels)[picked]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


_TEACHERS: dict[str, Network] = {}


def teacher_of(chosen: Recipe, images: tuple[np.ndarray, np.ndarray]) -> Network:
    key = str(chosen.teacher)
    if key not in _TEACHERS:
        pixels, labels = padded(images[0]), images[1]
        _TEACHERS[key] = train(chosen, pixels[:1500], labels[:1500], epochs=12)
        assert accuracy(_TEACHERS[key], pixels[1500:], labels[1500:], chosen.data, CPU) > 0.7
    return _TEACHERS[key]


def learnt(chosen: Recipe, images: tuple[np.ndarray, np.ndarray]) -> float:
    session = Session(chosen, teacher_of(chosen, images))
    for step in steps(chosen):
        session.advance(step)
    pixels, labels = padded(images[0])[1500:], images[1][1500:]
    return accuracy(session.student, pixels, labels, chosen.data, CPU)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("deepinversion", {"lr": 0.1, "bn": 10.0, "oh": 1.0, "adv": 1.0}),
        ("cmi", {"lr": 3e-3, "bn": 1.0, "oh": 1.0, "adv": 0.5}),
        ("nayer", {}),
    ],
)
def test_every_method_learns(method, settings, images):
    synthesis = recipe(CNN).resolved()["synthesis"] | {"method": method} | settings
    assert learnt(recipe(CNN, synthesis=synthesis), images) > 3 * CHANCE


@pytest.mark.parametrize("model", ["if", "lif", "plif"])
def test_every_neuron_model_learns(model, images):
    neuron = {"model": model, "decay_input": False}
    assert learnt(recipe(CNN, neuron=neuron), images) > 3 * CHANCE


@pytest.mark.parametrize("style", ["post_add", "sew", "ms"])
def test_every_residual_style_learns(style, images):
    args = {"blocks": [1, 1, 1], "style": style, "shortcut": "projection", "width": 0.5}
    assert learnt(recipe({"family": "resnet20", "args": args}), images) > 3 * CHANCE
