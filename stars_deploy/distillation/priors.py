"""What images under synthesis are judged by: BatchNorm statistics, labels, disagreement.

Every loss is a pure function of tensors; only `BatchNormProbe` touches a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stars_deploy.distillation.probe import InputProbe
from stars_deploy.errors import InputError
from stars_deploy.networks.layers import Unnormalised


class Moments(NamedTuple):
    """Mean and biased variance over (B, H, W) at the input of one BatchNorm, each `[C]`."""

    mean: Tensor
    var: Tensor


class BatchNormProbe(InputProbe):
    """Reads the moments at the input of every BatchNorm2d of a network, one forward at a time.

    Use as a context manager; hooks exist only inside it. `moments` and `inputs` hold the last
    forward.

    Raises:
        InputError: the network has no BatchNorm2d with running statistics.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = [
            module
            for module in network.modules()
            if isinstance(module, nn.BatchNorm2d)
            and not isinstance(module, Unnormalised)
            and module.running_mean is not None
        ]
        if not self._norms:
            raise InputError(
                "the teacher has no BatchNorm with running statistics; "
                "data-free synthesis matches these and needs a conv-BatchNorm-ReLU teacher"
            )
        super().__init__(self._norms)

    @property
    def moments(self) -> list[Moments]:
        """Mean and biased variance at every BatchNorm, in the network's order."""
        return [batch_moments(features) for features in self.inputs]

    @property
    def targets(self) -> list[Moments]:
        """Running mean and variance of every BatchNorm, in the network's order."""
        return [Moments(_buffer(n.running_mean), _buffer(n.running_var)) for n in self._norms]


def _buffer(value: Tensor | None) -> Tensor:
    if value is None:
        raise InputError("a BatchNorm of the teacher has lost its running statistics")
    return value.detach()


def batch_moments(features: Tensor) -> Moments:
    """Return mean and biased variance per channel of features `[B, C, H, W]`."""
    var, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
    return Moments(mean, var)


def blend(batch: Moments, average: Moments, momentum: float) -> Moments:
    """Return (1 - m) batch + m average, the statistic that is matched once an average exists."""
    return Moments(
        (1 - momentum) * batch.mean + momentum * average.mean,
        (1 - momentum) * batch.var + momentum * average.var,
    )


def update_average(
    average: Sequence[Moments] | None, batch: Sequence[Moments], momentum: float
) -> list[Moments]:
    """Return the moving average m average + (1 - m) batch per layer; the first batch is copied."""
    detached = [Moments(b.mean.detach(), b.var.detach()) for b in batch]
    if average is None:
        return [Moments(b.mean.clone(), b.var.clone()) for b in detached]
    return [blend(b, a, momentum) for b, a in zip(detached, average, strict=True)]


def bn_loss(
    moments: Sequence[Moments],
    targets: Sequence[Moments],
    form: Literal["norm", "squared"] = "norm",
) -> Tensor:
    """Return sum_l ||mu_l - mean_l|| + ||var_l - v_l||, or the same with squared norms.

    mu, var: moments of the batch at BatchNorm l; mean, v: its running statistics. The plain norm
    is what the published weights (1 to 20) belong to; the squared form is Eq. 3 of STARS.

    Source: Yin et al., DeepInversion (CVPR 2020); STARS Eq. 3.
    """
    total = moments[0].mean.new_zeros(())
    for batch, target in zip(moments, targets, strict=True):
        for difference in (batch.mean - target.mean, batch.var - target.var):
            norm = torch.linalg.vector_norm(difference)
            total = total + (norm if form == "norm" else difference.square().sum())
    return total


def class_prior_loss(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the teacher's logits `[B, K]` with the intended labels `[B]`."""
    return F.cross_entropy(teacher_logits, labels)


def adversarial_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return -mean_i 1[argmax s_i = argmax t_i] KL(softmax t_i || softmax s_i), logits `[B, K]`.

    Lower is better for the generator: it looks for images that both networks put in the same
    class with different confidence. Rows where they disagree count as zero in the mean.

    Source: Fang et al., CMI (IJCAI 2021); Tran et al., NAYER (CVPR 2024).
    """
    log_student = F.log_softmax(student_logits, dim=1)
    log_teacher = F.log_softmax(teacher_logits, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    agree = student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)
    return -(divergence * agree).mean()


def jsd_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float = 3.0) -> Tensor:
    """Return -JS(P, Q) with P = softmax(s / tau), Q = softmax(t / tau), logits `[B, K]`.

    JS = KL(M || P) / 2 + KL(M || Q) / 2, M = (P + Q) / 2, each clamped to [0.01, 0.99], which stops
    the gradient of classes that are decided. The direction is that of the public code.

    Source: Yin et al., DeepInversion (CVPR 2020), adaptive variant.
    """
    p, q = (F.softmax(logits / tau, dim=1) for logits in (student_logits, teacher_logits))
    m = ((p + q) / 2).clamp(0.01, 0.99)
    divergences = [(m * (m.log() - x.clamp(0.01, 0.99).log())).sum(dim=1).mean() for x in (p, q)]
    return -torch.stack(divergences).mean()


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbours, summed over right, down, two diagonals."""
    pairs = (
        (images[..., :, 1:], images[..., :, :-1]),
        (images[..., 1:, :], images[..., :-1, :]),
        (images[..., 1:, 1:], images[..., :-1, :-1]),
        (images[..., 1:, :-1], images[..., :-1, 1:]),
    )
    return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()


def l2_norm(images: Tensor) -> Tensor:
    """Return ||x||_2 over the whole batch."""
    norm: Tensor = torch.linalg.vector_norm(images)
    return norm
