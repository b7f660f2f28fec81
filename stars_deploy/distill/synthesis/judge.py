"""The loss of images under synthesis: what teacher, student and STARS say about a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.distill.priors import (
    BatchNormProbe,
    Moments,
    adversarial_loss,
    blend,
    bn_loss,
    class_prior_loss,
    l2_norm,
    total_variation,
)
from stars_deploy.distill.stars import active, stars_loss
from stars_deploy.networks.base import Network, Taps
from stars_deploy.networks.images import augment, normalise


@dataclass(frozen=True)
class Verdict:
    """The loss of one batch.

    Attributes:
        total: the weighted sum, a scalar with a graph.
        terms: each term with its weight applied, in the order of summation.
        moments: batch moments at the teacher's BatchNorms, before any averaging.
        hits: fraction of images that the teacher puts in the intended class.
    """

    total: Tensor
    terms: dict[str, Tensor]
    moments: list[Moments]
    hits: Tensor

    def metrics(self, images: Tensor) -> dict[str, float]:
        """Return every term, the norm of its gradient w.r.t. `images`, and the hit rate.

        Costs one backward pass per term; keeps the graph for the optimiser's own pass.
        """
        numbers = {"loss": float(self.total.detach()), "teacher_hits": float(self.hits)}
        for name, term in self.terms.items():
            numbers[name] = float(term.detach())
            (gradient,) = torch.autograd.grad(term, images, retain_graph=True)
            numbers[f"grad_{name}"] = float(torch.linalg.vector_norm(gradient))
        return numbers


class Weights(Protocol):
    """Weights of the loss terms; a term of weight 0 is not computed."""

    @property
    def bn(self) -> float: ...
    @property
    def oh(self) -> float: ...
    @property
    def tv(self) -> float: ...
    @property
    def l2(self) -> float: ...


class ImageJudge:
    """Computes the synthesis loss of a batch; draws the augmentation from its own generator.

    The parameters of both networks must be frozen, and the student in eval mode.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Network,
        student: Network,
        probe: BatchNormProbe,
        rng: torch.Generator,
        weights: Weights | None = None,
    ) -> None:
        self._weights = weights or recipe.synthesis
        self._adv = recipe.synthesis.adv
        self._form = recipe.synthesis.bn_loss
        self._momentum = recipe.synthesis.nayer.bn_momentum
        self._stars = recipe.stars
        self._teacher = teacher
        self._student = student
        self._probe = probe
        self._data = recipe.data
        self.rng = rng
        self.device = next(teacher.parameters()).device

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        average: Sequence[Moments] | None = None,
        compete: bool = False,
    ) -> Verdict:
        """Judge images `[B, C, H, W]` in [0, 1] that were made for `labels` `[B]`.

        average: moving average of the BatchNorm moments, matched together with the batch's.
        compete: whether the student takes part (adversarial term, STARS).
        """
        data = self._data
        view = normalise(augment(images, data.crop_padding, data.flip, self.rng), data)
        with self._probe:
            teacher = self._teacher.taps(view)
        moments = self._probe.moments
        terms = self._prior_terms(images, labels, teacher, self._matched(moments, average))
        if compete:
            terms |= self._student_terms(view, teacher)
        total = torch.stack(list(terms.values())).sum() if terms else images.sum() * 0
        hits = (teacher.logits.detach().argmax(1) == labels).float().mean()
        return Verdict(total, terms, moments, hits)

    def _matched(self, moments: list[Moments], average: Sequence[Moments] | None) -> list[Moments]:
        if average is None:
            return moments
        return [blend(b, a, self._momentum) for b, a in zip(moments, average, strict=True)]

    def _prior_terms(
        self, images: Tensor, labels: Tensor, teacher: Taps, moments: list[Moments]
    ) -> dict[str, Tensor]:
        weights, terms = self._weights, {}
        if weights.bn > 0:
            terms["bn"] = weights.bn * bn_loss(moments, self._probe.targets, self._form)
        if weights.oh > 0:
            terms["oh"] = weights.oh * class_prior_loss(teacher.logits, labels)
        if weights.tv > 0:
            terms["tv"] = weights.tv * total_variation(images)
        if weights.l2 > 0:
            terms["l2"] = weights.l2 * l2_norm(images)
        return terms

    def _student_terms(self, view: Tensor, teacher: Taps) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self._adv <= 0 and not active(self._stars):
            return terms
        student = self._student.taps(view)
        if self._adv > 0:
            terms["adv"] = self._adv * adversarial_loss(student.logits, teacher.logits)
        rca, tar = stars_loss(
            self._compared(self._teacher, teacher),
            self._compared(self._student, student),
            self._stars,
        )
        if rca is not None:
            terms["rca"] = self._stars.lambda_rca * rca
        if tar is not None:
            terms["tar"] = self._stars.lambda_tar * tar
        return terms

    def _compared(self, network: Network, taps: Taps) -> list[Tensor]:
        if self._stars.layers == "all":
            return taps.pre_activations
        ends = network.stage_ends if self._stars.layers == "stage_ends" else network.stage_ends[-1:]
        return [taps.pre_activations[i] for i in ends]
