"""A data-free start of the spiking twin: the teacher's weights and one affine per channel.

Every neuron gets the current p z + q instead of the pre-activation z, and what it feeds is scaled
by g, so that g rate(p z + q) follows relu(z) (see `rate_fit`). p and q are folded into the
BatchNorms that make z, g into the input channels of what reads the spikes, so that the student
stays a plain network of convolutions, BatchNorms and neurons.

A shortcut has no weights to fold anything into. Where it adds spikes to a current, p = 1 / g of the
neuron they come from; where it adds a current, p is that current's; and neurons whose spikes are
added up share their g. A sum without neurons keeps the teacher's units, p = 1 and q = 0, unless a
shortcut ties its p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron, Recipe
from stars_deploy.distillation.randomness import make_rng
from stars_deploy.distillation.rate_fit import MIN_GAIN, ChannelFit, Pins, fit_gaussian, fit_samples
from stars_deploy.distillation.weight_refit import refit_conv, refit_linear
from stars_deploy.errors import InputError
from stars_deploy.networks.base import IMAGE, Junction, Network, Wire, conv_block, layers_of
from stars_deploy.networks.images import to_input
from stars_deploy.networks.layers import ConvBlock, PadShortcut, PooledLinear, Unnormalised

SAMPLES = 6_144  # places (image, row, column) of a feature map that a fit looks at


@dataclass(frozen=True)
class Twins:
    """A teacher and its spiking twin, wired alike."""

    teacher: Network
    student: Network
    neuron: Neuron
    T: int

    @property
    def junctions(self) -> list[tuple[Junction, Junction]]:
        """Pairs (teacher's, student's) in order."""
        return list(zip(self.teacher.junctions, self.student.junctions, strict=True))


def twins(recipe: Recipe, teacher: Network, student: Network) -> Twins:
    """Return the pair.

    Raises:
        InputError: the networks are not wired alike, or a neuron is not behind a BatchNorm.
    """
    if student.spiking and _outline(teacher) == _outline(student):
        return Twins(teacher, student, recipe.neuron, recipe.student.T)
    raise InputError(
        f"warm_start.enabled: the student ({recipe.student.architecture!r}, {recipe.student.args}) "
        f"is not wired like its teacher ({recipe.teacher.family!r}, {recipe.teacher.args}), or has "
        "neurons without a BatchNorm before them; set warm_start.enabled = false, or use a twin"
    )


def _outline(network: Network) -> list[object]:
    """Return what must agree: sources, shortcuts, shapes of convolutions."""
    outline: list[object] = [network.readout]
    for junction in network.junctions:
        outline.append(junction.carry)
        for wire in junction.wires:
            block = conv_block(wire)
            if isinstance(wire.layer, PooledLinear):
                return [object()]  # equal to nothing
            outline.append((wire.sources, None if block is None else block.conv.weight.shape))
    return outline


class _Gaussian(NamedTuple):
    mean: Tensor  # [C]
    var: Tensor

    def rectified(self) -> _Gaussian:
        """Return the moments of relu(z)."""
        std = self.var.sqrt().clamp(min=1e-12)
        ratio = self.mean / std
        density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
        below = torch.special.ndtr(ratio)
        first = self.mean * below + std * density
        second = (self.mean.square() + self.var) * below + self.mean * std * density
        return _Gaussian(first, (second - first.square()).clamp(min=0))


@torch.no_grad()
def analytic_start(pair: Twins) -> list[Tensor]:
    """Set the student from the teacher alone, taking z ~ N(bias, weight^2) behind every BatchNorm.

    Summands of a pre-activation are taken as independent. Returns the gains g per neuron layer,
    each `[C]`.
    """
    pair.student.load_state_dict(pair.teacher.state_dict(), strict=False)
    fits: list[ChannelFit] = []
    moments: list[_Gaussian] = []
    for index, (source, target) in enumerate(pair.junctions):
        outputs = {
            i: m.rectified() if i in pair.teacher.neurons else m for i, m in enumerate(moments)
        }
        z = _sum_moments(source, moments, outputs)
        pins = _pins(pair, index, fits)
        if index in pair.student.neurons:
            fit = fit_gaussian(z.mean, z.var.sqrt(), pair.neuron, pair.T, pins)
        else:
            fit = _passed_on(z.mean, pins)
        for one, other in _blocks(source, target):
            _scale_inputs(one.block, other.block, other.sources, fits)
        _fold(
            target,
            [(b.block.bn.weight, b.block.bn.bias) for b, _ in _blocks(source, target)],
            fit,
            fits,
        )
        fits.append(fit)
        moments.append(z)
    _scale_readout(pair, fits)
    return [fit.gain for fit in fits]


def _passed_on(z: Tensor, pins: Pins) -> ChannelFit:
    """Return the fit `[C]` of a sum without neurons: what it puts out is p z, so g = 1 / p."""
    slope = torch.ones_like(z)
    if pins.slope is not None:
        slope = torch.where(pins.slope.isnan(), slope, pins.slope)
    return ChannelFit(slope, torch.zeros_like(z), 1 / slope, torch.zeros_like(z))


def _scale_readout(pair: Twins, fits: Sequence[ChannelFit]) -> None:
    """Give the student's last layer the teacher's weights times the gain of what it reads."""
    gain = fits[pair.student.readout[0]].gain
    places = pair.student.fc.in_features // len(gain)  # of each channel, flattened
    pair.student.fc.weight.copy_(pair.teacher.fc.weight * gain.repeat_interleave(places))


class _Place(NamedTuple):
    block: ConvBlock
    sources: tuple[int, ...]


def _blocks(source: Junction, target: Junction) -> list[tuple[_Place, _Place]]:
    """Return the convolutions of a junction, teacher's and student's."""
    found = []
    for one, other in zip(source.wires, target.wires, strict=True):
        a, b = conv_block(one), conv_block(other)
        if a is not None and b is not None:
            found.append((_Place(a, one.sources), _Place(b, other.sources)))
    return found


def _sum_moments(
    junction: Junction, moments: Sequence[_Gaussian], outputs: Mapping[int, _Gaussian]
) -> _Gaussian:
    parts = [] if junction.carry is None else [moments[junction.carry]]
    for wire in junction.wires:
        block, pad = conv_block(wire), _pad(wire)
        if block is not None and isinstance(block.bn, Unnormalised):
            parts.append(_convolved(block.conv, [outputs.get(i) for i in wire.sources]))
            continue
        if block is not None:
            parts.append(_Gaussian(block.bn.bias, block.bn.weight.square()))
            continue
        for index in wire.sources:
            part = outputs[index]
            if pad is not None:
                part = _Gaussian(*(_padded(value, pad, 0.0) for value in part))
            parts.append(part)
    return _Gaussian(sum(p.mean for p in parts), sum(p.var for p in parts))  # type: ignore[arg-type]


def _convolved(conv: nn.Conv2d, inputs: Sequence[_Gaussian | None]) -> _Gaussian:
    """Return the moments behind a convolution of independent inputs; None: a normalised image."""
    size = conv.weight.new_ones(conv.in_channels)
    known = [_Gaussian(0 * size, size) if part is None else part for part in inputs]
    mean, var = sum(part.mean for part in known), sum(part.var for part in known)
    weight = conv.weight.flatten(2)
    first = (weight.sum(2) * _per_input(mean, conv)).sum(1)  # type: ignore[arg-type]
    second = (weight.square().sum(2) * _per_input(var, conv)).sum(1)  # type: ignore[arg-type]
    return _Gaussian(first if conv.bias is None else first + conv.bias, second)


def _per_input(values: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return values per input channel `[C]` as a convolution's weights see them, `[O, C / groups]`.

    Every output channel sees those of its group.
    """
    rows = values.view(conv.groups, 1, -1)
    return rows.expand(-1, conv.out_channels // conv.groups, -1).flatten(0, 1)


def _pad(wire: Wire) -> PadShortcut | None:
    return next((layer for layer in layers_of(wire) if isinstance(layer, PadShortcut)), None)


def _padded(values: Tensor, layer: PadShortcut, filler: float) -> Tensor:
    """Return values per channel `[C]` where a pad shortcut puts them, `filler` elsewhere."""
    wide = values.new_full((layer.outputs,), filler)
    wide[layer.first : layer.first + layer.inputs] = values
    return wide


def _pins(pair: Twins, index: int, fits: Sequence[ChannelFit]) -> Pins:
    """Return what the shortcuts around junction `index` leave no choice about."""
    junction = pair.student.junctions[index]
    slope = None if junction.carry is None else fits[junction.carry].slope
    for wire in junction.wires:
        if conv_block(wire) is not None:
            continue
        gain, pad = fits[wire.sources[0]].gain, _pad(wire)
        # Nothing arrives from a channel that never fires, so it pins nothing.
        tied = torch.where(gain > MIN_GAIN, 1 / gain, torch.full_like(gain, math.nan))
        if pad is not None:
            tied = _padded(tied, pad, math.nan)
        slope = tied if slope is None else torch.where(slope.isnan(), tied, slope)
    return Pins(slope, _shared_gain(pair.student, index, fits))


def _shared_gain(network: Network, index: int, fits: Sequence[ChannelFit]) -> Tensor | None:
    """Return the gain of the first layer whose spikes are added to those of layer `index`.

    Through others, too: where a and b are added, and b and c elsewhere, all three share it.
    """
    wires = [wire.sources for junction in network.junctions for wire in junction.wires]
    group, size = {index}, 0
    while len(group) > size:
        size = len(group)
        group = group.union(*(s for s in (*wires, network.readout) if group.intersection(s)))
    return fits[min(group)].gain if min(group) < index else None


def _scale_inputs(
    source: ConvBlock, target: ConvBlock, sources: tuple[int, ...], fits: Sequence[ChannelFit]
) -> None:
    """Give the student's convolution the teacher's weights times the gain of what it reads."""
    weight = source.conv.weight
    if sources != (IMAGE,):
        weight = weight * _per_input(fits[sources[0]].gain, source.conv)[:, :, None, None]
    target.conv.weight.copy_(weight)


def _fold(
    target: Junction,
    affines: Sequence[tuple[Tensor, Tensor]],
    fit: ChannelFit,
    fits: Sequence[ChannelFit],
) -> None:
    """Make the junction's current p z + q, given weight and bias of z's parts per BatchNorm."""
    offset = fit.offset
    if target.carry is not None:
        offset = offset - fits[target.carry].offset  # the carried current brings its own
    blocks = [block for block in map(conv_block, target.wires) if block is not None]
    for number, (block, (weight, bias)) in enumerate(zip(blocks, affines, strict=True)):
        block.bn.weight.copy_(fit.slope * weight)
        block.bn.bias.copy_(fit.slope * bias + (offset if number == 0 else 0))


@torch.no_grad()
def calibrate(pair: Twins, images: Tensor, recipe: Recipe) -> tuple[list[Tensor], list[float]]:
    """Refit the student layer by layer on uint8 images `[N, C, H, W]`, without gradients.

    In the order of the layers, with the spikes that really arrive: correct the weights towards the
    teacher's output (`warm_start.ridge`), re-estimate the BatchNorm statistics over time and batch,
    map the current to the teacher's pre-activation, refit p, q, g against the teacher's ReLU. At
    last correct the weights and the bias of the linear layer.

    Returns the gains g per layer, and the relative error left per layer.
    """
    pair.teacher.eval()
    pair.student.eval()
    work = _Calibration(pair, to_input(images, recipe.data, pair.teacher.fc.weight.device), recipe)
    for index in range(len(pair.junctions)):
        work.refit(index)
    work.refit_readout()
    return [fit.gain for fit in work.fits], [float(fit.error.mean()) for fit in work.fits]


class _Calibration:
    """The student's spikes and currents so far, beside the teacher's features."""

    def __init__(self, pair: Twins, x: Tensor, recipe: Recipe) -> None:
        self._pair = pair
        self._ridge = recipe.warm_start.ridge
        self._rng = make_rng(recipe.run.seed, "calibration")
        taps = pair.teacher.taps(x)
        self._logits = taps.logits
        self._goals = dict(enumerate(taps.pre_activations))
        self._inputs = {IMAGE: x} | dict(enumerate(taps.activations))  # the teacher's
        self._spikes: dict[int, Tensor] = {IMAGE: x[None]}  # the student's, [T or 1, B, ...]
        self._z: dict[int, Tensor] = {}  # its carried pre-activations, in the teacher's units
        self.fits: list[ChannelFit] = []

    def refit(self, index: int) -> None:
        """Refit junction `index`, and remember what its neurons do."""
        pair = self._pair
        source, target = pair.junctions[index]
        affines, parts = [], []
        for one, other in zip(source.wires, target.wires, strict=True):
            arriving = self._sum(self._spikes, other.sources)
            taught = self._sum(self._inputs, one.sources)
            if conv_block(other) is None:
                gain = self.fits[other.sources[0]].gain.view(-1, 1, 1)
                parts.append(_run_in_time(layers_of(other), arriving * gain))
            else:
                affine, part = self._refit_wire(one, other, taught, arriving)
                affines.append(affine)
                parts.append(part)
        if target.carry is not None:
            parts.append(self._z[target.carry])
        z = _broadcast_sum(parts)
        goal = self._goals.pop(index)
        pins = _pins(pair, index, self.fits)
        if index in pair.student.neurons:
            fit = self._fit(index, z, goal, pins)
        else:
            fit = _passed_on(goal.mean((0, 2, 3)), pins)
        _fold(target, affines, fit, self.fits)
        current = z * fit.slope.view(-1, 1, 1) + fit.offset.view(-1, 1, 1)
        self._spikes[index] = pair.student.activations[index](current)
        if index in pair.student.carried:
            self._z[index] = z
        self.fits.append(fit)
        for spent in pair.student.last_use.get(index, ()):  # T times the size of an image's maps
            del self._spikes[spent], self._inputs[spent]

    def _fit(self, index: int, z: Tensor, goal: Tensor, pins: Pins) -> ChannelFit:
        """Return the fit of junction `index` to the teacher's activation."""
        pair = self._pair
        std, mean = torch.std_mean(goal, dim=(0, 2, 3), correction=0)
        start = fit_gaussian(mean, std, pair.neuron, pair.T, pins)
        places = torch.randperm(goal.numel() // goal.shape[1], generator=self._rng)[:SAMPLES]
        places = places.to(goal.device)
        relu = _columns(self._inputs[index][None], places)[0]
        return fit_samples(_columns(z, places), relu, start, pair.neuron, pair.T, pins)

    def _refit_wire(
        self, one: Wire, other: Wire, taught: Tensor, arriving: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Refit a convolution; return its affine, and its part of z in the teacher's units."""
        source, target = conv_block(one), conv_block(other)
        assert source is not None and target is not None
        _scale_inputs(source, target, other.sources, self.fits)
        before = _run(_around_block(one)[0], taught)
        pools, tail = _around_block(other)
        after = _run_in_time(pools, arriving)
        if self._ridge > 0 and other.sources != (IMAGE,):  # the stem sees the image itself
            refit_conv(target.conv, after.mean(0), source.conv(before), self._ridge)
        raw = target.conv(after.flatten(0, 1)).unflatten(0, after.shape[:2])
        mean, std = _renormalise(target.bn, raw)
        weight, bias = torch.std_mean(source(before), dim=(0, 2, 3), correction=0)
        weight = weight * source.bn.weight.sign()
        scale = (weight / std).view(-1, 1, 1)
        part = (raw - mean.view(-1, 1, 1)) * scale + bias.view(-1, 1, 1)
        return (weight, bias), _run_in_time(tail, part)

    def refit_readout(self) -> None:
        """Refit the linear layer to the teacher's logits."""
        student, teacher = self._pair.student, self._pair.teacher
        _scale_readout(self._pair, self.fits)
        summed = self._sum(self._spikes, student.readout)
        flat = student.head(summed.flatten(0, 1))
        features = flat.reshape(*summed.shape[:2], -1).mean(0)
        if self._ridge > 0:
            refit_linear(student.fc, features, self._logits, self._ridge)
        student.fc.bias.copy_(teacher.fc.bias)
        student.fc.bias.add_((self._logits - student.fc(features)).mean(0))

    @staticmethod
    def _sum(values: Mapping[int, Tensor], sources: Sequence[int]) -> Tensor:
        return _broadcast_sum([values[source] for source in sources])


def _broadcast_sum(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors `[T or 1, B, ...]`."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _around_block(wire: Wire) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers of a wire before and behind its convolution."""
    layers = layers_of(wire)
    place = next(i for i, layer in enumerate(layers) if isinstance(layer, ConvBlock))
    return layers[:place], layers[place + 1 :]


def _run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply layers to `[B, C, H, W]`."""
    for layer in layers:
        x = layer(x)
    return x


def _run_in_time(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply layers to `[T, B, C, H, W]`."""
    moved = _run(layers, x.flatten(0, 1))
    return moved.reshape(*x.shape[:2], *moved.shape[1:])


def _renormalise(bn: nn.BatchNorm2d, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Give a BatchNorm the statistics of `[T, B, C, H, W]`; return mean and deviation it uses."""
    var, mean = torch.var_mean(raw, dim=(0, 1, 3, 4), correction=0)
    bn.load_state_dict(bn.state_dict() | {"running_mean": mean, "running_var": var})
    return mean, (var + bn.eps).sqrt()


def _columns(features: Tensor, places: Tensor) -> Tensor:
    """Return features `[T, B, C, H, W]` at some places of (B, H, W), `[T, N, C]`."""
    steps, _, channels = features.shape[:3]
    return features.permute(0, 1, 3, 4, 2).reshape(steps, -1, channels)[:, places]
