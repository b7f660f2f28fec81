"""NAYER: images from label embeddings through a noisy layer that is drawn anew for every batch.

Source: Tran et al., NAYER: Noisy Layer Data Generation (CVPR 2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stars_deploy.config.recipe import Nayer as NayerConfig
from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.priors import Moments, update_average
from stars_deploy.distillation.randomness import make_rng, module_init
from stars_deploy.distillation.synthesis.base import Best, SynthesisStep
from stars_deploy.distillation.synthesis.generator import (
    NayerGenerator,
    balanced_labels,
    label_embeddings,
)
from stars_deploy.distillation.synthesis.judge import ImageJudge


def loops(config: NayerConfig, epoch: int, warmup: int) -> int:
    """Return how many batches an epoch makes."""
    return config.gwp_loops if epoch < warmup else config.g_loops


def new_generator_due(config: NayerConfig, epoch: int, warmup: int) -> bool:
    """Return whether an epoch starts with a new generator."""
    if config.g_life == 0:
        return epoch == 0
    return epoch % config.g_life == 0 or (epoch - warmup) % config.g_life == 0


class Nayer:
    """The NAYER synthesis method; see `Synthesizer`."""

    def __init__(self, recipe: Recipe, judge: ImageJudge) -> None:
        self._config = recipe.synthesis.nayer
        self._synthesis = recipe.synthesis
        self._warmup = recipe.run.warmup
        self._shape = recipe.data.shape
        self._classes = len(recipe.data.classes)
        self._judge = judge
        self._rng = make_rng(recipe.run.seed, "nayer")
        self._embeddings = label_embeddings(
            self._config.lte,
            self._classes,
            self._config.lte_dim,
            make_rng(recipe.run.seed, "label embeddings"),
        )
        self._average: list[Moments] | None = None
        # Step 0 makes both anew; until then they are there to be overwritten by a checkpoint.
        self._begin_life()
        self._begin_loop()

    def steps(self, epoch: int) -> int:
        """Return loops times generator steps."""
        return loops(self._config, epoch, self._warmup) * self._config.g_steps

    def step(self, epoch: int, index: int) -> SynthesisStep:
        """Do one generator step; the last one of a loop gives the pool a batch."""
        iterate = index % self._config.g_steps
        if index == 0 and new_generator_due(self._config, epoch, self._warmup):
            self._begin_life()
        if iterate == 0:
            self._begin_loop()
        last = iterate == self._config.g_steps - 1
        images = self._generator(self._codes())
        verdict = self._judge(
            self._judge.view(images),
            images,
            self._labels,
            epoch,
            average=self._average,
        )
        loss = float(verdict.total.detach())
        metrics = verdict.metrics(images) if last else {}
        self._optimizer.zero_grad(set_to_none=True)
        verdict.total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._best.offer(images, loss)
        if last and self._config.bn_momentum > 0:
            self._average = update_average(self._average, verdict.moments, self._config.bn_momentum)
        return SynthesisStep(loss, metrics, *self._harvest(images.detach(), iterate, last))

    def _codes(self) -> Tensor:
        codes = self._embeddings[self._labels.cpu()]
        if self._config.latent_noise > 0:
            noise = torch.randn(codes.shape, generator=self._rng)
            codes = codes + self._config.latent_noise * noise
        return codes.to(self._judge.device)

    def _harvest(self, images: Tensor, iterate: int, last: bool) -> tuple[Tensor | None, ...]:
        """Return what the pool gets after an iterate: the selected one at the end of a loop."""
        if last:
            # If the pool has the best one already, the last one is news.
            known = self._config.select == "last" or self._harvested(self._best.place)
            return images if known else self._best.images, self._labels
        return (images, self._labels) if self._harvested(iterate) else (None, None)

    def _harvested(self, iterate: int) -> bool:
        every, first = self._config.harvest_every, self._config.harvest_from
        last = self._config.g_steps - 1
        # In the first loop of its life the generator still makes noise.
        due = every > 0 and first <= iterate < last and (iterate - first) % every == 0
        return due and self._loops_of_life > 1

    def _begin_life(self) -> None:
        with module_init(self._rng):
            self._generator = NayerGenerator(
                self._synthesis.batch_size,
                self._classes,
                self._shape,
                self._config.lte_dim,
                self._config.le_emb,
                self._config.ngf,
            ).to(self._judge.device)
        self._loops_of_life = 0
        self._new_optimizer()

    def _begin_loop(self) -> None:
        self._generator.noisy.reset(self._rng)
        self._labels = balanced_labels(self._synthesis.batch_size, self._classes, self._rng).to(
            self._judge.device
        )
        self._loops_of_life += 1
        self._best = Best()
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        self._optimizer = torch.optim.Adam(
            self._generator.parameters(), lr=self._synthesis.lr, betas=(0.5, 0.999)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on."""
        return {
            "generator": self._generator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": None if self._average is None else [list(m) for m in self._average],
            "labels": self._labels,
            "best": self._best.state_dict(),
            "loops_of_life": self._loops_of_life,
            "rng": self._rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        device = self._judge.device
        self._generator.load_state_dict(state["generator"])
        self._new_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        self._average = (
            None
            if average is None
            else [Moments(mean.to(device), var.to(device)) for mean, var in average]
        )
        self._labels = state["labels"].to(device)
        self._best.load_state_dict(state["best"], device)
        self._loops_of_life = state["loops_of_life"]
        self._rng.set_state(state["rng"])
