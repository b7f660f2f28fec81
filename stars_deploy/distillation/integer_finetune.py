"""Training of a network that computes with integers, on synthetic images, towards its teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.console import Progress, no_progress
from stars_deploy.distillation.integer_twin import IntegerTwin, messages_of
from stars_deploy.distillation.kd import kd_loss
from stars_deploy.distillation.randomness import make_rng
from stars_deploy.errors import TrainingDiverged
from stars_deploy.networks.base import Network
from stars_deploy.networks.images import augment, to_input

LOG_EVERY = 20  # updates between two lines of metrics
LARGEST_GRADIENT = 1.0  # norm over all parameters, above which a gradient is scaled down


@dataclass(frozen=True)
class Settings:
    """How long and how fast; lr is relative to the largest weight (Adam moves by about lr)."""

    updates: int
    lr: float
    seed: int


def train_integers(
    network: IntegerTwin,
    teacher: Network,
    pool: Tensor,
    table: NDArray[np.int32],
    recipe: Recipe,
    settings: Settings,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Train `network` in place on uint8 images `pool` [N, C, H, W]; return lines of metrics.

    The loss is kd_loss at the recipe's kd.tau; Adam under a cosine schedule that ends at 0.

    Args:
        table: messages of every pixel value [C, 256].

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    device = next(teacher.parameters()).device
    # channels_last: several times faster on a CPU for narrow convolutions.
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.eval()
    rng = make_rng(settings.seed, "integer fine-tuning")
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad])
    lines = []
    for update, pixels in enumerate(_batches(pool, recipe.kd.batch_size, settings.updates, rng)):
        lr = settings.lr * (1 + math.cos(math.pi * update / settings.updates)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        images = augment(pixels, recipe.data.crop_padding, recipe.data.flip, rng)
        with torch.no_grad():
            goal = teacher(to_input(images, recipe.data, device))
        found = network(messages_of(images, table).to(device))
        loss = kd_loss(found.logits, goal, recipe.kd.tau)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"integer fine-tuning, update {update}: the loss is {value}, expected a finite "
                f"number; lower --lr (now {settings.lr}). Nothing was written"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        progress("fine-tune the integers", update + 1, settings.updates)
        if update % LOG_EVERY == 0 or update == settings.updates - 1:
            agree = found.logits.detach().argmax(1) == goal.argmax(1)
            lines.append(
                {
                    "update": update,
                    "loss": value,
                    "agreement": float(agree.float().mean()),
                    "lr": lr,
                }
            )
    return lines


def _batches(pool: Tensor, size: int, count: int, rng: torch.Generator) -> Any:
    """Yield `count` batches; every image is seen once before any is seen again."""
    size = min(size, len(pool))
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        if len(order) < size:
            order = torch.randperm(len(pool), generator=rng)
        yield pool[order[:size]]
        order = order[size:]
