"""CMI: a fresh generator and latent codes per batch, kept apart by a contrastive loss.

Source: Fang et al., Contrastive Model Inversion (IJCAI 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.randomness import make_rng, module_init
from stars_deploy.distillation.synthesis.base import Best, SynthesisStep
from stars_deploy.distillation.synthesis.contrast import Bank, Head, contrastive_loss
from stars_deploy.distillation.synthesis.generator import Trunk
from stars_deploy.distillation.synthesis.judge import FeatureKind, ImageJudge
from stars_deploy.networks.images import normalise, random_resized_crop

MANY_CHANNELS = 2048  # of BatchNorms, above which a head on all of them would be huge
LOCAL_SCALE = (0.25, 1.0)  # share of the image that the local view shows


class Cmi:
    """One batch of images an epoch; see `Synthesizer`.

    The generator and the codes start anew with every batch; the contrastive head and its optimiser
    last as long as the run.
    """

    def __init__(self, recipe: Recipe, judge: ImageJudge) -> None:
        self._config = recipe.synthesis.cmi
        self._synthesis = recipe.synthesis
        self._data = recipe.data
        self._judge = judge
        self._rng = make_rng(recipe.run.seed, "cmi")
        self._kind: FeatureKind = "stages" if judge.norm_channels > MANY_CHANNELS else "bn"
        if self._config.features != "auto":
            self._kind = self._config.features
        blank = torch.zeros(1, *recipe.data.shape, device=judge.device)
        with torch.no_grad():
            width = judge.teacher_features(blank, self._kind).shape[1]
        with module_init(self._rng):
            self._head = Head(width, self._config.head_dim).to(judge.device)
        self._head_optimizer = torch.optim.Adam(self._head.parameters(), lr=self._synthesis.lr)
        self._bank = Bank(self._config.bank, 2 * width)
        self._best_pair: Tensor | None = None
        self._begin()

    def steps(self, epoch: int) -> int:
        """Return the number of generator steps."""
        return self._config.g_steps

    def step(self, epoch: int, index: int) -> SynthesisStep:
        """Do one generator step; the last one gives the pool the selected batch."""
        if index == 0:
            self._begin()
        last = index == self._config.g_steps - 1
        images = self._trunk(self._codes)
        verdict = self._judge(
            self._judge.view(images),
            images,
            self._labels,
            epoch,
            features=self._kind if self._config.cr > 0 else None,
        )
        total = verdict.total
        pair: Tensor | None = None
        if verdict.features is not None:
            total, pair = self._contrast(images, verdict.features, total)
        loss = float(total.detach())
        metrics = verdict.metrics(images) | {"loss": loss} if last else {}
        if last and pair is not None:
            metrics["cr"] = loss - float(verdict.total.detach())
        if self._best.offer(images, loss):
            self._best_pair = pair
        self._head_optimizer.zero_grad(set_to_none=True)
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if pair is not None:
            self._head_optimizer.step()
        if not last:
            return SynthesisStep(loss)
        chosen = images.detach() if self._config.select == "last" else self._best.images
        remembered = pair if self._config.select == "last" else self._best_pair
        if remembered is not None:
            self._bank.add(remembered)
        return SynthesisStep(loss, metrics, chosen, self._labels)

    def _contrast(self, images: Tensor, globe: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss with the contrastive term, and both views' features side by side."""
        crop = random_resized_crop(images, LOCAL_SCALE, self._judge.flip, self._judge.rng)
        local = self._judge.teacher_features(normalise(crop, self._data), self._kind)
        earlier = self._bank.sample(self._config.n_neg, self._rng).to(globe.device)
        contrast = contrastive_loss(self._head, local, globe, earlier, self._config.cr_T)
        pair = torch.cat([local, globe], dim=1).detach()
        return total + self._config.cr * contrast, pair

    def _begin(self) -> None:
        batch, nz = self._synthesis.batch_size, self._config.nz
        with module_init(self._rng):
            self._trunk = Trunk(nz, self._config.ngf, self._data.shape)
            self._trunk.apply(_init)
        self._trunk.to(self._judge.device)
        codes = torch.randn(batch, nz, generator=self._rng).to(self._judge.device)
        self._codes = codes.requires_grad_(True)
        classes = len(self._data.classes)
        labels = torch.randint(classes, (batch,), generator=self._rng).sort().values
        self._labels = labels.to(self._judge.device)
        self._best = Best()
        self._best_pair = None
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        self._optimizer = torch.optim.Adam(
            [*self._trunk.parameters(), self._codes], lr=self._synthesis.lr, betas=(0.5, 0.999)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on."""
        return {
            "trunk": self._trunk.state_dict(),
            "codes": self._codes.detach(),
            "labels": self._labels,
            "optimizer": self._optimizer.state_dict(),
            "head": self._head.state_dict(),
            "head_optimizer": self._head_optimizer.state_dict(),
            "bank": self._bank.rows,
            "best": self._best.state_dict(),
            "best_pair": self._best_pair,
            "rng": self._rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        device = self._judge.device
        self._trunk.load_state_dict(state["trunk"])
        self._codes = state["codes"].to(device).requires_grad_(True)
        self._labels = state["labels"].to(device)
        self._new_optimizer()
        self._optimizer.load_state_dict(state["optimizer"])
        self._head.load_state_dict(state["head"])
        self._head_optimizer.load_state_dict(state["head_optimizer"])
        self._bank.rows = state["bank"]
        self._best.load_state_dict(state["best"], device)
        pair = state["best_pair"]
        self._best_pair = None if pair is None else pair.to(device)
        self._rng.set_state(state["rng"])


def _init(module: nn.Module) -> None:
    """DCGAN's initialisation, which CMI uses."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
