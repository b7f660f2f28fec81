"""`stars-deploy teacher train`: train a recipe's ANN teacher with real, labelled images."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.console import Progress, no_progress
from stars_deploy.data import Images, Labels, load_data
from stars_deploy.errors import DataError, InputError, TrainingDiverged
from stars_deploy.files import sha256, write_json, write_text
from stars_deploy.locks import one_writer
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.families import build_teacher, seeded
from stars_deploy.networks.images import augment, to_input
from stars_deploy.networks.weights import save_weights
from stars_deploy.workflow.evaluate import accuracy
from stars_deploy.workflow.provenance import hardware, versions

WARM_UP = 0.15  # share of the steps in which the one-cycle schedule raises the learning rate


@one_writer("out")
def train_teacher(
    recipe: Recipe,
    data_spec: str,
    out: Path,
    device: str = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train the teacher of `recipe` and write OUT/teacher.safetensors, summary.json, recipe.toml.

    SGD with Nesterov momentum under a one-cycle cosine schedule; random shifts, and mirroring if
    `data.flip`. The last epoch's weights are kept: the test images are looked at once, at the end.
    After every epoch OUT/checkpoint/teacher.safetensors and OUT/metrics.jsonl are brought up to
    date. Returns what summary.json holds.

    Raises:
        DataError: the images are absent or do not fit. RecipeError: unknown family or arguments.
        TrainingDiverged: the loss is no longer finite; OUT/checkpoint keeps the last good epoch.
    """
    start = time.monotonic()
    place = resolve(device)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; give another one with --out")
    if Path(data_spec).expanduser().is_file():
        raise DataError(
            f"{data_spec}: one file has no split, and a teacher is judged on images that it was "
            "not trained on; give a folder with files named *train.npz and *test.npz"
        )
    images, labels = load_data(data_spec, recipe.data, "train")
    test = load_data(data_spec, recipe.data, "test")
    # channels_last: several times faster on a CPU for narrow networks like these.
    teacher = seeded(build_teacher, recipe, recipe.training.seed)
    teacher = teacher.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    write_text(out / "recipe.toml", tomli_w.dumps(recipe.resolved()))
    metrics = []
    for entry in _epochs(teacher, recipe, images, labels, place):
        metrics.append({**entry, "time_s": round(time.monotonic() - start, 1)})
        save_weights(teacher, out / "checkpoint" / "teacher.safetensors")
        write_text(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
        progress("train the teacher (epochs)", entry["epoch"] + 1, recipe.training.epochs)
    save_weights(teacher, out / "teacher.safetensors")
    summary = {
        "accuracy": accuracy(teacher, *test, recipe.data, place),
        "n": len(test[1]),
        "n_train": len(labels),
        "kind": "measured",
        "data": recipe.data.name,
        "seed": recipe.training.seed,
        "sha256": sha256(out / "teacher.safetensors"),
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "command": shlex.join(
            [
                "stars-deploy",
                "teacher",
                "train",
                recipe.name,
                "--data",
                data_spec,
                "--out",
                str(out),
            ]
        ),
        "hardware": hardware(place),
        "versions": versions(),
        "wall_s": round(time.monotonic() - start, 1),
    }
    write_json(out / "summary.json", summary)
    return summary


def _epochs(
    teacher: Network, recipe: Recipe, images: Images, labels: Labels, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Train, yielding epoch, mean loss, training accuracy and learning rate after every epoch."""
    training = recipe.training
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.SGD(
        teacher.parameters(),
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    )
    batches = math.ceil(len(labels) / training.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.lr, training.epochs * batches, pct_start=WARM_UP, cycle_momentum=False
    )
    for epoch in range(training.epochs):
        teacher.train()
        order = torch.randperm(len(labels), generator=generator).numpy()
        total, correct = 0.0, 0
        for chosen in np.array_split(order, batches):
            x = augment(
                torch.from_numpy(images[chosen]),
                recipe.data.crop_padding,
                recipe.data.flip,
                generator,
            )
            y = torch.from_numpy(labels[chosen]).to(device)
            loss, logits = _step(teacher, optimizer, to_input(x, recipe.data, device), y)
            schedule.step()
            total += loss * len(y)
            correct += int((logits.argmax(1) == y).sum())
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"teacher training: loss is {loss} in epoch {epoch}; "
                    f"lower training.lr (now {training.lr})"
                )
        yield {
            "epoch": epoch,
            "loss": total / len(labels),
            "accuracy": correct / len(labels),
            "lr": schedule.get_last_lr()[0],
        }


def _step(
    teacher: Network, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> tuple[float, Tensor]:
    logits = teacher(x)
    loss = torch.nn.functional.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item(), logits.detach()
