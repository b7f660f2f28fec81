"""STARS: relational consistency (RCA) and tail-aware rate (TAR) alignment of two networks.

Both compare pre-activation features of the images under synthesis: the teacher's before its ReLUs,
the student's before its neurons. Source: arXiv 2605.27409, Eq. 12-18. Pure functions of tensors;
no random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stars_deploy.config.recipe import Neuron, Stars
from stars_deploy.errors import InputError

DEAD_ROW = 1e-3  # norm below which a sample's feature has no direction worth comparing
FLOOR = 1e-2  # of a norm, where dead rows are kept; a smaller one has gradients of thousands
RUNNING = 0.9  # momentum of the teacher's moments under normalization = teacher_running


class StarsTerms(NamedTuple):
    """The two alignment losses, unweighted; None where its weight is zero."""

    rca: Tensor | None
    tar: Tensor | None


class Scale(NamedTuple):
    """Mean and deviation that features are expressed in, scalars or `[C]`."""

    mean: Tensor
    std: Tensor


def pooled(features: Tensor, per_step: bool = False) -> Tensor:
    """Return the mean over space, and over time if there is any: `[T, B, C, ...]` to `[B, C]`.

    Takes `[B, C]`, `[B, C, H, W]` and `[T, B, C, H, W]`; source: Eq. 12. per_step keeps the time
    axis of the last kind.
    """
    if features.dim() == 5:
        return features.mean((3, 4)) if per_step else features.mean((0, 3, 4))
    return features.flatten(2).mean(dim=2) if features.dim() > 2 else features


def rca_loss(teacher: Tensor, student: Tensor, mask_dead: bool = True) -> Tensor:
    """Return the mean over sample pairs i < j of (cos_S(i, j) - cos_T(i, j))^2.

    teacher `[B, C_T]`, student `[B, C_S]`: pooled features of the same samples; range [0, 4].
    Pairs with a row shorter than `DEAD_ROW` (a silent student layer) are left out, because such a
    row has no direction and its normalisation an unbounded slope; without `mask_dead` they count,
    divided by at least `FLOOR`. No pair gives 0.

    Source: Eq. 13-14.
    """
    teacher_rows, teacher_live = _unit_rows(teacher, mask_dead)
    student_rows, student_live = _unit_rows(student, mask_dead)
    live = teacher_live & student_live
    pairs = torch.triu(live[:, None] & live[None, :], diagonal=1)
    difference = student_rows @ student_rows.T - teacher_rows @ teacher_rows.T
    return (difference.square() * pairs).sum() / pairs.sum().clamp(min=1)


def _unit_rows(rows: Tensor, mask_dead: bool) -> tuple[Tensor, Tensor]:
    norms = torch.linalg.vector_norm(rows, dim=1)
    if not mask_dead:
        return rows / norms.clamp(min=FLOOR)[:, None], torch.ones_like(norms, dtype=torch.bool)
    live = norms.detach() >= DEAD_ROW
    return rows / torch.where(live, norms, torch.ones_like(norms))[:, None], live


def scale_of(teacher: Tensor, per_channel: bool = False) -> Scale:
    """Return mean and deviation of the teacher's features `[B, C]`, without gradient.

    Over all values, so that delta and the quantiles mean the same in shallow layers (small spread)
    and deep ones; or over the samples of each channel.
    """
    dims = (0,) if per_channel else (0, 1)
    std, mean = torch.std_mean(teacher.detach(), dim=dims, correction=0)
    return Scale(mean, std + torch.finfo(teacher.dtype).eps)


def tail_thresholds(teacher: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return the quantiles of the teacher's features `[B, C]`, without gradient, `[M]`."""
    levels = torch.tensor(list(quantiles), dtype=teacher.dtype, device=teacher.device)
    return torch.quantile(teacher.detach().flatten(), levels)


def firing_thresholds(neuron: Neuron, T: int) -> list[float]:
    """Return theta_t, the constant current above which a neuron at rest fires by step t, `[T]`.

    theta_t = (V_th - V_r) / (r (1 - (1 - 1/tau)^t)), r = 1 or, without decay_input, tau; of an IF
    neuron (V_th - V_r) / t. Source: Eq. 8.
    """
    height = neuron.v_threshold - neuron.v_reset
    if neuron.model == "if":
        return [height / t for t in range(1, T + 1)]
    r = 1.0 if neuron.decay_input else neuron.tau
    return [height / (r * (1 - (1 - 1 / neuron.tau) ** t)) for t in range(1, T + 1)]


def soft_exceedance(features: Tensor, thresholds: Tensor, delta: float) -> Tensor:
    """Return p^m = mean_{b,c} sigmoid((z - theta_m) / delta), `[M]`; source: Eq. 16.

    features `[B, C]`; thresholds `[M]`, or `[M, C]` for one per channel.
    """
    levels = thresholds.view(len(thresholds), 1, -1)
    return torch.sigmoid((features[None] - levels) / delta).mean(dim=(1, 2))


def tar_loss(teacher: Tensor, student: Tensor, thresholds: Tensor, delta: float) -> Tensor:
    """Return mean_m (p_S^m - p_T^m)^2 at the teacher's thresholds; range [0, 1). Source: Eq. 17.

    teacher `[B, C_T]`, student `[B, C_S]`, thresholds `[M]` or `[M, C]`, delta in the features'
    units.
    """
    gap = soft_exceedance(student, thresholds, delta) - soft_exceedance(teacher, thresholds, delta)
    return gap.square().mean()


def active(config: Stars) -> bool:
    """Return whether STARS adds anything to the synthesis loss."""
    return config.enabled and (config.lambda_rca > 0 or config.lambda_tar > 0)


