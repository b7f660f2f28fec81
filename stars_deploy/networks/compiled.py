"""The recursion of `fused` as kernels of torch.compile: every value is read and written once.

Written without buffers, over all neurons of a step as one axis, so that one kernel serves layers
of every size. Compiling needs a C++ compiler (CPU) or Triton (CUDA) and takes some ten seconds per
process, which pays off in runs of many minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stars_deploy.config.recipe import Neuron
from stars_deploy.errors import EngineError
from stars_deploy.networks.fused import constants_of

# As surrogate.SURROGATES, but of new tensors: what is overwritten in place is not fused.
SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": lambda x, a: 1 / (2 / a + (x * (math.pi / 2 * a * math.sqrt(2 / a))).square()),
    "sigmoid": lambda x, a: a * (torch.sigmoid(a * x) * (1 - torch.sigmoid(a * x))),
    "triangle": lambda x, a: (a - a * a * x.abs()).clamp(min=0),
    "rectangle": lambda x, a: a * (x.abs() < 0.5 / a).to(x.dtype),
}


def run(
    current: Tensor, T: int, neuron: Neuron, leak: Tensor | None = None, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Return what `fused.run` returns."""
    flat, restore = _flattened(current)
    potential, spikes = _call(_forward, flat, T, neuron, _constants(neuron, leak, current), keep)
    return restore(potential), restore(spikes)


def backpropagate(
    potential: Tensor, grad_spikes: Tensor, neuron: Neuron, leak: Tensor | None, constant: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what `fused.backpropagate` returns."""
    flat, restore = _flattened(potential)
    if grad_spikes.stride() != potential.stride():  # bring its elements into the same order
        grad_spikes = torch.empty_like(potential, dtype=grad_spikes.dtype).copy_(grad_spikes)
    grads, _ = _flattened(grad_spikes)
    constants = _constants(neuron, leak, potential)
    result, grad_k = _call(_backward, flat, grads, neuron, constants, constant, leak is not None)
    return restore(result), None if leak is None else grad_k.to(leak.dtype)


def _constants(neuron: Neuron, leak: Tensor | None, like: Tensor) -> Tensor:
    """Return k, r and dH/dX as a tensor: a number that changes would be compiled anew."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    return torch.tensor(constants_of(neuron, leak), dtype=dtype, device=like.device)


def _flattened(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return `[steps, N]` in the order of memory, and what gives a result the shape of x."""
    if not _dense(x[0]):
        x = x.contiguous()
    size = x[0].numel()
    shape, strides = x.shape[1:], x.stride()[1:]

    def restore(flat: Tensor) -> Tensor:
        return flat.as_strided((len(flat), *shape), (size, *strides))

    if len(x) > 1 and x.stride(0) != size:
        x = torch.stack(list(x))
        strides = x.stride()[1:]
    return x.as_strided((len(x), size), (size, 1)), restore


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _forward(
    current: Tensor, T: int, neuron: Neuron, constants: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    k, r, drive = constants.unbind()
    threshold = neuron.v_threshold - neuron.v_reset
    inputs = current.to(constants.dtype)
    rest = torch.zeros_like(inputs[0])
    potentials, spikes = [], []
    for t in range(T):
        x = inputs[t if len(inputs) > 1 else 0]
        if t == 0:
            u = x * drive
        elif neuron.model == "if":
            u = rest + x
        else:
            u = rest - k * (rest - r * x)
        fired = u > threshold
        rest = torch.where(fired, 0.0, u)
        potentials.append(u)
        spikes.append(fired.to(current.dtype))
    return torch.stack(potentials if keep else potentials[-1:]), torch.stack(spikes)


def _backward(
    potential: Tensor,
    grad_spikes: Tensor,
    neuron: Neuron,
    constants: Tensor,
    constant: bool,
    learned: bool,
) -> tuple[Tensor, Tensor]:
    k, _, drive = constants.unbind()
    threshold = neuron.v_threshold - neuron.v_reset
    slope = SLOPES[neuron.surrogate]
    later = torch.zeros_like(potential[0])
    grads: list[Tensor] = []
    grad_k = torch.zeros_like(potential[0])
    for t in reversed(range(len(potential))):
        u = potential[t]
        s = slope(u - threshold, neuron.alpha)
        keep = (u <= threshold).to(u.dtype)
        if not neuron.detach_reset:
            keep = keep - u * s
        later = s * grad_spikes[t].to(u.dtype) + later * keep * (1 - k)
        if learned:
            before = torch.zeros_like(u)
            if t > 0:
                before = torch.where(potential[t - 1] <= threshold, potential[t - 1], 0.0)
            grad_k = grad_k + later * ((u - before) / k if neuron.decay_input else -before)
        grads.insert(0, later)
    total = torch.stack([torch.stack(grads).sum(0)] if constant else grads)
    return (total * drive).to(grad_spikes.dtype), grad_k.sum()


MOST_VARIANTS = 1024  # of one function: a process that compares neurons or T needs many

_COMPILED: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {}


def _call(function: Callable[..., tuple[Tensor, Tensor]], *args: Any) -> tuple[Tensor, Tensor]:
    """Call a compiled function.

    Raises:
        EngineError: it cannot be compiled here.
    """
    if function not in _COMPILED:
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, MOST_VARIANTS)
        limits.accumulated_recompile_limit = max(
            limits.accumulated_recompile_limit, 2 * MOST_VARIANTS
        )
        _COMPILED[function] = torch.compile(function, dynamic=True, fullgraph=True)
    try:
        return _COMPILED[function](*args)
    except torch._dynamo.exc.TorchDynamoException as problem:
        first = str(problem).strip().splitlines()[0]
        raise EngineError(
            f"neuron.backend 'compiled' cannot be compiled here ({first}); it needs a C++ compiler "
            "(CPU) or Triton (CUDA). Set neuron.backend to 'fused', which computes the same"
        ) from problem
