"""A spiking student as a NIR graph, written from the student's own layers.

Batch normalisation is folded into the convolution before it; neurons keep their own gain (r = 1,
or tau in steps where decay_input is off), so weights are those of the trained network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import cast

import nir
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron, Recipe
from stars_deploy.errors import InputError
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import DT, GraphMetadata
from stars_deploy.networks.base import Network
from stars_deploy.networks.cnn import Cnn, ConvBlock

Shape = tuple[int, ...]
Array = NDArray[np.float64]


def student_to_nir(student: Network, recipe: Recipe) -> nir.NIRGraph:
    """Return the graph of `student`: normalised image [C, H, W] to the read-out of one step [K].

    Nodes of a chain: input, conv1, lif1, conv2, ..., pool, flatten, fc, output.

    Raises:
        InputError: an ANN, or a network that has no rule here.
    """
    if student.spiking is None:
        raise InputError("only a spiking student has a NIR graph; this network is an ANN")
    emit = EMITTERS.get(type(student))
    if emit is None:
        raise InputError(f"networks of type {type(student).__name__} cannot be written as NIR")
    nodes, edges = emit(student, recipe.data.shape, student.spiking.neuron)
    metadata = GraphMetadata(
        T=student.T, mean=recipe.data.mean, std=recipe.data.std, classes=recipe.data.classes
    )
    return nir.NIRGraph(nodes, edges, metadata=metadata.to_dict())


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


def lif_node(neuron: Neuron, shape: Shape) -> nir.LIF:
    """Return a layer of `shape` neurons; float64, so that tau / dt gives tau in steps back."""

    def full(value: float) -> Array:
        return np.full(shape, value, np.float64)

    return nir.LIF(
        tau=full(neuron.tau * DT),
        r=full(1.0 if neuron.decay_input else neuron.tau),
        v_leak=full(neuron.v_reset),
        v_threshold=full(neuron.v_threshold),
        v_reset=full(neuron.v_reset),
    )


Emitted = tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]


def _cnn(student: Cnn, shape: Shape, neuron: Neuron) -> Emitted:
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": np.array(shape)})}
    for number, block in enumerate(cast(list[ConvBlock], student.blocks), start=1):
        nodes[f"conv{number}"], shape = conv_node(block.conv, block.bn, shape)
        nodes[f"lif{number}"] = lif_node(neuron, shape)
    nodes |= _readout(student.fc, shape)
    names = list(nodes)
    return nodes, list(itertools.pairwise(names))


def _readout(fc: nn.Linear, shape: Shape) -> dict[str, nir.NIRNode]:
    """Return global average pooling, flatten, linear layer and output."""
    window = np.array(shape[1:])
    return {
        "pool": nir.AvgPool2d(kernel_size=window, stride=window, padding=np.array([0, 0])),
        "flatten": nir.Flatten(
            input_type={"input": np.array([shape[0], 1, 1])}, start_dim=0, end_dim=-1
        ),
        "fc": nir.Affine(
            weight=_numpy(fc.weight).astype(np.float32), bias=_numpy(fc.bias).astype(np.float32)
        ),
        "output": nir.Output({"output": np.array([fc.out_features])}),
    }


EMITTERS: dict[type[Network], Callable[..., Emitted]] = {Cnn: _cnn}


def node_names(student: Network) -> list[str]:
    """Return the graph's names of the student's LIF layers, in the order of its taps."""
    return [f"lif{number}" for number in range(1, len(student.activations) + 1)]


def _pair(value: int | str | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, str):
        raise InputError(f"convolution padding {value!r} cannot be written as NIR; give numbers")
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _numpy(tensor: Tensor | None) -> Array:
    if tensor is None:
        raise InputError("a BatchNorm layer without running statistics cannot be folded")
    return tensor.detach().cpu().double().numpy()
