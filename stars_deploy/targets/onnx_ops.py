"""NIR nodes as ONNX operators, written with onnx.helper only: small, deterministic, torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import Shape, window_of
from stars_deploy.graph.groups import compact_kernel, expand_kernel, find_groups
from stars_deploy.targets.onnx_int8 import quantise_rows
from stars_deploy.targets.onnx_options import Weights

Array = NDArray[Any]


@dataclass
class Builder:
    """ONNX nodes and constants collected so far; values are referred to by name."""

    weights: Weights = "float32"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append one operator and return the name of its output."""
        node = helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        """Store a constant once and return its name."""
        if name not in self.constants:
            # numpy.ascontiguousarray would turn a scalar into a vector.
            with np.errstate(over="ignore"):
                array = np.array(values, dtype=dtype, order="C")
            if not np.isfinite(array).all():
                raise GraphError(f"{name}: a value exceeds float32; rescale this layer")
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, values: Array) -> str:
        """Store the weights [O, ...] of an operator once; int8 ones are scaled back when read."""
        if self.weights == "float32":
            return self.constant(name, values)
        codes = f"{name}.int8"
        if codes not in self.constants:
            q, scale = quantise_rows(np.asarray(values, np.float64))
            parts = [self.constant(codes, q, np.int8), self.constant(f"{name}.scale", scale)]
            self.add("DequantizeLinear", parts, name, axis=0)
        return name


def emit_operator(
    to: Builder, name: str, node: nir.NIRNode, x: str, output: str, shape: Shape
) -> str:
    """Append a stateless node on value `x`; `shape` is its output shape without the batch."""
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        return _convolution(to, name, node, x, output)
    if isinstance(node, nir.AvgPool2d):
        return to.add("AveragePool", [x], output, count_include_pad=1, **_window(name, node))
    if isinstance(node, nir.SumPool2d):
        kernel = window_of(name, node).kernel
        ones = to.constant(f"{name}.ones", np.ones((shape[0], 1, *kernel)))
        return to.add("Conv", [x, ones], output, group=shape[0], **_window(name, node))
    if isinstance(node, nir.Affine):
        weight, bias = to.weight(f"{name}.weight", node.weight), f"{name}.bias"
        return to.add("Gemm", [x, weight, to.constant(bias, node.bias)], output, transB=1)
    if isinstance(node, nir.Linear):
        return to.add("Gemm", [x, to.weight(f"{name}.weight", node.weight)], output, transB=1)
    if isinstance(node, nir.Scale):
        return to.add("Mul", [x, to.constant(f"{name}.scale", node.scale)], output)
    if isinstance(node, nir.Flatten):
        target = to.constant(f"{name}.shape", [0, *shape], np.int64)
        return to.add("Reshape", [x, target], output)
    raise GraphError(f"{name}: node type {type(node).__name__} has no ONNX form")


def _window(name: str, node: nir.NIRNode) -> dict[str, Any]:
    window = window_of(name, node)
    return {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        "pads": (*window.padding, *window.padding),
    }


def _convolution(to: Builder, name: str, node: nir.NIRNode, x: str, output: str) -> str:
    dense = expand_kernel(np.asarray(node.weight), int(node.groups))
    groups = find_groups(dense)
    weight = to.weight(f"{name}.weight", compact_kernel(dense, groups))
    bias = to.constant(f"{name}.bias", node.bias)
    dilations = window_of(name, node).dilation
    window = _window(name, node)
    return to.add("Conv", [x, weight, bias], output, group=groups, dilations=dilations, **window)


def emit_potential(
    to: Builder, name: str, node: nir.NIRNode, x: str, v: str, step: str, dt: float
) -> str:
    """Append H = V + (r X - (V - v_leak)) / tau_steps (IF: V + r X; Threshold: X)."""
    if isinstance(node, nir.Threshold):
        return x
    if (np.asarray(node.r) != 1).any():
        x = to.add("Mul", [x, parameter(to, f"{name}.r", node.r)], f"{name}.input{step}")
    if isinstance(node, nir.IF):
        return to.add("Add", [v, x], f"{name}.h{step}")
    leak = parameter(to, f"{name}.v_leak", node.v_leak)
    tau = parameter(to, f"{name}.tau", np.asarray(node.tau, np.float64) / dt)
    above = to.add("Sub", [v, leak], f"{name}.above_leak{step}")
    drive = to.add("Sub", [x, above], f"{name}.drive{step}")
    change = to.add("Div", [drive, tau], f"{name}.change{step}")
    return to.add("Add", [v, change], f"{name}.h{step}")


def emit_spike(to: Builder, name: str, node: nir.NIRNode, h: str, step: str) -> str:
    """Append the strict comparison H > v_threshold; a boolean value."""
    values = node.threshold if isinstance(node, nir.Threshold) else node.v_threshold
    threshold = parameter(to, f"{name}.v_threshold", values)
    return to.add("Greater", [h, threshold], f"{name}.fires{step}")


def emit_reset(to: Builder, name: str, node: nir.NIRNode, fires: str, h: str, output: str) -> str:
    """Append V = v_reset where the neuron fired, else H."""
    reset = parameter(to, f"{name}.v_reset", node.v_reset)
    return to.add("Where", [fires, reset, h], output)


def initial_state(node: nir.NIRNode) -> Array:
    """Return V_0: v_reset of spiking neurons, v_leak of leaky integrators."""
    return np.asarray(node.v_leak if isinstance(node, nir.LI) else node.v_reset, np.float64)


def parameter(to: Builder, name: str, values: Any) -> str:
    """Store a neuron parameter, as a scalar where all neurons share it."""
    array = np.asarray(values, np.float64)
    uniform = bool((array == array.flat[0]).all())
    return to.constant(name, array.flat[0] if uniform else array)


def declare(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    """Declare an input or output [N, ...] with dynamic batch."""
    return helper.make_tensor_value_info(name, kind, ["N", *(int(n) for n in shape)])


def emit_normalised(to: Builder, mean: Sequence[float], std: Sequence[float], axes: int) -> str:
    """Append (image - mean) / std, per channel."""
    shape = (-1, *(1,) * (axes - 1))
    centre = to.constant("image.mean", np.reshape(mean, shape))
    spread = to.constant("image.std", np.reshape(std, shape))
    centred = to.add("Sub", ["image", centre], "image.centred")
    return to.add("Div", [centred, spread], "image.normalised")