def started(config: Stars, epoch: int, warmup: int) -> bool:
    """Return whether STARS takes part in an epoch (`stars.start`)."""
    return epoch >= {"warmup": warmup, "warmup+1": warmup + 1, "always": 0}[config.start]


def layer_weights(config: Stars, count: int) -> list[float]:
    """Return w_l of `count` compared layers; their sum is 1.

    Raises:
        InputError: a list of another length, or of zeros.
    """
    if config.layer_weights == "equal":
        weights = [1.0] * count
    elif config.layer_weights == "linear":
        weights = [float(depth) for depth in range(1, count + 1)]
    else:
        weights = list(config.layer_weights)
    if len(weights) != count or sum(weights) <= 0:
        raise InputError(
            f"stars.layer_weights are {weights}, expected {count} numbers that are not all 0: one "
            f"per compared layer (stars.layers = {config.layers!r})"
        )
    return [weight / sum(weights) for weight in weights]


class StarsLoss:
    """RCA and TAR over pairs of layers, with the options of a recipe.

    Keeps no state but, under normalization = teacher_running, the teacher's moving moments.
    """

    def __init__(self, config: Stars, neuron: Neuron, T: int) -> None:
        if active(config) and config.thresholds == "lif" and neuron.model == "plif":
            raise InputError(
                "stars.thresholds = 'lif' with neuron.model = 'plif': every layer learns its own "
                "tau, so there is no common theta_t; use thresholds = 'quantile' or 'fixed'"
            )
        self.config = config
        self._firing = firing_thresholds(neuron, T)
        self.running: list[Scale] = []

    def __call__(
        self, teacher_features: Sequence[Tensor], student_features: Sequence[Tensor]
    ) -> StarsTerms:
        """Return the weighted means over layers of RCA and TAR; of weight zero: not computed.

        teacher_features: per layer `[B, C_T, H, W]`; student_features: `[T, B, C_S, H, W]`.

        Raises:
            InputError: different numbers of layers, or per-channel units for different widths.
        """
        config = self.config
        if not active(config):
            return StarsTerms(None, None)
        if len(teacher_features) != len(student_features):
            raise InputError(
                f"stars.layers = {config.layers!r} selects {len(teacher_features)} layers of the "
                f"teacher and {len(student_features)} of the student; they are compared in pairs: "
                "use stars.pairing = 'depth' for networks of different depth"
            )
        weights = layer_weights(config, len(teacher_features))
        rca: list[Tensor] = []
        tar: list[Tensor] = []
        for index, (t, s) in enumerate(zip(teacher_features, student_features, strict=True)):
            teacher = pooled(t.detach() if config.detach_teacher else t)
            student = pooled(s, config.per_step)
            if config.lambda_rca > 0:
                mask = config.dead_rows == "mask"
                rca.append(_over_steps(lambda x: rca_loss(teacher, x, mask), student))  # noqa: B023
            if config.lambda_tar > 0:
                shown, scale = self._normalised(index, teacher, student)
                tar.append(_over_steps(lambda x: self._tar(shown, x, scale), student))  # noqa: B023
        return StarsTerms(_weighted(rca, weights), _weighted(tar, weights))

    def _normalised(
        self, index: int, teacher: Tensor, student: Tensor
    ) -> tuple[Tensor, Scale | None]:
        """Return the teacher's features in the chosen units, and the units."""
        kind = self.config.normalization
        per_channel = self.config.thresholds == "channel_quantile" or kind == "teacher_channel"
        if per_channel and teacher.shape[-1] != student.shape[-1]:
            raise InputError(
                f"stars compares channel by channel, and layer pair {index} has "
                f"{teacher.shape[-1]} and {student.shape[-1]} channels; use normalization = "
                "'teacher_global' and thresholds = 'quantile'"
            )
        if kind == "none":
            return teacher, None
        scale = scale_of(teacher, kind == "teacher_channel")
        if kind == "teacher_running":
            scale = self._moving(index, scale)
        return (teacher - scale.mean) / scale.std, scale

    def _moving(self, index: int, scale: Scale) -> Scale:
        if index == len(self.running):
            self.running.append(scale)
        else:
            old = self.running[index]
            self.running[index] = Scale(
                *(RUNNING * a + (1 - RUNNING) * b for a, b in zip(old, scale, strict=True))
            )
        return self.running[index]

    def _tar(self, teacher: Tensor, student: Tensor, scale: Scale | None) -> Tensor:
        if scale is not None:
            student = (student - scale.mean) / scale.std
        return tar_loss(teacher, student, self._thresholds(teacher, scale), self.config.delta)

    def _thresholds(self, teacher: Tensor, scale: Scale | None) -> Tensor:
        config = self.config
        if config.thresholds == "quantile":
            return tail_thresholds(teacher, config.quantiles)
        if config.thresholds == "channel_quantile":
            levels = torch.tensor(config.quantiles, dtype=teacher.dtype, device=teacher.device)
            return torch.quantile(teacher.detach(), levels, dim=0)
        fixed = config.fixed if config.thresholds == "fixed" else self._firing
        values = torch.tensor(fixed, dtype=teacher.dtype, device=teacher.device)
        if config.thresholds == "lif" and scale is not None:
            # Currents in raw units, expressed in those the features are compared in.
            shape = (-1, 1) if scale.mean.dim() else (-1,)
            values = (values.view(shape) - scale.mean) / scale.std
        return values


def _over_steps(loss: Callable[[Tensor], Tensor], student: Tensor) -> Tensor:
    """Return the loss of `[B, C]`, or its mean over the steps of `[T, B, C]`."""
    if student.dim() == 2:
        return loss(student)
    return torch.stack([loss(step) for step in student]).mean()


def _weighted(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor | None:
    if not losses:
        return None
    return (torch.stack(list(losses)) * losses[0].new_tensor(list(weights))).sum()
