"""A distillation that takes a second: 8x8 images, three classes, a random teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w
import torch

from stars_deploy.config.recipe import Recipe, load_recipe
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import build_teacher, seeded
from stars_deploy.networks.weights import save_weights

DOCUMENT: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "name": "none",
        "shape": [1, 8, 8],
        "classes": ["a", "b", "c"],
        "mean": [0.4],
        "std": [0.3],
        "crop_padding": 1,
    },
    "teacher": {
        "args": {"channels": [4, 4, 6], "strides": [1, 2, 1]},
        "weights": "teacher.safetensors",
    },
    "student": {"T": 2},
    "synthesis": {
        "batch_size": 10,
        "bn": 1.0,
        "nayer": {
            "g_steps": 5,
            "g_life": 2,
            "g_loops": 1,
            "gwp_loops": 2,
            "lte_dim": 8,
            "le_emb": 8,
            "ngf": 4,
            "harvest_every": 2,
            "harvest_from": 1,
        },
    },
    "pool": {"max_images": 60, "newest_fraction": 0.5},
    "warm_start": {"enabled": True, "calibration_images": 12},
    "kd": {"steps": 6, "batch_size": 8, "lr": 0.02, "feature": 0.1},
    "run": {"epochs": 4, "warmup": 1, "device": "cpu", "threads": 1, "checkpoint_seconds": 1000.0},
}


def tiny_teacher(recipe: Recipe) -> Network:
    """A random teacher whose BatchNorm statistics are not those of a fresh network."""
    teacher = seeded(build_teacher, recipe, 0)
    rng = torch.Generator().manual_seed(0)
    for name, tensor in teacher.state_dict().items():
        if "running_mean" in name or "bn.bias" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * 0.3)
        if "running_var" in name or "bn.weight" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
    return teacher.eval()


def tiny_model(folder: Path) -> Path:
    """Write recipe and teacher to `folder`; return the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(DOCUMENT))
    save_weights(tiny_teacher(load_recipe(path)), folder / "teacher.safetensors")
    return path


def results(run: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What two equal runs have in common: student, picture, metrics without time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["time_s"]
    student, picture = run / "student.safetensors", run / "synthetic.png"
    return student.read_bytes(), picture.read_bytes(), lines
