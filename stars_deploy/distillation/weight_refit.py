"""Least-squares correction of a layer's weights for what its inputs have lost on the way."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 64  # images whose patches are in memory at a time
MOST_INPUTS = 5_000  # of one output: the correction solves a system of that size


def refit_conv(conv: nn.Conv2d, inputs: Tensor, target: Tensor, ridge: float) -> None:
    """Change the weights of a convolution so that it maps `inputs` to `target`.

    inputs `[B, C, H, W]`, target `[B, O, H', W']`; see `ridge_correction`. Grouped convolutions,
    and those of more than MOST_INPUTS weights per output, keep their weights.
    """
    if conv.groups > 1 or conv.weight[0].numel() > MOST_INPUTS:
        return
    rows = (
        (_patches(conv, images), goal.permute(0, 2, 3, 1).flatten(0, 2))
        for images, goal in zip(torch.split(inputs, CHUNK), torch.split(target, CHUNK), strict=True)
    )
    correction = ridge_correction(rows, conv.weight.flatten(1), ridge)
    conv.weight.add_(correction.view_as(conv.weight))


def refit_linear(linear: nn.Linear, inputs: Tensor, target: Tensor, ridge: float) -> None:
    """Change the weights of a linear layer so that it maps `inputs` `[B, C]` to `target` `[B, K]`.

    The bias is left to the caller.
    """
    linear.weight.add_(ridge_correction([(inputs, target)], linear.weight, ridge))


def ridge_correction(rows: Iterable[tuple[Tensor, Tensor]], weight: Tensor, ridge: float) -> Tensor:
    """Return D `[O, C]` that minimises |U (W + D)' + b - Y|^2 / n + ridge v |D|^2 over D and b.

    rows: pairs of inputs U `[n, C]` and targets Y `[n, O]`; weight W `[O, C]`; v: mean variance of
    the inputs, so that `ridge` has no unit. The offset b is free and not returned.
    """
    columns = weight.shape[1]
    gram = weight.new_zeros(columns + 1, columns + 1, dtype=torch.float64)
    moment = weight.new_zeros(columns + 1, weight.shape[0], dtype=torch.float64)
    for inputs, target in rows:
        wide = F.pad(inputs, (0, 1), value=1.0)
        gram += (wide.T @ wide).double()
        moment += (wide.T @ (target - inputs @ weight.T)).double()
    count = gram[-1, -1].clone()
    gram, moment = gram / count, moment / count
    variance = gram.diagonal()[:-1] - gram[-1, :-1].square()
    # A tiny share keeps the system solvable when an input never changes.
    gram.diagonal()[:-1] += (ridge + 1e-6) * variance.mean().clamp(min=1e-12)
    correction: Tensor = torch.linalg.solve(gram, moment)[:-1]
    return correction.T.to(weight)


def _patches(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """Return what the kernel sees at every place, `[B * H' * W', C * kh * kw]`."""
    height, width = conv.kernel_size
    columns = F.unfold(
        images,
        (height, width),
        dilation=conv.dilation,
        padding=conv.padding,  # type: ignore[arg-type]  # a tuple here, never a word
        stride=conv.stride,
    )
    return columns.transpose(1, 2).flatten(0, 1)
