"""A spiking student as a NIR graph, written from the student's own layers.

Batch normalisation is folded into the convolution before it; neurons keep their own gain (r = 1,
or tau in steps where decay_input is off), so weights are those of the trained network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import nir
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stars_deploy.config.recipe import Recipe
from stars_deploy.errors import InputError
from stars_deploy.graph.geometry import node_shape
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import DT, GraphMetadata
from stars_deploy.networks.base import IMAGE, Network, Wire, layers_of
from stars_deploy.networks.layers import ConvBlock, PadShortcut, PooledLinear
from stars_deploy.networks.neuron import SpikingLayer
from stars_deploy.networks.traced import TracedNetwork

Shape = tuple[int, ...]
Array = NDArray[np.float64]


def student_to_nir(student: Network, recipe: Recipe) -> nir.NIRGraph:
    """Return the graph of `student`: normalised image [C, H, W] to the read-out of one step [K].

    Nodes of the n-th activation: conv<n> (before it pool<n>, beside it skip<n>) and lif<n> or
    if<n>; then pool, flatten, fc, output. Several edges into one node add up; a sum without
    activation has no node of its own: what reads it reads its summands (convsum<n> and the like).

    Raises:
        InputError: an ANN, or a layer that NIR cannot express.
    """
    if student.spiking is None:
        raise InputError("only a spiking student has a NIR graph; this network is an ANN")
    emitter = _Emitter(recipe.data.shape)
    names = dict(zip(student.neurons, node_names(student), strict=True))
    for index, junction in enumerate(student.junctions):
        name = names.get(index, f"sum{index + 1}")
        feeders = list(emitter.feeders[junction.carry]) if junction.carry is not None else []
        for position, wire in enumerate(junction.wires):
            feeders += emitter.wire(wire, name, position)
        layer = student.activations[index]
        if isinstance(layer, SpikingLayer):
            emitter.neurons(layer, name, feeders)
        else:
            emitter.sum(feeders)
    emitter.head(student)
    metadata = GraphMetadata(
        T=student.T, mean=recipe.data.mean, std=recipe.data.std, classes=recipe.data.classes
    )
    return nir.NIRGraph(emitter.nodes, emitter.edges, metadata=metadata.to_dict())


class _Emitter:
    """Nodes and edges so far, and where every activation's output is to be found."""

    def __init__(self, shape: Shape) -> None:
        self.nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
        self.edges: list[tuple[str, str]] = []
        self.feeders: list[list[str]] = []  # per junction, the nodes whose sum is its current
        # Per junction, the nodes whose sum is its output.
        self._outputs: dict[int, list[str]] = {IMAGE: ["input"]}
        self._shapes: dict[str, Shape] = {"input": shape}

    def wire(self, wire: Wire, junction: str, position: int) -> list[str]:
        """Write the layers of a wire into the node `junction`; return the nodes that feed it."""
        sources = [node for source in wire.sources for node in self._outputs[source]]
        number = "".join(filter(str.isdigit, junction))
        own = junction if junction.startswith("sum") else number
        for layer in layers_of(wire):
            sources = [self._layer(layer, own, position, sources)]
        return sources

    def _layer(self, layer: nn.Module, own: str, position: int, sources: list[str]) -> str:
        shape = self._shapes[sources[0]]
        name = self._free(f"{'conv' if position == 0 else 'skip'}{own}")
        if isinstance(layer, ConvBlock):
            if layer.dense:
                return self._dense(layer, name, sources)
            node, after = conv_node(layer.conv, layer.bn, shape)
            return self._add(name, node, after, sources)
        if isinstance(layer, PadShortcut):
            node, after = pad_node(layer, shape)
            return self._add(name, node, after, sources)
        if isinstance(layer, nn.AvgPool2d):
            return self._average(layer, self._free(f"pool{own}"), sources)
        if isinstance(layer, PooledLinear):
            return self._pooled_linear(layer.linear, sources, own)
        raise InputError(
            f"junction {own}: a {type(layer).__name__} layer cannot be written as NIR; "
            "a student with average pooling can"
        )

    def _free(self, name: str) -> str:
        """Return a node name that is not taken: a junction may add several wires."""
        number, free = 2, name
        while free in self.nodes:
            number, free = number + 1, f"{name}_{number}"
        return free

    def neurons(self, layer: SpikingLayer, name: str, feeders: Sequence[str]) -> None:
        """Write the neurons that the sum of `feeders` drives."""
        shape = self._shapes[feeders[0]]
        node = neuron_node(layer, shape)
        self._outputs[len(self.feeders)] = [self._add(name, node, shape, feeders)]
        self.feeders.append(list(feeders))

    def sum(self, feeders: Sequence[str]) -> None:
        """Remember a sum without activation: readers read its summands."""
        self._outputs[len(self.feeders)] = list(feeders)
        self.feeders.append(list(feeders))

    def head(self, student: Network) -> None:
        """Write pooling, flatten, linear layer and output."""
        sources = [node for index in student.readout for node in self._outputs[index]]
        fc = student.fc
        if isinstance(student, TracedNetwork):
            for pool in student.pools:
                assert isinstance(pool, nn.AvgPool2d)  # of a spiking network
                sources = [self._average(pool, self._free("pool"), sources)]
            weight, bias = _numpy(fc.weight), _numpy(fc.bias)
            last = [self._affine("fc", weight, bias, self._flat("flatten", sources))]
        else:
            last = [self._pooled_linear(fc, sources, "")]
        output = nir.Output({"output": np.array([fc.out_features])})
        self._add("output", output, (fc.out_features,), last)

    def _average(self, layer: nn.AvgPool2d, name: str, sources: list[str]) -> str:
        shape = self._shapes[sources[0]]
        node = nir.AvgPool2d(
            kernel_size=np.array(_pair(layer.kernel_size)),
            stride=np.array(_pair(layer.stride)),
            padding=np.array(_pair(layer.padding)),
        )
        return self._add(name, node, node_shape(name, node, shape), sources)

    def _dense(self, block: ConvBlock, name: str, sources: list[str]) -> str:
        """Write a convolution over a whole map as a linear layer on its flattened values."""
        kernel, bias = fold_batch_norm(block.conv, block.bn)
        flat = self._flat(self._free(name.replace("conv", "flatten")), sources)
        return self._affine(name, kernel.reshape(len(kernel), -1), bias, flat)

    def _flat(self, name: str, sources: list[str]) -> list[str]:
        shape = self._shapes[sources[0]]
        if len(shape) == 1:
            return sources
        node = nir.Flatten(input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)
        return [self._add(name, node, (math.prod(shape),), sources)]

    def _affine(self, name: str, weight: Array, bias: Array, sources: list[str]) -> str:
        node = nir.Affine(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
        return self._add(name, node, (len(bias),), sources)

    def _pooled_linear(self, linear: nn.Linear, sources: list[str], suffix: str) -> str:
        shape = self._shapes[sources[0]]
        if len(shape) == 3:
            pool = self._add(f"pool{suffix}", _pool(shape[1:]), (shape[0], 1, 1), sources)
            sources = self._flat(f"flatten{suffix}", [pool])
        return self._affine(f"fc{suffix}", _numpy(linear.weight), _numpy(linear.bias), sources)

    def _add(self, name: str, node: nir.NIRNode, shape: Shape, sources: Sequence[str]) -> str:
        self.nodes[name], self._shapes[name] = node, shape
        self.edges += [(source, name) for source in sources]
        return name


def fold_batch_norm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Array, Array]:
    """Return kernel [O, I, KH, KW] (groups expanded) and bias [O] of bn(conv(x)) in eval mode.

    W' = W s, b' = (b - mean) s + beta with s = gamma / sqrt(var + eps), in float64.
    """
    mean, var = _numpy(bn.running_mean), _numpy(bn.running_var)
    gamma = _numpy(bn.weight) if bn.affine else np.ones_like(mean)
    beta = _numpy(bn.bias) if bn.affine else np.zeros_like(mean)
    scale = gamma / np.sqrt(var + bn.eps)
    bias = _numpy(conv.bias) if conv.bias is not None else np.zeros_like(mean)
    kernel = expand_kernel(_numpy(conv.weight), conv.groups) * scale[:, None, None, None]
    return kernel, (bias - mean) * scale + beta


