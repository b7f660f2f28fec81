"""`stars-deploy operating-point`: where on the staircase of its neurons a student works.

For a constant current a, a neuron at rest fires by step t if a > theta_t, so its rate over T steps
is at most 1/T sum_t 1[a > theta_t] (STARS Eq. 8 and 9; exact up to the first spike, after which a
hard reset makes it less). What a layer does therefore hangs on the mass of its currents above each
theta_t, its tail; two data sets of equal mean and variance can differ there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stars_deploy.config.recipe import Data, load_recipe
from stars_deploy.console import Progress, no_progress
from stars_deploy.data import data_label, load_data
from stars_deploy.distillation import checkpoint
from stars_deploy.distillation.stars import firing_thresholds
from stars_deploy.errors import InputError
from stars_deploy.files import write_json, write_text
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.images import to_input
from stars_deploy.networks.to_nir import node_names
from stars_deploy.networks.weights import load_student
from stars_deploy.workflow.figures import tails_figure
from stars_deploy.workflow.provenance import hardware, versions

BATCH = 250
FIRING = 0.1  # relative difference of rates from which a layer is said to over- or under-fire
RESULT = "operating_point.json"
FIGURE = "operating_point.svg"

Json = dict[str, Any]


def operating_point(
    run: Path,
    data: str | None = None,
    limit: int = 2000,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Json:
    """Measure the currents and rates of RUN's student on its synthetic pool, and on real images.

    Writes RUN/operating_point.json and RUN/operating_point.svg. Per layer and source: tail mass
    above each theta_t of the time-mean current, the rate these predict (Eq. 9), the true rate;
    with `data`, whether the layer fires more or less on synthetic images than on real ones. Of
    more than `limit` images, that many are taken from all over the set.

    Raises:
        InputError: RUN is not a finished run with a checkpoint. DataError, WeightsError.
    """
    recipe = load_recipe(run / "recipe.toml")
    state = checkpoint.load(run)
    if state is None or not (run / "student.safetensors").is_file():
        raise InputError(f"{run}: expected a finished run with its checkpoint folder")
    place = resolve(device)
    student = load_student(recipe, run / "student.safetensors").to(place)
    if recipe.neuron.model == "plif":
        raise InputError(
            f"{run}: its PLIF neurons have one tau per layer, so there is no common theta_t"
        )
    thresholds = firing_thresholds(recipe.neuron, recipe.student.T)
    pool = state["session"]["pool"]["images"]
    sources = {"synthetic": pool[_spread(len(pool), limit)]}
    if data is not None:
        images, _ = load_data(data, recipe.data, "test")
        sources["real"] = torch.from_numpy(images[_spread(len(images), limit)])
    measured = {
        name: _measure(student, images, recipe.data, thresholds, place, progress)
        for name, images in sources.items()
    }
    layers = [
        _layer(name, {source: rows[index] for source, rows in measured.items()})
        for index, name in enumerate(node_names(student))
    ]
    result = {
        "thresholds": thresholds,
        "T": recipe.student.T,
        "images": {name: len(images) for name, images in sources.items()},
        "data": None if data is None else data_label(data, recipe.data),
        "layers": layers,
        "kind": "measured",
        **hardware(place),
        "versions": versions(),
    }
    write_json(run / RESULT, result)
    write_text(run / FIGURE, tails_figure(result))
    return result


def _spread(count: int, limit: int) -> list[int]:
    """Return up to `limit` places all over `count`: folders are ordered by class, pools by age."""
    chosen = min(count, limit)
    return [place * count // chosen for place in range(chosen)]


@torch.no_grad()
def _measure(
    student: Network,
    images: Tensor,
    data: Data,
    thresholds: Sequence[float],
    device: torch.device,
    progress: Progress,
) -> list[Json]:
    """Return tail masses, predicted and true rate of every layer."""
    levels = torch.tensor(list(thresholds), device=device)
    layers = len(student.neurons)
    above = torch.zeros(layers, len(levels), dtype=torch.float64)
    fired = torch.zeros(layers, dtype=torch.float64)
    moments = torch.zeros(layers, 2, dtype=torch.float64)
    places = torch.zeros(layers, dtype=torch.float64)
    for start in range(0, len(images), BATCH):
        taps = student.taps(to_input(images[start : start + BATCH], data, device))
        for index, junction in enumerate(student.neurons):
            current, spikes = taps.pre_activations[junction], taps.activations[junction]
            mean = current.mean(0).flatten()
            above[index] += torch.stack([(mean > level).sum() for level in levels]).cpu()
            moments[index] += torch.stack([mean.sum(), mean.square().sum()]).cpu()
            fired[index] += float(spikes.mean(0).sum(dtype=torch.float64))
            places[index] += mean.numel()
        progress("operating point", min(start + BATCH, len(images)), len(images))
    tails, rates = above / places[:, None], fired / places
    means = moments / places[:, None]
    deviations = (means[:, 1] - means[:, 0].square()).clamp(min=0).sqrt()
    return [
        {
            "tail_mass": tails[index].tolist(),
            "predicted_rate": float(tails[index].mean()),
            "rate": float(rates[index]),
            "current_mean": float(means[index, 0]),
            "current_sd": float(deviations[index]),
        }
        for index in range(layers)
    ]


def _layer(name: str, sources: dict[str, Json]) -> Json:
    row: Json = {"name": name, **sources}
    if "real" in sources:
        synthetic, real = sources["synthetic"]["rate"], sources["real"]["rate"]
        difference = (synthetic - real) / max(real, 1e-9)
        row["relative_difference"] = difference
        over, under = difference > FIRING, difference < -FIRING
        row["firing"] = "over" if over else "under" if under else "alike"
    return row
