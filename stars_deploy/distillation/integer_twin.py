"""A graph as a trainable network that computes with the integers it will be deployed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron
from stars_deploy.distillation.integer_grid import DECAY_ONE, Grid, Gridded
from stars_deploy.distillation.integer_paths import (
    NEURONS,
    bias_of,
    weight_of,
    with_weight,
)
from stars_deploy.graph.geometry import window_of
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import input_name, output_name, sources, topological_order
from stars_deploy.networks.neuron import spike_train


class Outcome(NamedTuple):
    """Logits [B, K], and the spikes of every neuron node [T, B, ...]."""

    logits: Tensor
    spikes: dict[str, Tensor]


def round_clipped(x: Tensor, high: float) -> Tensor:
    """Return clip(round(x), -high, high); the gradient is that of clip(x, -high, high).

    Half-way values go to the even neighbour, as in NumPy and in the lowering. The derivative of
    the rounding, 0 almost everywhere, is taken as 1 (straight-through: Bengio et al., 2013).
    """
    rounded: Tensor = _StraightThrough.apply(x, high)
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, high: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x.abs() <= high)
        return x.round().clamp_(-high, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (inside,) = ctx.saved_tensors
        return grad * inside, None


class Operator(nn.Module):
    """A convolution, dense layer or Scale whose weights are kept in floats and used as integers.

    Parameters are relative: `weight` to the largest integer, `bias` to the threshold, so that one
    learning rate fits all. Weights that are zero stay zero: they are no synapses.
    """

    mask: Tensor

    def __init__(self, name: str, node: nir.NIRNode, grid: Grid, k: float) -> None:
        super().__init__()
        self.node, self.grid = node, grid
        self._message = k if grid.graded else 1.0  # messages per unit of the input
        self.weight = nn.Parameter(_float32(weight_of(node) / grid.step / grid.high))
        self.bias = nn.Parameter(_float32(bias_of(node) / grid.bias_step / grid.threshold))
        self.has_bias = hasattr(node, "bias")
        self.bias.requires_grad_(self.has_bias)
        self.register_buffer("mask", self.weight.detach() != 0)
        self._window = window_of(name, node) if isinstance(node, nir.Conv2d) else None
        self._groups = int(node.groups) if self._window else 1

    def numbers(self, rounded: bool) -> tuple[Tensor, Tensor]:
        """Return weights and biases in integer units, with gradients; exact integers if rounded."""
        weight = self.weight * self.grid.high * self.mask
        bias = self.bias * self.grid.threshold
        if not rounded:
            return weight, bias
        return round_clipped(weight, self.grid.high), round_clipped(bias, self.grid.bias_high)

    def forward(self, x: Tensor, rounded: bool) -> Tensor:
        """Return W x + b for x [S, B, ...], in the graph's units."""
        weight, bias = self.numbers(rounded)
        weight, bias = weight * (self.grid.step / self._message), bias * self.grid.bias_step
        if isinstance(self.node, nir.Scale):
            return x * weight
        flat = x.flatten(0, 1)
        if self._window is None:
            y = F.linear(flat, weight, bias)
        else:
            window = self._window
            y = F.conv2d(
                flat, weight, bias, window.stride, window.padding, window.dilation, self._groups
            )
        return y.reshape(*x.shape[:2], *y.shape[1:])

    @torch.no_grad()
    def integers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the weights, in the axes of `weight_of`, and the biases [O]."""
        weight, bias = self.numbers(rounded=True)
        return weight.cpu().long().numpy(), bias.cpu().long().numpy()

    def to_node(self, growth: float) -> nir.NIRNode:
        """Return the node with its integers times `growth`, rounded again, exactly on the grid."""
        grid = self.grid
        weight, bias = (np.rint(values * growth) for values in self.integers())
        weight = weight.clip(-grid.high, grid.high) * grid.step
        bias = bias.clip(-grid.bias_high, grid.bias_high) * grid.bias_step
        return with_weight(self.node, weight, bias)


class IntegerTwin(nn.Module):
    """The rewritten graph in float32, in which all its integers and their sums are exact.

    Sums stay below 2^17 units and decays of 1/2 and 1/4 add few binary digits; other decays are
    rounded by the chip as well, but not in the same place.
    """

    def __init__(self, gridded: Gridded, k: float, neuron: Neuron) -> None:
        """Build from `on_grid`; `neuron` gives surrogate and backend, the graph all the rest."""
        super().__init__()
        graph = gridded.graph
        metadata = metadata_of(graph)
        self.gridded, self.graph, self.k, self.T = gridded, graph, k, metadata.T
        self.order = topological_order(graph)
        self.sources = {name: sources(graph, name) for name in self.order}
        self.input, self.output = input_name(graph), output_name(graph)
        self.by_name = {
            name: Operator(name, graph.nodes[name], grid, k) for name, grid in gridded.grids.items()
        }
        self.operators = nn.ModuleList(self.by_name.values())
        self.neurons = {
            name: _neuron(node, neuron, metadata.dt)
            for name, node in graph.nodes.items()
            if isinstance(node, NEURONS)
        }

    def forward(self, messages: Tensor, rounded: bool = True) -> Outcome:
        """Run on messages [B, C, H, W]: k times the normalised image, whole numbers on a chip.

        Args:
            rounded: compute with the integers; else with the floats that they are rounded from.
        """
        values: dict[str, Tensor] = {}
        spikes: dict[str, Tensor] = {}
        for name in self.order:
            if name == self.input:
                values[name] = messages[None]
                continue
            values[name] = self.value(name, self.drive(name, values), rounded)
            if name in self.neurons:
                spikes[name] = values[name]
        return Outcome(values[self.output].mean(0), spikes)

    def drive(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """Return what a node takes: the sum of the values of its sources."""
        parts = [values[source] for source in self.sources[name]]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def value(self, name: str, x: Tensor, rounded: bool) -> Tensor:
        """Return what a node that is no input makes of x [S, B, ...]."""
        node = self.graph.nodes[name]
        if name in self.neurons:
            neuron, factor = self.neurons[name]
            return spike_train(x if factor == 1 else x * factor, self.T, neuron)
        if name in self.by_name:
            made: Tensor = self.by_name[name](x, rounded)
            return made
        if isinstance(node, nir.Flatten):
            return x.flatten(2)
        return x if name == self.output else _pool(name, node, x)

    def integers(self) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return weights and biases per operator."""
        return {name: operator.integers() for name, operator in self.by_name.items()}

    def to_graph(self, growth: float = 1.0) -> nir.NIRGraph:
        """Return the graph with the integers that were trained, exactly on the grid.

        growth: a factor of all integers, to see whether there is room for larger ones.
        """
        nodes = dict(self.graph.nodes)
        for name, operator in self.by_name.items():
            nodes[name] = operator.to_node(growth)
        edges = list(self.graph.edges)
        return nir.NIRGraph(nodes, edges, metadata=self.graph.metadata, type_check=False)


