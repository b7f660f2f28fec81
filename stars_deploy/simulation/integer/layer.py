"""One population of the integer engine as torch tensors: number format, layouts, weighted sums.

Integers are held in float32 or float64 only where every result, partial sum and product is an
integer below 2^24 or 2^53: then floating point is exact, whatever the order of summation.

Messages are kept negated (-1 for a spike, -q for a graded message). Then a convolution with the
weights as they are gives -a, from which the fast neuron update needs no further sign change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from stars_deploy.errors import EngineError
from stars_deploy.simulation.integer.bounds import Reach, reach
from stars_deploy.simulation.integer.fields import Integers
from stars_deploy.simulation.integer.network import INPUT, Connection, IntegerNetwork, Population

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLOAT32_EXACT, FLOAT64_EXACT = 1 << 24, 1 << 53
STATE_LIMIT = 1 << 23  # |u| and |v| below it neither wrap nor clip
NO_MEMORY = 4095  # du of a current that is the activation of the step alone


class Rule(Enum):
    """How the neurons of a layer are updated; all give the same integers."""

    SHIFTED = "float32, distance to the threshold, no rounding in the decay"
    STEPWISE = "every operation of the equations in turn"
    SUMMED = "a read-out that adds up its activations"


@dataclass(frozen=True)
class Synapse:
    """A connection with its weights times 64 (state units) and a constant per output channel.

    `diagonal` [C, 1, 1] stands for the weights where every neuron hears its own position only, as
    in relays and identity shortcuts: a product does what a convolution would.
    Weights of the host are as they are, in float64.
    """

    connection: Connection
    weight: Tensor
    constant: Tensor | None
    diagonal: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """A population and its synapses, and what is known about their ranges."""

    population: Population
    synapses: tuple[Synapse, ...]
    rule: Rule
    dtype: torch.dtype
    offset: Tensor | None  # added to the weighted sums: biases and, when SHIFTED, the threshold
    contained: bool  # proved: no wrap, no clip
    emulate: bool  # otherwise: wrap and clip as Lava does instead of raising
    truncates: bool  # whether the voltage decay can leave a fraction to be cut
    accumulates: bool  # a read-out whose voltages after every step are added up


def prepare(network: IntegerNetwork, population: Population, device: str, emulate: bool) -> Layer:
    """Choose number format, update rule and layouts of a population from its worst case."""
    import torch

    limits = reach(network, population)
    entering = network.into(population.name)
    hosted = any(item.shift is not None for item in entering)
    if limits.activation * 64 * network.T >= FLOAT64_EXACT:
        raise EngineError(f"{population.name}: sums of weighted messages exceed 2^53")
    contained = limits.state < STATE_LIMIT and (population.spiking or limits.below_threshold)
    truncates = _truncates(population, network.T, hosted)
    single = contained and _binary_decay(population) and limits.activation * 64 < FLOAT32_EXACT
    rule = _rule(network, population, limits) if single and not truncates else Rule.STEPWISE
    dtype = torch.float32 if single else torch.float64
    offset = _offset(population, rule)
    constant = None
    if contained:  # a wrap would belong to each connection alone
        entering = _in_parallel(entering)
    # A matrix into a map has a row per neuron, a convolution one per channel.
    per_channel = entering[0].kind == "conv" or len(population.shape) == 1
    fused = rule is Rule.SHIFTED and per_channel and not hosted
    if fused and offset.shape[1:] == (1,) * (offset.ndim - 1):
        constant = _tensor(offset.reshape(-1), dtype, device)  # one value per channel
    sign = -1 if rule is Rule.STEPWISE else 1
    synapses = [_synapse(item, network, sign, dtype, device) for item in entering]
    if constant is not None:
        synapses[0] = replace(synapses[0], constant=constant)
    return Layer(
        population=population,
        synapses=tuple(synapses),
        rule=rule,
        dtype=dtype,
        offset=_tensor(offset, dtype, device) if constant is None and offset.any() else None,
        contained=contained,
        emulate=emulate,
        truncates=truncates,
        accumulates=population.name == network.readout and network.readout_kind == "potentials",
    )


def _in_parallel(connections: list[Connection]) -> list[Connection]:
    """Add up connections that differ in their weights alone; whole kernels come first."""
    found: dict[tuple[object, ...], Connection] = {}
    for item in connections:
        geometry = (item.stride, item.padding, item.dilation, item.groups)
        alone = None if item.shift is None else item.name  # sums of the host are rounded singly
        key = (item.source, item.kind, item.graded, item.weight.shape, alone, *geometry)
        if key in found:
            item = replace(item, weight=found[key].weight + item.weight)
        found[key] = item
    return sorted(found.values(), key=lambda item: _diagonal(item) is not None)


def _diagonal(item: Connection) -> Integers | None:
    """Return the weight of each channel [C] where it hears nothing but itself, else None."""
    outputs, inputs = item.weight.shape[:2]
    point = item.weight.shape[2:] == (1, 1) and item.stride == (1, 1) and item.padding == (0, 0)
    if item.kind != "conv" or not point or outputs != item.groups * inputs:
        return None
    blocks = item.weight.reshape(item.groups, inputs, inputs)
    own = blocks.diagonal(axis1=1, axis2=2)
    return own.reshape(-1) if np.count_nonzero(own) == np.count_nonzero(blocks) else None


def _binary_decay(population: Population) -> bool:
    """Whether u has no memory and v decays by 1, 1/2, 1/4, ... or 0: exact in float32."""
    keep = 4096 - population.dv
    return population.du == NO_MEMORY and keep & (keep - 1) == 0


def _rule(network: IntegerNetwork, population: Population, limits: Reach) -> Rule:
    if not population.spiking and population.dv == 0 and network.readout_kind == "potential":
        hidden = all(item.source != INPUT for item in network.into(population.name))
        if hidden and limits.activation * 64 * network.T < FLOAT32_EXACT:
            return Rule.SUMMED
    largest = 64 * limits.activation + limits.bias + 2 * (population.vth << 6) + limits.state
    whole = (population.vth << 6) * (4096 - population.dv) % 4096 == 0  # decayed threshold
    return Rule.SHIFTED if whole and largest < FLOAT32_EXACT else Rule.STEPWISE


def _offset(population: Population, rule: Rule) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    bias = np.zeros((1,) * len(population.shape), np.int64)
    if population.bias is not None:
        bias = population.bias
    if rule is not Rule.SHIFTED:
        return bias
    threshold = population.vth << 6
    shape = (population.shape[0], *bias.shape[1:])
    return np.broadcast_to(threshold - threshold * (4096 - population.dv) // 4096 - bias, shape)


def _truncates(population: Population, steps: int, hosted: bool) -> bool:
    """Whether T - 1 decays of a voltage that starts as a multiple of 2^k can leave a fraction."""
    keep = 4096 - population.dv
    if keep in (0, 4096):
        return False
    if population.du != NO_MEMORY or keep & (keep - 1):
        return True
    zeros = min(6, population.bias_exp) if hosted else 6  # a << 6; the bias may be finer
    if population.bias is not None:
        bits = int(np.bitwise_or.reduce(population.bias, axis=None))
        while bits % (1 << zeros):
            zeros -= 1
    return (steps - 1) * (12 - (keep.bit_length() - 1)) > zeros


def _synapse(
    item: Connection, network: IntegerNetwork, sign: int, dtype: torch.dtype, device: str
) -> Synapse:
    import torch

    if item.shift is None:
        weight = _tensor(item.weight * (64 * sign), dtype, device)
    else:
        weight = _tensor(item.weight, torch.float64, device)
    if item.kind == "conv":
        own = None if item.shift is not None else _diagonal(item)
        diagonal = None if own is None else _tensor(own * (64 * sign), dtype, device)[:, None, None]
        weight = weight.contiguous(memory_format=torch.channels_last)
        return Synapse(item, weight, None, diagonal)
    shape = (
        network.input_shape
        if item.source == INPUT
        else next(p.shape for p in network.populations if p.name == item.source)
    )
    if len(shape) == 3:  # activity lies in memory as H, W, C: turn the columns, not the activity
        weight = weight.reshape(-1, *shape).permute(0, 2, 3, 1).flatten(1)
    return Synapse(item, weight.contiguous(), None)


def _tensor(values: object, dtype: torch.dtype, device: str) -> Tensor:
    import torch

    return torch.tensor(np.asarray(values), dtype=dtype, device=device)


def host_bias(layer: Layer, messages: Mapping[str, Tensor]) -> Tensor | None:
    """Return what the host adds to B for each image, [1, B, ...]; None where it adds nothing.

    c << bias_exp, c = (S + (2^shift >> 1)) >> shift with S the sums of table values; S is below
    2^52, so that float64 holds it and the quotient exactly.
    """
    import torch

    total: Tensor | None = None
    for synapse in layer.synapses:
        shift = synapse.connection.shift
        if shift is None:
            continue
        message = messages[synapse.connection.source].flatten(0, 1)
        sums = -_weighted(synapse, message.to(torch.float64))
        part = sums.add_((1 << shift) >> 1).div_(1 << shift).floor_()
        part = part.reshape(1, -1, *layer.population.shape)
        total = part if total is None else total + part
    return None if total is None else total.mul_(1 << layer.population.bias_exp).to(layer.dtype)


def weighted_sums(
    layer: Layer, messages: Mapping[str, Tensor], host: Tensor | None = None
) -> Tensor:
    """Return the sums times 64, [T, B, ...], or [1, B, ...] where they are the same every step.

    STEPWISE: a << 6. SHIFTED: -(a << 6) plus the layer's constants, minus what `host_bias`
    returned. SUMMED: -(a << 6) over T.
    """
    import torch

    total: Tensor | None = None
    for synapse in layer.synapses:
        if synapse.connection.shift is not None:
            continue
        message = messages[synapse.connection.source]
        if layer.rule is Rule.SUMMED and len(message) > 1:
            message = message.sum(dim=0, keepdim=True)
        steps, count = message.shape[:2]
        part = _weighted(synapse, message.flatten(0, 1).to(layer.dtype))
        if part.ndim == 2:
            part = part.reshape(-1, *layer.population.shape)  # a matrix may end in a map
        if layer.emulate and not layer.contained and synapse.connection.kind == "conv":
            part = _wrapped(part, 64 * STATE_LIMIT)  # the 24-bit output buffer of Lava's Conv
        part = part.reshape(steps, count, *part.shape[1:])
        if total is None:
            total = part
        elif total.shape == part.shape:
            total = total.add_(part)
        else:
            total = total + part
    if total is None:
        if host is None:
            raise EngineError(f"{layer.population.name}: no connection ends here")
        total = torch.zeros_like(host)
    if layer.rule is Rule.SHIFTED and host is not None:
        total = total - host
    if layer.rule is Rule.SHIFTED and layer.offset is not None:
        total = total.add_(layer.offset)
    return total


def _weighted(synapse: Synapse, message: Tensor) -> Tensor:
    import torch
    import torch.nn.functional as F

    item = synapse.connection
    if not item.graded and item.shift is None and item.source == INPUT:
        message = -(message != 0).to(message.dtype)
    if item.kind == "dense":
        if message.ndim == 4:
            message = message.permute(0, 2, 3, 1)
        return F.linear(message.flatten(1), synapse.weight, synapse.constant)
    if synapse.diagonal is not None:
        own = message * synapse.diagonal
        return own if synapse.constant is None else own.add_(synapse.constant[:, None, None])
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if onednn and message.device.type == "cpu":
        return F.conv2d(
            message,
            synapse.weight,
            synapse.constant,
            item.stride,
            item.padding,
            item.dilation,
            item.groups,
        )
    return unfolded_convolution(synapse, message)


def unfolded_convolution(synapse: Synapse, message: Tensor) -> Tensor:
    """Convolve by a matrix product, which adds products of integers and nothing else.

    cuDNN and NNPACK may choose Winograd or FFT algorithms, whose fractions round; oneDNN is asked
    by torch for direct convolution.
    """
    import torch.nn.functional as F

    item, weight = synapse.connection, synapse.weight
    outputs, count, kernel, size = len(weight), len(message), weight.shape[2:], message.shape[2:]
    columns = F.unfold(message, (kernel[0], kernel[1]), item.dilation, item.padding, item.stride)
    columns = columns.reshape(count, item.groups, -1, columns.shape[-1])
    result = weight.reshape(item.groups, outputs // item.groups, -1) @ columns
    height = (size[0] + 2 * item.padding[0] - item.dilation[0] * (kernel[0] - 1) - 1) // (
        item.stride[0]
    ) + 1
    result = result.reshape(count, outputs, height, -1)
    return result if synapse.constant is None else result + synapse.constant[:, None, None]


def _wrapped(value: Tensor, half: int) -> Tensor:
    """Two's complement wrap into [-half, half)."""
    return (value + half).remainder(2 * half) - half
