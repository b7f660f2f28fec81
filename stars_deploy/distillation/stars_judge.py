"""STARS at work on a batch under synthesis: layers, units, and its share of the gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.layers import NormInputs, compared_layers, pre_activations
from stars_deploy.distillation.stars import Scale, StarsLoss, active, started
from stars_deploy.errors import InputError
from stars_deploy.networks.base import Network, Taps
from stars_deploy.networks.images import to_input

UNIT_IMAGES = 256  # of the pool, on which the student's units are measured


class StarsJudge:
    """The STARS terms of a recipe for one pair of networks."""

    def __init__(self, recipe: Recipe, teacher: Network, student: Network) -> None:
        self._config = recipe.stars
        self._data = recipe.data
        self._warmup = recipe.run.warmup
        self._networks = teacher, student
        self._loss = StarsLoss(recipe.stars, recipe.neuron, recipe.student.T)
        self._pairs = (
            compared_layers(recipe.stars, teacher, student) if active(recipe.stars) else []
        )
        self._norms: tuple[NormInputs, NormInputs] | None = None
        if recipe.stars.features == "pre_bn" and self._pairs:
            self._norms = (
                NormInputs(teacher, [pair[0] for pair in self._pairs]),
                NormInputs(student, [pair[1] for pair in self._pairs]),
            )
        self._units: list[tuple[Scale, Scale]] | None = None  # per pair: teacher's, student's

    def takes_part(self, epoch: int) -> bool:
        """Return whether an epoch's images are judged by STARS."""
        return active(self._config) and started(self._config, epoch, self._warmup)

    @property
    def teacher_probe(self) -> AbstractContextManager[Any]:
        """What the teacher's forward pass must run inside of."""
        return contextlib.nullcontext() if self._norms is None else self._norms[0]

    @property
    def student_probe(self) -> AbstractContextManager[Any]:
        """What the student's forward pass must run inside of."""
        return contextlib.nullcontext() if self._norms is None else self._norms[1]

    def terms(
        self, teacher: Taps, student: Taps, images: Tensor, base: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return RCA and TAR with their weights, scaled as `stars.balance` asks.

        base: the other terms of the loss, whose gradient at `images` the balance is relative to.
        """
        compared, judged = self._compared(teacher, student)
        rca, tar = self._loss(compared, judged)
        terms = {}
        if rca is not None:
            terms["rca"] = self._config.lambda_rca * rca
        if tar is not None:
            terms["tar"] = self._config.lambda_tar * tar
        if self._config.balance is None:
            return terms
        wanted = self._config.balance * _gradient_norm(base, images)
        norm = _gradient_norm(terms, images)
        scale = torch.where(norm > 0, wanted / norm.clamp(min=1e-12), torch.zeros_like(norm))
        return {name: scale * term for name, term in terms.items()}

    def _compared(self, teacher: Taps, student: Taps) -> tuple[list[Tensor], list[Tensor]]:
        if self._norms is not None:
            batch = len(teacher.logits)
            one = [features[0] for features in self._norms[0].by_step(batch)]
            other = self._norms[1].by_step(batch)
            for norms in self._norms:
                norms.inputs = []
        else:
            one = pre_activations(teacher, [pair[0] for pair in self._pairs])
            other = pre_activations(student, [pair[1] for pair in self._pairs])
        if self._units is not None:
            other = [_converted(x, *units) for x, units in zip(other, self._units, strict=True)]
        return one, other

    @torch.no_grad()
    def measure_units(self, pool_images: Tensor) -> None:
        """Find out what the student's features mean in the teacher's, on uint8 pool images.

        Per channel, the student's time-mean features get the teacher's mean and deviation over
        images and places. After a warm start the student's current is p z + q, so that literal
        RCA and TAR would measure p and q. Does nothing unless stars.units = 'teacher', and, with
        nothing in the pool yet, not in a first epoch without warm-up.

        Raises:
            InputError: a pair of layers of different width.
        """
        if self._config.units != "teacher" or not self._pairs or not len(pool_images):
            return
        teacher, student = self._networks
        stride = -(-len(pool_images) // UNIT_IMAGES)
        x = to_input(pool_images[::stride], self._data, next(teacher.parameters()).device)
        self._units = None
        with self.teacher_probe:
            goal = teacher.taps(x)
        with self.student_probe:
            taps = student.taps(x)
        one, other = self._compared(goal, taps)
        if any(t.shape[1] != s.shape[2] for t, s in zip(one, other, strict=True)):
            raise InputError(
                "stars.units = 'teacher' compares channel by channel, and a pair of compared "
                "layers has different widths; use 'literal'"
            )
        self._units = [(_moments(t), _moments(s.mean(0))) for t, s in zip(one, other, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return everything later terms depend on."""
        units = None if self._units is None else [[list(a), list(b)] for a, b in self._units]
        return {"units": units, "running": [list(scale) for scale in self._loss.running]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        device = next(self._networks[0].parameters()).device

        def scale(values: list[Tensor]) -> Scale:
            return Scale(*(value.to(device) for value in values))

        units = state["units"]
        self._units = None if units is None else [(scale(a), scale(b)) for a, b in units]
        self._loss.running = [scale(values) for values in state["running"]]


def _moments(features: Tensor) -> Scale:
    std, mean = torch.std_mean(features, dim=(0, 2, 3), correction=0)
    return Scale(mean.view(-1, 1, 1), std.view(-1, 1, 1).clamp(min=1e-6))


def _converted(student: Tensor, teacher_scale: Scale, own_scale: Scale) -> Tensor:
    return (student - own_scale.mean) / own_scale.std * teacher_scale.std + teacher_scale.mean


def _gradient_norm(terms: Mapping[str, Tensor], images: Tensor) -> Tensor:
    if not terms:
        return images.new_zeros(())
    total = torch.stack(list(terms.values())).sum()
    (gradient,) = torch.autograd.grad(total, images, retain_graph=True)
    norm: Tensor = torch.linalg.vector_norm(gradient)
    return norm
