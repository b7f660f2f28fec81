"""The loss of images under synthesis: what teacher, student and STARS say about a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.priors import (
    BatchNormProbe,
    Moments,
    adversarial_loss,
    blend,
    bn_loss,
    class_prior_loss,
    jsd_loss,
    l2_norm,
    total_variation,
)
from stars_deploy.distillation.stars_judge import StarsJudge
from stars_deploy.networks.base import Network, Taps
from stars_deploy.networks.images import augment, normalise

FeatureKind = Literal["bn", "stages"]  # inputs of BatchNorms, or of stages


@dataclass(frozen=True)
class Verdict:
    """The loss of one batch.

    Attributes:
        total: the weighted sum, a scalar with a graph.
        terms: each term with its weight applied, in the order of summation.
        moments: batch moments at the teacher's BatchNorms, before any averaging.
        hits: fraction of images that the teacher puts in the intended class.
        features: the teacher's features `[B, F]` of the view, if they were asked for.
    """

    total: Tensor
    terms: dict[str, Tensor]
    moments: list[Moments]
    hits: Tensor
    features: Tensor | None = None

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


class ImageJudge:
    """Computes the synthesis loss of a batch, and what it shows a method of the teacher.

    The parameters of both networks must be frozen, and both in eval mode. `rng` is for the random
    views that a method takes of its images.
    """

    def __init__(
        self, recipe: Recipe, teacher: Network, student: Network, rng: torch.Generator
    ) -> None:
        self._weights = recipe.synthesis
        self._rivalry = jsd_loss if recipe.synthesis.method == "deepinversion" else adversarial_loss
        self._momentum = recipe.synthesis.nayer.bn_momentum
        self._warmup = recipe.run.warmup
        self._teacher = teacher
        self._student = student
        self._probe = BatchNormProbe(teacher)
        self.stars = StarsJudge(recipe, teacher, student)
        self.data = recipe.data
        given = recipe.synthesis.flip
        self.flip = recipe.data.flip if given is None else given  # whether views are mirrored
        self.rng = rng
        self.device = next(teacher.parameters()).device

    def view(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] as the student will see them: moved, mirrored, normalised."""
        shifted = augment(images, self.data.crop_padding, self.flip, self.rng)
        return normalise(shifted, self.data)

    def teacher_features(self, view: Tensor, kind: FeatureKind) -> Tensor:
        """Return `[B, F]`: the spatial means at the input of every BatchNorm, or of every stage."""
        with self._probe:
            taps = self._teacher.taps(view)
        features = self._features(taps, kind)
        self._probe.inputs = []
        return features

    def _features(self, taps: Taps, kind: FeatureKind) -> Tensor:
        if kind == "bn":
            return torch.cat([x.mean((2, 3)) for x in self._probe.inputs], dim=1)
        places = [0, *self._teacher.stage_ends[:-1]]
        return torch.cat([taps.activations[i].mean((2, 3)) for i in places], dim=1)

    @property
    def norm_channels(self) -> int:
        """Channels of all the teacher's BatchNorms."""
        return sum(len(target.mean) for target in self._probe.targets)

    def __call__(
        self,
        view: Tensor,
        images: Tensor,
        labels: Tensor,
        epoch: int,
        average: Sequence[Moments] | None = None,
        features: FeatureKind | None = None,
    ) -> Verdict:
        """Judge images `[B, C, H, W]` in [0, 1] that were made for `labels` `[B]`.

        view: what the networks are shown of them, normalised.
        epoch: says whether the student takes part (adversarial term, STARS).
        average: moving average of the BatchNorm moments, matched together with the batch's.
        features: which of the teacher's features of the view are to be returned too.
        """
        with self._probe, self.stars.teacher_probe:
            teacher = self._teacher.taps(view)
        moments = self._probe.moments
        matched = moments if average is None else self._blended(moments, average)
        terms = self._prior_terms(images, labels, teacher, matched)
        compete = self._weights.adv > 0 and epoch >= self._warmup
        compare = self.stars.takes_part(epoch)
        if compete or compare:
            with self.stars.student_probe:
                student = self._student.taps(view)
            if compete:
                rivalry = self._rivalry(student.logits, teacher.logits)
                terms["adv"] = self._weights.adv * rivalry
            if compare:
                terms |= self.stars.terms(teacher, student, images, terms)
        total = torch.stack(list(terms.values())).sum() if terms else images.sum() * 0
        hits = (teacher.logits.detach().argmax(1) == labels).float().mean()
        shown = None if features is None else self._features(teacher, features)
        self._probe.inputs = []  # or they stay in memory until the next step
        return Verdict(total, terms, moments, hits, shown)

    def _blended(self, moments: list[Moments], average: Sequence[Moments]) -> list[Moments]:
        return [blend(b, a, self._momentum) for b, a in zip(moments, average, strict=True)]

    def _prior_terms(
        self, images: Tensor, labels: Tensor, teacher: Taps, moments: list[Moments]
    ) -> dict[str, Tensor]:
        weights = self._weights
        terms: dict[str, Tensor] = {}
        if weights.bn > 0:
            terms["bn"] = weights.bn * bn_loss(moments, self._probe.targets, weights.bn_loss)
        if weights.oh > 0:
            terms["oh"] = weights.oh * class_prior_loss(teacher.logits, labels)
        if weights.tv > 0:
            terms["tv"] = weights.tv * total_variation(images)
        if weights.l2 > 0:
            terms["l2"] = weights.l2 * l2_norm(images)
        return terms
