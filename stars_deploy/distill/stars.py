"""STARS: relational consistency (RCA) and tail-aware rate (TAR) alignment of two networks.

Both compare pre-activation features of the images under synthesis: the teacher's before its ReLUs,
the student's before its LIFs. Source: arXiv 2605.27409, Eq. 12-18.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stars_deploy.config.recipe import Stars
from stars_deploy.errors import InputError

DEAD_ROW = 1e-3  # norm below which a sample's feature has no direction worth comparing


class StarsTerms(NamedTuple):
    """The two alignment losses, unweighted; None where its weight is zero."""

    rca: Tensor | None
    tar: Tensor | None


def pooled(features: Tensor) -> Tensor:
    """Return the mean over space, and over time if there is any: `[T, B, C, ...]` to `[B, C]`.

    Takes `[B, C]`, `[B, C, H, W]` and `[T, B, C, H, W]`; source: Eq. 12.
    """
    if features.dim() == 5:
        features = features.mean(dim=0)
    return features.flatten(2).mean(dim=2) if features.dim() > 2 else features


def rca_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean over sample pairs i < j of (cos_S(i, j) - cos_T(i, j))^2.

    teacher `[B, C_T]`, student `[B, C_S]`: pooled features of the same samples; range [0, 4].
    Pairs with a row shorter than `DEAD_ROW` (a silent student layer) are left out, because such a
    row has no direction and its normalisation an unbounded slope. No pair left gives 0.

    Source: Eq. 13-14.
    """
    teacher_rows, teacher_live = _unit_rows(teacher)
    student_rows, student_live = _unit_rows(student)
    live = teacher_live & student_live
    pairs = torch.triu(live[:, None] & live[None, :], diagonal=1)
    difference = student_rows @ student_rows.T - teacher_rows @ teacher_rows.T
    return (difference.square() * pairs).sum() / pairs.sum().clamp(min=1)


def _unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    norms = torch.linalg.vector_norm(rows, dim=1)
    live = norms.detach() >= DEAD_ROW
    return rows / torch.where(live, norms, torch.ones_like(norms))[:, None], live


def standardise(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return both features in units of the teacher's: (z - mean(z_T)) / std(z_T), two scalars.

    The scalars are taken over the whole `[B, C]` of the teacher, without gradient, so that delta
    and the quantiles mean the same in shallow layers (small spread) and deep ones.
    """
    std, mean = torch.std_mean(teacher.detach(), correction=0)
    scale = std + torch.finfo(teacher.dtype).eps
    return (teacher - mean) / scale, (student - mean) / scale


def tail_thresholds(teacher: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return the quantiles of the teacher's features `[B, C]`, without gradient, `[M]`."""
    levels = torch.tensor(list(quantiles), dtype=teacher.dtype, device=teacher.device)
    return torch.quantile(teacher.detach().flatten(), levels)


def soft_exceedance(features: Tensor, thresholds: Tensor, delta: float) -> Tensor:
    """Return p^m = mean_{b,c} sigmoid((z - theta_m) / delta), `[M]`; source: Eq. 16."""
    return torch.sigmoid((features.flatten()[None] - thresholds[:, None]) / delta).mean(dim=1)


def tar_loss(teacher: Tensor, student: Tensor, thresholds: Tensor, delta: float) -> Tensor:
    """Return mean_m (p_S^m - p_T^m)^2 at the teacher's thresholds; range [0, 1). Source: Eq. 17.

    teacher `[B, C_T]`, student `[B, C_S]`, thresholds `[M]`, delta in the features' units.
    """
    gap = soft_exceedance(student, thresholds, delta) - soft_exceedance(teacher, thresholds, delta)
    return gap.square().mean()


def active(config: Stars) -> bool:
    """Return whether STARS adds anything to the synthesis loss."""
    return config.enabled and (config.lambda_rca > 0 or config.lambda_tar > 0)


def stars_loss(
    teacher_features: Sequence[Tensor], student_features: Sequence[Tensor], config: Stars
) -> StarsTerms:
    """Return RCA and TAR averaged over layers, each only if its weight is not zero.

    teacher_features: per layer `[B, C_T, H, W]`; student_features: `[T, B, C_S, H, W]`, paired in
    order. Uses no random numbers; with weights of zero nothing is computed.

    Raises:
        InputError: the networks have different numbers of layers to compare.
    """
    if not active(config):
        return StarsTerms(None, None)
    if len(teacher_features) != len(student_features):
        raise InputError(
            f"stars.layers = {config.layers!r} selects {len(teacher_features)} layers of the "
            f"teacher and {len(student_features)} of the student; they are compared in pairs"
        )
    layers = [
        (_routed(pooled(t), config), pooled(s))
        for t, s in zip(teacher_features, student_features, strict=True)
    ]
    return StarsTerms(
        _mean(rca_loss, layers) if config.lambda_rca > 0 else None,
        _mean(lambda t, s: _tar(t, s, config), layers) if config.lambda_tar > 0 else None,
    )


def _routed(teacher: Tensor, config: Stars) -> Tensor:
    return teacher.detach() if config.detach_teacher else teacher


def _tar(teacher: Tensor, student: Tensor, config: Stars) -> Tensor:
    if config.normalization == "teacher_global":
        teacher, student = standardise(teacher, student)
    return tar_loss(teacher, student, tail_thresholds(teacher, config.quantiles), config.delta)


def _mean(
    loss: Callable[[Tensor, Tensor], Tensor], layers: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    return torch.stack([loss(teacher, student) for teacher, student in layers]).mean()
