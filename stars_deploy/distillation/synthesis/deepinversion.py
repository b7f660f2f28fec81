"""DeepInversion: images optimised pixel by pixel, from noise.

Source: Yin et al., Dreaming to Distill (CVPR 2020), with its competition of teacher and student.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.randomness import make_rng
from stars_deploy.distillation.synthesis.base import Best, SynthesisStep
from stars_deploy.distillation.synthesis.judge import ImageJudge
from stars_deploy.networks.images import denormalise, normalise

JITTER = 8  # the view is rolled by up to an eighth of the image in each direction


class DeepInversion:
    """One batch of images an epoch, under Adam; see `Synthesizer`.

    The variable is the normalised image, started at N(0, 1) and clamped to the range of pixels
    after every step. Each step sees one random roll and mirroring of the whole batch.
    """

    def __init__(self, recipe: Recipe, judge: ImageJudge) -> None:
        self._config = recipe.synthesis.deepinversion
        self._synthesis = recipe.synthesis
        self._data = recipe.data
        self._judge = judge
        self._rng = make_rng(recipe.run.seed, "deepinversion")
        self._begin()

    def steps(self, epoch: int) -> int:
        """Return the number of optimisation steps."""
        return self._config.g_steps

    def step(self, epoch: int, index: int) -> SynthesisStep:
        """Do one step; the last one gives the pool the batch."""
        if index == 0:
            self._begin()
        last = index == self._config.g_steps - 1
        images = denormalise(self._variable, self._data)
        verdict = self._judge(self._view(images), images, self._labels, epoch)
        loss = float(verdict.total.detach())
        metrics = verdict.metrics(images) if last else {}
        self._best.offer(images, loss)
        self._optimizer.zero_grad(set_to_none=True)
        verdict.total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():
            self._variable.copy_(self._clamped(self._variable))
        if not last:
            return SynthesisStep(loss)
        images = denormalise(self._variable.detach(), self._data)
        chosen = images if self._config.select == "last" else self._best.images
        return SynthesisStep(loss, metrics, chosen, self._labels)

    def _view(self, images: Tensor) -> Tensor:
        height, width = self._data.shape[1:]
        reach = (height // JITTER, width // JITTER)
        shift = [int(torch.randint(-r, r + 1, (), generator=self._judge.rng)) for r in reach]
        view = torch.roll(normalise(images, self._data), shift, dims=(2, 3))
        if self._judge.flip and torch.rand((), generator=self._judge.rng) < 0.5:
            view = view.flip(3)
        return view

    def _begin(self) -> None:
        shape = (self._synthesis.batch_size, *self._data.shape)
        # The variable is a normalised image: there one learning rate suits every data set.
        noise = torch.randn(shape, generator=self._rng).to(self._judge.device)
        self._variable = noise.requires_grad_(True)
        classes = len(self._data.classes)
        labels = torch.randint(classes, shape[:1], generator=self._rng).sort().values
        self._labels = labels.to(self._judge.device)
        self._best = Best()
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        self._optimizer = torch.optim.Adam(
            [self._variable], lr=self._synthesis.lr, betas=(0.5, 0.99)
        )

    def _clamped(self, images: Tensor) -> Tensor:
        return normalise(denormalise(images, self._data).clamp(0, 1), self._data)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on."""
        return {
            "variable": self._variable.detach(),
            "labels": self._labels,
            "best": self._best.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": self._rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._variable = state["variable"].to(self._judge.device).requires_grad_(True)
        self._labels = state["labels"].to(self._judge.device)
        self._best.load_state_dict(state["best"], self._judge.device)
        self._new_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.set_state(state["rng"])
