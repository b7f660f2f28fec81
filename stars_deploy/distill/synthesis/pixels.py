"""Images optimised pixel by pixel, from noise; they fill the pool before the first epoch.

Source: Yin et al., DeepInversion (CVPR 2020), without the competition with a student.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stars_deploy.config.recipe import Data, Recipe
from stars_deploy.distill.randomness import make_rng
from stars_deploy.distill.synthesis.base import SynthesisStep
from stars_deploy.distill.synthesis.generator import balanced_labels
from stars_deploy.distill.synthesis.judge import ImageJudge
from stars_deploy.networks.images import normalise


class Pixels:
    """One batch of images under Adam with a cosine learning rate; see `Synthesizer`.

    Start: N(0, 1) noise blurred twice by a 5x5 box to unit variance, in normalised space; after
    every step the images are clamped to the range of pixels.
    """

    def __init__(self, recipe: Recipe, judge: ImageJudge) -> None:
        self._config = recipe.synthesis.pixels
        self._data = recipe.data
        self._judge = judge
        rng = make_rng(recipe.run.seed, "pixels")
        count, classes = self._config.images, len(recipe.data.classes)
        self._labels = balanced_labels(count, classes, rng).to(judge.device)
        # The variable is a normalised image: there one learning rate suits every data set.
        noise = _blurred_noise(count, recipe.data.shape, rng)
        self._variable = self._clamped(noise).to(judge.device).requires_grad_(True)
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        self._optimizer = torch.optim.Adam([self._variable], lr=self._config.lr, betas=(0.5, 0.99))

    def steps(self, epoch: int) -> int:
        """Return the number of optimisation steps; there is one batch in all."""
        return self._config.steps

    def step(self, epoch: int, index: int) -> SynthesisStep:
        """Do one step; the last one gives the pool the batch."""
        last = index == self._config.steps - 1
        images = denormalise(self._variable, self._data)
        verdict = self._judge(images, self._labels)
        loss = float(verdict.total.detach())
        metrics = verdict.metrics(images) if last else {}
        for group in self._optimizer.param_groups:
            group["lr"] = cosine(self._config.lr, index / self._config.steps)
        self._optimizer.zero_grad(set_to_none=True)
        verdict.total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():
            self._variable.copy_(self._clamped(self._variable))
        if not last:
            return SynthesisStep(loss)
        images = denormalise(self._variable.detach(), self._data)
        return SynthesisStep(loss, metrics, images, self._labels)

    def _clamped(self, images: Tensor) -> Tensor:
        return normalise(denormalise(images, self._data).clamp(0, 1), self._data)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on."""
        return {
            "variable": self._variable.detach(),
            "labels": self._labels,
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._variable = state["variable"].to(self._judge.device).requires_grad_(True)
        self._labels = state["labels"].to(self._judge.device)
        self._new_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])


def cosine(peak: float, progress: float, floor_ratio: float = 0.1) -> float:
    """Return the learning rate between `peak` (progress 0) and `peak * floor_ratio` (1)."""
    return peak * (floor_ratio + (1 - floor_ratio) * (1 + math.cos(math.pi * progress)) / 2)


def denormalise(images: Tensor, data: Data) -> Tensor:
    """Return images `[B, C, H, W]` in [0, 1] of normalised ones."""
    mean = images.new_tensor(data.mean).view(-1, 1, 1)
    std = images.new_tensor(data.std).view(-1, 1, 1)
    return images * std + mean


def _blurred_noise(count: int, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    noise = torch.randn((count, *shape), generator=rng)
    for _ in range(2):
        noise = F.avg_pool2d(noise, 5, stride=1, padding=2, count_include_pad=False)
    return noise / noise.std()