def conv_node(conv: nn.Conv2d, bn: nn.BatchNorm2d, shape: Shape) -> tuple[nir.Conv2d, Shape]:
    """Return bn(conv(x)) for input `shape` [C, H, W] as one node, and the shape of its output."""
    kernel, bias = fold_batch_norm(conv, bn)
    stride, padding, dilation = _pair(conv.stride), _pair(conv.padding), _pair(conv.dilation)
    size = tuple(
        (shape[1 + i] + 2 * padding[i] - dilation[i] * (kernel.shape[2 + i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    )
    node = nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=kernel.astype(np.float32),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=1,
        bias=bias.astype(np.float32),
    )
    return node, (len(bias), *size)


def pad_node(layer: PadShortcut, shape: Shape) -> tuple[nir.Conv2d, Shape]:
    """Return an option-A shortcut as a 1x1 convolution with stride, and its output's shape."""
    kernel = np.zeros((layer.outputs, layer.inputs, 1, 1), np.float32)
    index = np.arange(layer.inputs)
    kernel[layer.first + index, index] = 1
    size = tuple((length - 1) // layer.stride + 1 for length in shape[1:])
    node = nir.Conv2d(
        input_shape=(shape[1], shape[2]),
        weight=kernel,
        stride=(layer.stride, layer.stride),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        bias=np.zeros(layer.outputs, np.float32),
    )
    return node, (layer.outputs, *size)


def neuron_node(layer: SpikingLayer, shape: Shape) -> nir.LIF | nir.IF:
    """Return a layer of `shape` neurons; float64, so that tau / dt gives tau in steps back."""
    neuron = layer.neuron

    def full(value: float) -> Array:
        return np.full(shape, value, np.float64)

    if neuron.model == "if":
        return nir.IF(
            r=full(1.0), v_threshold=full(neuron.v_threshold), v_reset=full(neuron.v_reset)
        )
    return nir.LIF(
        tau=full(layer.tau * DT),
        r=full(1.0 if neuron.decay_input else layer.tau),
        v_leak=full(neuron.v_reset),
        v_threshold=full(neuron.v_threshold),
        v_reset=full(neuron.v_reset),
    )


def _pool(window: Sequence[int]) -> nir.AvgPool2d:
    size = np.array(window)
    return nir.AvgPool2d(kernel_size=size, stride=size, padding=np.array([0, 0]))


def node_names(student: Network) -> list[str]:
    """Return the graph's names of the student's neurons, in the order of `student.neurons`."""
    return [f"{_prefix(student)}{n}" for n in range(1, len(student.neurons) + 1)]


def _prefix(student: Network) -> str:
    is_if = student.spiking is not None and student.spiking.neuron.model == "if"
    return "if" if is_if else "lif"


def _pair(value: int | str | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, str):
        raise InputError(f"convolution padding {value!r} cannot be written as NIR; give numbers")
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _numpy(tensor: Tensor | None) -> Array:
    if tensor is None:
        raise InputError("a BatchNorm layer without running statistics cannot be folded")
    return tensor.detach().cpu().double().numpy()
