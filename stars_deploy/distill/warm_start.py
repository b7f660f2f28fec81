"""A data-free start of the spiking twin: the teacher's weights and one affine per channel.

Every LIF gets the current p z + q instead of the pre-activation z, and what it feeds is scaled by
g, so that g rate(p z + q) follows relu(z) (see `rate_fit`). p and q are folded into the student's
BatchNorm, g into the input channels of the layer behind, so that the student stays a plain
conv-BatchNorm-LIF network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron, Recipe
from stars_deploy.distill.randomness import make_rng
from stars_deploy.distill.rate_fit import ChannelFit, fit_gaussian, fit_samples
from stars_deploy.distill.weight_refit import refit_conv, refit_linear
from stars_deploy.errors import InputError
from stars_deploy.networks.base import Network, Taps
from stars_deploy.networks.cnn import Cnn, ConvBlock
from stars_deploy.networks.images import to_input

SAMPLES = 6_144  # places (image, row, column) of a feature map that a fit looks at


@dataclass(frozen=True)
class Twins:
    """Teacher and student layer by layer: convolution and BatchNorm blocks, then a linear layer."""

    teacher: Cnn
    student: Cnn
    neuron: Neuron
    T: int

    @property
    def blocks(self) -> list[tuple[ConvBlock, ConvBlock]]:
        """Pairs (teacher's, student's) in order."""
        pairs = zip(self.teacher.blocks, self.student.blocks, strict=True)
        return [(t, s) for t, s in pairs if isinstance(t, ConvBlock) and isinstance(s, ConvBlock)]

    def consumer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the weights (teacher's, student's) `[O, C, ...]` that block `index` feeds."""
        if index + 1 < len(self.blocks):
            teacher, student = self.blocks[index + 1]
            return teacher.conv.weight, student.conv.weight
        return self.teacher.fc.weight, self.student.fc.weight


def twins(recipe: Recipe, teacher: Network, student: Network) -> Twins:
    """Return the pair layer by layer.

    Raises:
        InputError: the networks are not chains of convolution blocks.
    """
    if isinstance(teacher, Cnn) and isinstance(student, Cnn) and student.spiking:
        return Twins(teacher, student, recipe.neuron, recipe.student.T)
    raise InputError(
        f"warm_start.enabled: a {recipe.teacher.family!r} network is not a chain of blocks and its "
        "spiking twin cannot be fitted layer by layer; set warm_start.enabled = false"
    )


@torch.no_grad()
def analytic_start(pair: Twins) -> list[Tensor]:
    """Set the student from the teacher alone, taking z ~ N(bias, weight^2) at every BatchNorm.

    Returns the gains g per block, each `[C]`.
    """
    pair.student.load_state_dict(pair.teacher.state_dict())
    gains = []
    for index, (source, _) in enumerate(pair.blocks):
        fit = fit_gaussian(source.bn.bias, source.bn.weight.abs(), pair.neuron, pair.T)
        _fold(pair, index, source.bn.weight, source.bn.bias, fit)
        gains.append(fit.gain)
    return gains


@torch.no_grad()
def calibrate(pair: Twins, images: Tensor, recipe: Recipe) -> tuple[list[Tensor], list[float]]:
    """Refit the student layer by layer on uint8 images `[N, C, H, W]`, without gradients.

    In the order of the layers, with the spikes that really arrive: correct the weights towards the
    teacher's output (`warm_start.ridge`), re-estimate the BatchNorm statistics over time and batch,
    map the current to the teacher's pre-activation, refit p, q, g against the teacher's ReLU. At
    last correct the weights and the bias of the linear layer.

    Returns the gains g per block, and the relative error left per block.
    """
    ridge = recipe.warm_start.ridge
    x = source_x = to_input(images, recipe.data, pair.teacher.fc.weight.device)
    pair.teacher.eval()
    pair.student.eval()
    goal = pair.teacher.taps(x)
    rng = make_rng(recipe.run.seed, "calibration")
    gains, errors = [], []
    for index, (source, block) in enumerate(pair.blocks):
        if ridge > 0 and index > 0:  # the first layer sees the image itself
            refit_conv(block.conv, _rate(x, pair.T), source.conv(source_x), ridge)
        raw = block.conv(x).unflatten(0, (1 if index == 0 else pair.T, -1))
        fit = _refit_block(pair, index, raw, goal, rng)
        gains.append(fit.gain)
        errors.append(float(fit.error.mean()))
        current = block.bn(raw.flatten(0, 1)).unflatten(0, raw.shape[:2])
        x = pair.student.activations[index](current).flatten(0, 1)
        source_x = goal.activations[index]
    _refit_readout(pair, _rate(x, pair.T).mean((2, 3)), goal.logits, ridge)
    return gains, errors


def _refit_block(
    pair: Twins, index: int, raw: Tensor, goal: Taps, rng: torch.Generator
) -> ChannelFit:
    """Fit BatchNorm, p, q and g of one block to its convolution's output `[T, B, C, H, W]`."""
    source, block = pair.blocks[index]
    mean, std = _renormalise(block.bn, raw)
    z = goal.pre_activations[index]
    weight, bias = torch.std_mean(z, dim=(0, 2, 3), correction=0)
    weight = weight * source.bn.weight.sign()
    places = torch.randperm(z.numel() // z.shape[1], generator=rng)[:SAMPLES].to(raw.device)
    current = (_columns(raw, places) - mean) / std * weight + bias
    relu = _columns(goal.activations[index][None], places)[0]
    start = fit_gaussian(bias, weight.abs(), pair.neuron, pair.T)
    fit = fit_samples(current, relu, start, pair.neuron, pair.T)
    _fold(pair, index, weight, bias, fit)
    return fit


def _fold(pair: Twins, index: int, weight: Tensor, bias: Tensor, fit: ChannelFit) -> None:
    """Give block `index` the affine p (weight u + bias) + q, and its consumer the gain g."""
    bn = pair.blocks[index][1].bn
    bn.weight.copy_(fit.slope * weight)
    bn.bias.copy_(fit.slope * bias + fit.offset)
    source, target = pair.consumer(index)
    target.copy_(source * fit.gain.view(1, -1, *[1] * (source.dim() - 2)))


def _renormalise(bn: nn.BatchNorm2d, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Give a BatchNorm the statistics of `[T, B, C, H, W]`; return mean and deviation it uses."""
    var, mean = torch.var_mean(raw, dim=(0, 1, 3, 4), correction=0)
    bn.load_state_dict(bn.state_dict() | {"running_mean": mean, "running_var": var})
    return mean, (var + bn.eps).sqrt()


def _columns(features: Tensor, places: Tensor) -> Tensor:
    """Return features `[T, B, C, H, W]` at some places of (B, H, W), `[T, N, C]`."""
    steps, _, channels = features.shape[:3]
    return features.permute(0, 1, 3, 4, 2).reshape(steps, -1, channels)[:, places]


def _rate(spikes: Tensor, T: int) -> Tensor:
    """Return the mean over time of `[T*B, C, H, W]`, `[B, C, H, W]`."""
    return spikes.view(T, -1, *spikes.shape[1:]).mean(0)


def _refit_readout(pair: Twins, features: Tensor, goal: Tensor, ridge: float) -> None:
    if ridge > 0:
        refit_linear(pair.student.fc, features, goal, ridge)
    pair.student.fc.bias.add_((goal - pair.student.fc(features)).mean(0))
