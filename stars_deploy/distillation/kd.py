"""Distillation of the student on pool images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stars_deploy.config.recipe import Kd, Recipe

ONECYCLE_RISE = 0.1  # share of the steps in which the one-cycle schedule rises
ONECYCLE_START = 25.0  # its peak over its first value
ONECYCLE_END = 1e4  # its first value over its last


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Return tau^2 mean_i KL(softmax(t_i / tau) || softmax(s_i / tau)), logits `[B, K]`.

    tau^2 keeps the gradient's size independent of the temperature.

    Source: Hinton et al. (2015); STARS Eq. 2 and 19, which leave tau^2 out.
    """
    log_student = F.log_softmax(student_logits / tau, dim=1)
    log_teacher = F.log_softmax(teacher_logits / tau, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return tau**2 * divergence


def feature_loss(
    spikes: Sequence[Tensor], activations: Sequence[Tensor], gains: Sequence[Tensor]
) -> Tensor:
    """Return sum_l mean((g_l rate_l - relu_l)^2) / mean(relu_l^2).

    spikes: per layer `[T, B, C, H, W]`; activations: the teacher's `[B, C, H, W]`; gains `[C]`.
    """
    total = activations[0].new_zeros(())
    for spike, relu, gain in zip(spikes, activations, gains, strict=True):
        error = spike.mean(0) * gain.view(-1, 1, 1) - relu
        total = total + error.square().mean() / relu.square().mean().clamp(min=1e-8)
    return total


def learning_rate(kd: Kd, epoch: int, step: int, epochs: int) -> float:
    """Return the learning rate of step `step` of training epoch `epoch` of `epochs`.

    cosine: from lr towards lr_min, one value per epoch. onecycle: up to lr and down again over all
    steps. A pure function, so that a resumed run needs no schedule state.
    """
    if kd.schedule == "cosine":
        return kd.lr_min + (kd.lr - kd.lr_min) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    done, total = epoch * kd.steps + step, epochs * kd.steps
    start, peak = kd.lr / ONECYCLE_START, ONECYCLE_RISE * total - 1
    if done < peak:
        return _between(start, kd.lr, done / peak)
    fall = (done - peak) / max(total - 1 - peak, 1)
    return _between(kd.lr, start / ONECYCLE_END, fall)


def _between(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def new_optimizer(student: torch.nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return the student's SGD; all parameters decay alike."""
    kd = recipe.kd
    return torch.optim.SGD(
        student.parameters(),
        lr=kd.lr,
        momentum=kd.momentum,
        nesterov=kd.nesterov and kd.momentum > 0,
        weight_decay=kd.weight_decay,
    )
