"""What every operator of a traced module becomes: torch's arguments in, a Value out.

A handler has the signature of the torch function it stands for, behind the place of the call and
the wiring; Python itself binds the arguments that a person's code gave.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from stars_deploy.networks.traced import Layer
from stars_deploy.networks.tracing.wiring import ADVICE, Value, Wiring, refuse


class Call(NamedTuple):
    """Where an operator stands, and what junctions are made in."""

    place: str
    wiring: Wiring


def pair(value: Any) -> tuple[int, int]:
    """Return a size for both axes."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def conv2d(call: Call, x: Value, conv: nn.Conv2d) -> Value:
    """A convolution; `padding` words and modes other than zeros are resolved or refused."""
    if conv.padding_mode != "zeros" and conv.padding not in (0, (0, 0)):
        refuse(call.place, f"padding_mode {conv.padding_mode!r} reads other than zeros")
    kernel, dilation = pair(conv.kernel_size), pair(conv.dilation)
    padding = conv.padding
    if padding == "same":
        around = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(total % 2 for total in around):
            refuse(call.place, "padding 'same' of an even kernel differs from side to side")
        padding = (around[0] // 2, around[1] // 2)
    if kernel[0] != kernel[1]:
        refuse(call.place, f"kernel {kernel}: NIR readers take square kernels only")
    name = call.wiring.name(call.place)
    call.wiring.keep(name, {"conv.weight": conv.weight, "conv.bias": conv.bias})
    layer = Layer(
        kind="conv",
        name=name,
        inputs=conv.in_channels,
        outputs=conv.out_channels,
        kernel=kernel,
        stride=pair(conv.stride),
        padding=(0, 0) if isinstance(padding, str) else pair(padding),
        dilation=dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        norm=False,
    )
    return call.wiring.extended(x, layer, call.place)


def linear(call: Call, x: Value, module: nn.Linear) -> Value:
    """A linear layer on flattened values: a convolution whose kernel covers the map."""
    channels, height, width = x.shape
    if module.in_features != channels * height * width or (height * width > 1 and not x.flat):
        refuse(call.place, f"a linear layer along another axis than all of {x.shape}")
    name = call.wiring.name(call.place)
    weight = module.weight.detach().reshape(module.out_features, channels, height, width)
    call.wiring.keep(name, {"conv.weight": weight, "conv.bias": module.bias})
    layer = Layer(
        kind="conv",
        name=name,
        inputs=channels,
        outputs=module.out_features,
        kernel=(height, width),
        bias=module.bias is not None,
        norm=False,
        dense=True,
    )
    return call.wiring.extended(x, layer, call.place)


def batch_norm(
    call: Call, x: Value, bn: nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm
) -> Value:
    """A BatchNorm joins the convolution before it, or gets one that changes nothing."""
    if bn.running_mean is None or bn.running_var is None:
        refuse(call.place, "a BatchNorm without running statistics", "train with them")
    if not bn.eps > 0:
        refuse(call.place, f"a BatchNorm of eps {bn.eps:g}", "expected a positive number, 1e-5")
    if x.flat and x.shape[1:] != (1, 1):
        refuse(call.place, "a BatchNorm of flattened maps", "put it before the flattening")
    conv = x.last
    if conv is None or conv.kind != "conv" or conv.norm:
        conv = call.wiring.pointwise(x.shape[0], call.place, bn.eps)
        x = call.wiring.extended(x, conv, call.place)
    else:
        conv = conv.model_copy(update={"norm": True, "eps": bn.eps})
        x = x.ending(conv)
    ones, zeros = torch.ones(bn.num_features), torch.zeros(bn.num_features)
    call.wiring.keep(
        conv.name,
        {
            "bn.weight": ones if bn.weight is None else bn.weight,
            "bn.bias": zeros if bn.bias is None else bn.bias,
            "bn.running_mean": bn.running_mean,
            "bn.running_var": bn.running_var,
        },
    )
    return x


def relu(
    call: Call, x: Value, slope: float = 0.0, limit: float | None = None, inplace: bool = False
) -> Value:
    """An activation of the ReLU family: min(max(z, slope z), limit)."""
    if not 0 <= slope < 1:
        refuse(call.place, f"a leaky ReLU of slope {slope:g}; expected 0 <= slope < 1", USE_RELU)
    if not slope and limit is None and _never_negative(call.wiring, x):
        return x
    if slope:
        call.wiring.note(
            f"{call.place}: a leaky ReLU becomes a neuron, whose rate is never negative: what it "
            f"lets through below zero (slope {slope:g}) is lost in the twin"
        )
    return call.wiring.neuron(x, call.place, slope, limit)


def relu6(call: Call, x: Value, inplace: bool = False) -> Value:
    """min(max(z, 0), 6)."""
    return relu(call, x, limit=6.0)


def leaky_relu(call: Call, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    """max(z, slope z)."""
    return relu(call, x, slope=negative_slope)


def hardtanh(
    call: Call, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    """min(max(z, a), b), of which only a = 0 is of the ReLU family."""
    if min_val != 0:
        refuse(call.place, f"a hardtanh from {min_val} to {max_val} has negative outputs")
    return relu(call, x, limit=None if max_val == math.inf else float(max_val))


def clamp(call: Call, x: Value, min: Any = None, max: Any = None) -> Value:
    """A clamp from 0 is a ReLU."""
    if max is None:
        return _from_zero(call, x, min)
    return hardtanh(call, x, 0 if min is None and _never_negative(call.wiring, x) else min, max)


def _from_zero(call: Call, x: Value, low: Any) -> Value:
    if low != 0:
        refuse(call.place, f"a clamp from {low}; expected 0")
    return relu(call, x)


def _never_negative(wiring: Wiring, x: Value) -> bool:
    if x.carry is not None or len(x.wires) != 1:
        return False
    (wire,) = x.wires
    fires = [s >= 0 and wiring.junctions[s].activation != "none" for s in wire.sources]
    bent = any(s >= 0 and wiring.junctions[s].slope for s in wire.sources)
    return all(fires) and not bent and all(layer.kind != "conv" for layer in wire.layers)


def max_pool2d(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    """Max pooling, of which the twin makes average pooling."""
    if pair(dilation) != (1, 1) or return_indices:
        refuse(call.place, "max pooling with dilation or indices has no average in its place")
    layer = _pool(call, x, "max", kernel_size, stride, padding, ceil_mode)
    window, step = layer.kernel[0], layer.stride[0]
    apart = layer.kernel == layer.stride and layer.padding == (0, 0)
    chips = "" if apart else "; chips want windows that do not overlap: --pooling stride"
    call.wiring.note(
        f"{call.place}: max pooling (window {window}, stride {step}, padding {layer.padding[0]}) "
        f"becomes average pooling in the twin{chips}"
    )
    return call.wiring.extended(x, layer, call.place)


def avg_pool2d(
    call: Call,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Value:
    """Average pooling; padding counts as zeros."""
    layer = _pool(call, x, "average", kernel_size, stride, padding, ceil_mode)
    if (layer.padding != (0, 0) and not count_include_pad) or divisor_override:
        refuse(call.place, "average pooling whose divisor is not the size of its window")
    return call.wiring.extended(x, layer, call.place)


def _pool(
    call: Call, x: Value, kind: Any, kernel: Any, stride: Any, padding: Any, ceil_mode: bool
) -> Layer:
    size = pair(kernel)
    step = size if stride is None or stride == [] else pair(stride)
    layer = Layer(kind=kind, kernel=size, stride=step, padding=pair(padding))
    left = [
        (n + 2 * p - k) % s
        for n, p, k, s in zip(x.shape[1:], layer.padding, size, step, strict=True)
    ]
    if ceil_mode and any(left):
        refuse(call.place, "ceil_mode pools parts of windows here", "pad, or use ceil_mode=False")
    return layer


def adaptive_avg_pool2d(call: Call, x: Value, output_size: Any) -> Value:
    """Adaptive average pooling where all its windows are alike."""
    return call.wiring.extended(x, _adaptive(call, x, "average", output_size), call.place)


def adaptive_max_pool2d(
    call: Call, x: Value, output_size: Any, return_indices: bool = False
) -> Value:
    """Adaptive max pooling where all its windows are alike."""
    layer = _adaptive(call, x, "max", output_size)
    return max_pool2d(call, x, layer.kernel, layer.stride)


def _adaptive(call: Call, x: Value, kind: Any, output_size: Any) -> Layer:
    wanted = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    sizes = [n if w is None else w for n, w in zip(x.shape[1:], wanted, strict=True)]
    if any(n % w for n, w in zip(x.shape[1:], sizes, strict=True)):
        refuse(
            call.place,
            f"adaptive pooling from {x.shape[1:]} to {tuple(sizes)} has windows of several sizes",
            "choose another --image-shape, or pool to a divisor of the map",
        )
    window = (x.shape[1] // sizes[0], x.shape[2] // sizes[1])
    return Layer(kind=kind, kernel=window, stride=window)


def mean(call: Call, x: Value, dim: Any = None, keepdim: bool = False, **rest: Any) -> Value:
    """The mean over both axes of a map is a pool."""
    axes = sorted(axis % 4 for axis in ([dim] if isinstance(dim, int) else dim or ()))
    if axes != [2, 3]:
        refuse(call.place, f"a mean over axes {dim}; expected the two of a map, (2, 3)")
    pooled = adaptive_avg_pool2d(call, x, 1)
    return replace(pooled, flat=not keepdim)


def flatten(call: Call, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Flattening changes how values are seen, not what they are."""
    if start_dim != 1 or end_dim not in (-1, 3):
        refuse(call.place, f"flattens axes {start_dim} to {end_dim}; expected 1 to -1")
    return replace(x, flat=True)


def reshape(call: Call, x: Value, *sizes: Any) -> Value:
    """view(B, -1), view(B, C * H * W), or a shape that it has."""
    wanted = list(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else list(sizes)
    count = x.shape[0] * x.shape[1] * x.shape[2]
    if len(wanted) == 2 and wanted[1] in (-1, count):
        return replace(x, flat=True)
    if wanted[1:] == list(x.shape):
        return replace(x, flat=False)
    refuse(call.place, f"reshapes a map {x.shape} to {tuple(wanted)}; expected (batch, -1)")


def squeeze(call: Call, x: Value, *axes: Any) -> Value:
    """Removing the axes of a 1x1 map flattens it."""
    if x.shape[1:] != (1, 1):
        refuse(call.place, f"squeezes a map {x.shape}")
    return replace(x, flat=True)


def add(call: Call, x: Any, other: Any, alpha: Any = 1) -> Value:
    """A residual add; sum([...]) begins with 0."""
    if isinstance(x, int) and x == 0 and isinstance(other, Value) and alpha == 1:
        return other
    if not isinstance(x, Value) or not isinstance(other, Value) or alpha != 1:
        refuse(call.place, "adds a constant or a scaled value", "write it into a bias or a weight")
    return call.wiring.added([x, other], call.place)


def cat(call: Call, tensors: Sequence[Any], dim: int = 0) -> Value:
    """Concatenation along channels."""
    along = {1, -3} | ({-1} if all(getattr(value, "flat", False) for value in tensors) else set())
    if dim not in along or not all(isinstance(value, Value) for value in tensors):
        refuse(call.place, f"concatenates along axis {dim}; expected values along channels, 1")
    return call.wiring.concatenated(list(tensors), call.place)


def getitem(call: Call, x: Value, index: Any) -> Value:
    """x[:, :, ::s, ::s]: every s-th place."""
    parts = index if isinstance(index, tuple) else (index,)
    whole = [isinstance(p, slice) and p.start in (None, 0) and p.stop is None for p in parts]
    steps = [part.step or 1 for part in parts] if all(whole) else []
    steps += [1] * (4 - len(steps))
    if not all(whole) or steps[:2] != [1, 1] or steps[2] != steps[3]:
        refuse(call.place, f"picks {index} of a map; expected [:, :, ::s, ::s]")
    channels = x.shape[0]
    layer = Layer(kind="pad", inputs=channels, outputs=channels, stride=(steps[2], steps[2]))
    return call.wiring.extended(x, layer, call.place)


def pad(
    call: Call, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Value:
    """New channels of zeros, as in shortcuts of option A."""
    sizes = [*pad, *(0,) * (6 - len(pad))]
    if mode != "constant" or value or any(sizes[:4]) or min(sizes) < 0:
        refuse(
            call.place,
            f"pads by {tuple(pad)} ({mode}); expected zeros along channels, (0, 0, 0, 0, a, b)",
            "give the convolution that follows its own padding",
        )
    before, after = sizes[4:]
    channels = x.shape[0]
    layer = Layer(kind="pad", inputs=channels, outputs=before + channels + after, first=before)
    picked = x.last
    if picked is not None and picked.kind == "pad" and picked.inputs == picked.outputs:
        layer = layer.model_copy(update={"stride": picked.stride})
        return replace(x.ending(layer), shape=(layer.outputs, *x.shape[1:]))
    return call.wiring.extended(x, layer, call.place)


def unchanged(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    """Dropout and its like do nothing once a network is trained."""
    return x


Handler = Callable[..., Value]
ACTIVATIONS: dict[Any, Handler] = {
    F.relu: relu,
    torch.relu: relu,
    torch.relu_: relu,
    F.relu_: relu,
    F.relu6: relu6,
    F.leaky_relu: leaky_relu,
    F.leaky_relu_: leaky_relu,
    F.hardtanh: hardtanh,
    F.hardtanh_: hardtanh,
    torch.clamp: clamp,
    "relu": relu,
    "relu_": relu,
    "clamp": clamp,
    "clamp_": clamp,
}
ADDS: dict[Any, Handler] = dict.fromkeys(
    (operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__"), add
)
OPERATORS: dict[Any, Handler] = {
    **ACTIVATIONS,
    **ADDS,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
    F.avg_pool2d: avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    F.adaptive_max_pool2d: adaptive_max_pool2d,
    torch.mean: mean,
    torch.flatten: flatten,
    torch.reshape: reshape,
    torch.squeeze: squeeze,
    torch.cat: cat,
    torch.concat: cat,
    operator.getitem: getitem,
    F.pad: pad,
    F.dropout: unchanged,
    F.dropout2d: unchanged,
    F.alpha_dropout: unchanged,
    "mean": mean,
    "flatten": flatten,
    "view": reshape,
    "reshape": reshape,
    "squeeze": squeeze,
    "contiguous": unchanged,
    "clone": unchanged,
    "float": unchanged,
}
#: At the output only: the same order of classes, and the same softmax.
NORMALISERS = (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax")


def module_handler(module: nn.Module) -> tuple[Handler, tuple[Any, ...]] | None:
    """Return the handler of a leaf module and its arguments behind the input; None: not known."""
    for kind, make in _MODULES:
        if isinstance(module, kind):
            return make(module)
    return None


def _of(handler: Handler, *names: str) -> Callable[[Any], tuple[Handler, tuple[Any, ...]]]:
    return lambda module: (handler, tuple(getattr(module, name) for name in names))


_MODULES: list[tuple[Any, Callable[[Any], tuple[Handler, tuple[Any, ...]]]]] = [
    (nn.Conv2d, lambda module: (conv2d, (module,))),
    (nn.Linear, lambda module: (linear, (module,))),
    # Of a trained network, SyncBatchNorm computes what the others do.
    ((nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm), lambda module: (batch_norm, (module,))),
    (nn.ReLU6, _of(relu6)),
    (nn.ReLU, _of(relu)),
    (nn.LeakyReLU, _of(leaky_relu, "negative_slope")),
    (nn.Hardtanh, _of(hardtanh, "min_val", "max_val")),
    (nn.MaxPool2d, _of(max_pool2d, "kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    (
        nn.AvgPool2d,
        _of(
            avg_pool2d,
            "kernel_size",
            "stride",
            "padding",
            "ceil_mode",
            "count_include_pad",
            "divisor_override",
        ),
    ),
    (nn.AdaptiveAvgPool2d, _of(adaptive_avg_pool2d, "output_size")),
    (nn.AdaptiveMaxPool2d, _of(adaptive_max_pool2d, "output_size")),
    (nn.Flatten, _of(flatten, "start_dim", "end_dim")),
    (
        (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity),
        _of(unchanged),
    ),
]
USE_RELU = "retrain with ReLU: a neuron's rate follows max(z, 0)"
USE_BATCH_NORM = "it depends on the input; retrain with BatchNorm, which is folded into weights"
WHY_NOT = {
    **dict.fromkeys(("GELU", "SiLU", "Hardswish", "ELU", "tanh", "Softplus", "PReLU"), USE_RELU),
    **dict.fromkeys(("GroupNorm", "LayerNorm", "InstanceNorm"), USE_BATCH_NORM),
    "Sigmoid": "gates (attention, squeeze-and-excite) have no spiking form here",
    "mul": "products of two values (attention, squeeze-and-excite) have no spiking form here",
}


def remedy_for(what: str) -> str:
    """Return what to do about an operator that has no handler."""
    return next((text for key, text in WHY_NOT.items() if key.lower() in what.lower()), ADVICE)