def _neuron(node: nir.LIF | nir.IF, like: Neuron, dt: float) -> tuple[Neuron, float]:
    """Return the settings of a node, and a factor of its current."""
    r, threshold = float(node.r.flat[0]), float(node.v_threshold.flat[0])
    known: dict[str, Any] = {"v_threshold": threshold, "v_reset": 0.0}
    if isinstance(node, nir.IF):
        return like.model_copy(update=known | {"model": "if"}), r
    tau = DECAY_ONE / round(DECAY_ONE * dt / float(node.tau.flat[0]))
    # The kernels know r = 1 and r = tau, so that no product is rounded that need not be.
    folded = r != 1
    known |= {"model": "lif", "tau": tau, "decay_input": not folded}
    return like.model_copy(update=known), r / tau if folded else r


def _pool(name: str, node: nir.NIRNode, x: Tensor) -> Tensor:
    window = window_of(name, node)
    flat = F.avg_pool2d(
        x.flatten(0, 1),
        window.kernel,
        window.stride,
        window.padding,
        divisor_override=1 if isinstance(node, nir.SumPool2d) else None,
    )
    return flat.reshape(*x.shape[:2], *flat.shape[1:])


def messages_of(images: Tensor, table: NDArray[np.int32]) -> Tensor:
    """Return the whole-number messages float32 [B, C, H, W] of uint8 images; `table` [C, 256]."""
    lookup = torch.from_numpy(np.ascontiguousarray(table, np.float32))
    channels = torch.arange(images.shape[1]).view(-1, 1, 1)
    messages = lookup[channels, images.long()]
    return messages.contiguous(memory_format=torch.channels_last)


def _float32(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
