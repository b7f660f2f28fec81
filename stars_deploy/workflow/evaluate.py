"""`stars-deploy evaluate`: accuracy and spike counts of a trained student on real images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stars_deploy.config.recipe import Data, load_recipe
from stars_deploy.console import Progress, no_progress
from stars_deploy.data import Images, Labels, data_label, load_data
from stars_deploy.errors import InputError
from stars_deploy.files import sha256, write_json
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.images import to_input
from stars_deploy.networks.to_nir import node_names
from stars_deploy.networks.weights import load_student, load_teacher
from stars_deploy.workflow.own_teacher import WEIGHTS
from stars_deploy.workflow.provenance import hardware, versions

BATCH = 250  # images at a time; bounds memory, does not change any result


def evaluate(
    run: Path,
    data: str,
    device: str = "auto",
    progress: Progress = no_progress,
    teacher: Network | None = None,
) -> dict[str, Any]:
    """Measure the student of RUN on labelled test images and write RUN/training.json.

    Returns what the file holds: accuracy, accuracy_by_t (of the mean logits of the first t steps),
    and spikes per node, summed over images, steps and neurons; teacher_accuracy if a teacher is
    given, or lies in RUN because it was imported.

    Raises:
        InputError: RUN is not the folder of a finished run. WeightsError, DataError.
    """
    for name in ("recipe.toml", "student.safetensors"):
        if not (run / name).is_file():
            raise InputError(
                f"{run}: no {name}; expected the folder of a finished run (one that was "
                "interrupted goes on with stars-deploy distill --resume)"
            )
    recipe = load_recipe(run / "recipe.toml")
    student = load_student(recipe, run / "student.safetensors")
    if teacher is None and (run / WEIGHTS).is_file():
        teacher = load_teacher(recipe, origin=run / "recipe.toml")
    images, labels = load_data(data, recipe.data, "test")
    place = resolve(device)
    counts = measure(student, images, labels, recipe.data, place, progress)
    n = len(labels)
    result = {
        "device": place.type,
        "hardware": hardware(place),
        "kind": "measured",
        "data": data_label(data, recipe.data),
        "n": n,
        "accuracy": counts.correct[-1] / n,
        "accuracy_by_t": [hits / n for hits in counts.correct],
        "spikes": counts.spikes,
        "rate": {node: counts.spikes[node] / (n * counts.neurons[node]) for node in counts.spikes},
        "T": student.T,
        "student_sha256": sha256(run / "student.safetensors"),
        "versions": versions(),
    }
    if teacher is not None:
        result["teacher_accuracy"] = accuracy(teacher, images, labels, recipe.data, place)
    write_json(run / "training.json", result)
    return result


@dataclass(frozen=True)
class Counts:
    """Sums over images.

    Attributes:
        correct: images classified right by the mean logits of the first t steps, t = 1..T.
        spikes: per node, summed over images, steps and neurons.
        neurons: per node, neurons times T.
    """

    correct: list[int]
    spikes: dict[str, int]
    neurons: dict[str, int]


@torch.no_grad()
def measure(
    student: Network,
    images: Images,
    labels: Labels,
    data: Data,
    device: torch.device,
    progress: Progress = no_progress,
) -> Counts:
    """Run a student in eval mode over the images and count hits and spikes."""
    student = _ready(student, device)
    names = node_names(student)
    correct = np.zeros(student.T, np.int64)
    spikes = dict.fromkeys(names, 0)
    neurons = dict.fromkeys(names, 0)
    for x, y, done in _batches(images, labels, data, device):
        taps = student.taps(x)
        steps = torch.arange(1, student.T + 1, device=device).view(-1, 1, 1)
        predicted = (taps.step_logits.cumsum(0) / steps).argmax(-1).cpu().numpy()  # [T, B]
        correct += (predicted == y).sum(axis=1)
        fired = [taps.activations[index] for index in student.neurons]
        for name, spike in zip(names, fired, strict=True):
            spikes[name] += int(spike.sum(dtype=torch.float64))
            neurons[name] = spike[:, 0].numel()
        progress("evaluate", done, len(labels))
    return Counts(correct.tolist(), spikes, neurons)


@torch.no_grad()
def accuracy(
    network: Network, images: Images, labels: Labels, data: Data, device: torch.device
) -> float:
    """Return the top-1 accuracy (fraction) of an ANN or a student in eval mode."""
    network = _ready(network, device)
    correct = 0
    for x, y, _ in _batches(images, labels, data, device):
        correct += int((network(x).argmax(1).cpu().numpy() == y).sum())
    return correct / len(labels)


def _ready(network: Network, device: torch.device) -> Network:
    # channels_last: several times faster on a CPU for narrow convolutions.
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _batches(
    images: Images, labels: Labels, data: Data, device: torch.device
) -> Iterator[tuple[Tensor, NDArray[np.int64], int]]:
    """Yield normalised images, labels, and how many images are done after them."""
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        x = to_input(images[part], data, device).contiguous(memory_format=torch.channels_last)
        yield x, labels[part], min(start + BATCH, len(labels))
