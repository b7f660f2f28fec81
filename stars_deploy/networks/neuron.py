"""The neurons of the student, over all time steps at once.

    lif    H_t = V_{t-1} + k (r X_t - (V_{t-1} - V_r))   k = 1/tau; r = 1, or tau: decay_input off
    plif   the same with k = sigmoid(w), one learned w per layer, and r = 1 or 1/k
    if     H_t = V_{t-1} + X_t
           S_t = 1 where H_t > V_th, else 0              strict, as in Norse and NIR
           V_t = V_r where S_t, else H_t                 V_0 = V_r

tau in time steps; X, H, V and thresholds share one unit. PLIF: Fang et al. (ICCV 2021).
Source: arXiv 2605.27409, Eq. 1; the
comparison is Norse's (norse.torch lif_box_feed_forward_step), whose step is the forward oracle.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.networks import compiled, fused, norse_backend
from stars_deploy.networks.surrogate import SURROGATES


class Kernels(Protocol):
    """What computes all steps at once: see `fused`."""

    def run(
        self, current: Tensor, T: int, neuron: Neuron, leak: Tensor | None = None, keep: bool = True
    ) -> tuple[Tensor, Tensor]: ...

    def backpropagate(
        self,
        potential: Tensor,
        grad_spikes: Tensor,
        neuron: Neuron,
        leak: Tensor | None,
        constant: bool,
    ) -> tuple[Tensor, Tensor | None]: ...


VALID = {
    "fused": tuple(SURROGATES),
    "compiled": tuple(SURROGATES),
    "norse": norse_backend.SURROGATES,
}
KERNELS: dict[str, Kernels] = {"fused": fused, "compiled": compiled}


class SpikingLayer(nn.Module):
    """A layer of neurons; it keeps no state between calls. Only PLIF has a parameter, `w`."""

    def __init__(self, neuron: Neuron, T: int) -> None:
        super().__init__()
        check(neuron)
        self.neuron = neuron
        self.T = T
        if neuron.model == "plif":
            # The smallest tau is 1, where sigmoid(w) = 1 has no finite w.
            start = 1 / max(neuron.tau, 1.001)
            self.w = nn.Parameter(torch.tensor(math.log(start / (1 - start))))

    @property
    def tau(self) -> float:
        """Membrane time constant in steps; infinite for an IF neuron."""
        if self.neuron.model == "if":
            return math.inf
        if self.neuron.model == "lif":
            return self.neuron.tau
        return float(1 / torch.sigmoid(self.w.detach()))

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes [T, ...] for input currents [T, ...], or [1, ...] if constant."""
        leak = torch.sigmoid(self.w) if self.neuron.model == "plif" else None
        return spike_train(current, self.T, self.neuron, leak)


def check(neuron: Neuron) -> None:
    """Raise RecipeError if the backend has no such surrogate, or V_th is not above V_r."""
    valid = VALID[neuron.backend]
    if neuron.surrogate not in valid:
        raise RecipeError(
            f"neuron.surrogate {neuron.surrogate!r} is not one of backend {neuron.backend!r}, "
            f"which has: {', '.join(valid)}{_other_backend(neuron)}"
        )
    if neuron.backend == "norse" and neuron.model != "lif":
        raise RecipeError(
            f"neuron.model {neuron.model!r}: backend 'norse' runs 'lif' only; set neuron.backend "
            "to 'fused'"
        )
    if neuron.v_threshold <= neuron.v_reset:
        raise RecipeError(
            f"neuron.v_threshold {neuron.v_threshold} must be above neuron.v_reset {neuron.v_reset}"
        )


def _other_backend(neuron: Neuron) -> str:
    for backend, names in VALID.items():
        if neuron.surrogate in names:
            return f"; or set neuron.backend to {backend!r}"
    return nearest(neuron.surrogate, VALID[neuron.backend])


def spike_train(current: Tensor, T: int, neuron: Neuron, leak: Tensor | None = None) -> Tensor:
    """Return the spikes [T, ...] of T steps from V_r; `current` is [T, ...] or [1, ...].

    leak: a scalar k that replaces 1/tau and gets a gradient (PLIF).
    """
    if current.shape[0] not in (1, T):
        raise ValueError(f"current has {current.shape[0]} steps, expected {T} (or 1 if constant)")
    if neuron.backend == "norse":
        return norse_backend.lif(current, T, neuron)
    graded = current.requires_grad or (leak is not None and leak.requires_grad)
    if not (torch.is_grad_enabled() and graded):
        return KERNELS[neuron.backend].run(current, T, neuron, leak, keep=False)[1]
    spikes: Tensor = _Fused.apply(current, leak, T, neuron)
    return spikes


class _Fused(torch.autograd.Function):
    """All T steps as one node of the autograd graph; only the potentials are kept for backward."""

    @staticmethod
    def forward(ctx, current: Tensor, leak: Tensor | None, T: int, neuron: Neuron) -> Tensor:  # type: ignore[no-untyped-def]
        potential, spikes = KERNELS[neuron.backend].run(current, T, neuron, leak)
        ctx.save_for_backward(potential, *([] if leak is None else [leak]))
        ctx.neuron, ctx.constant = neuron, current.shape[0] != T
        return spikes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_spikes: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # type: ignore[no-untyped-def]
        potential, *learned = ctx.saved_tensors
        leak = learned[0] if learned else None
        kernels = KERNELS[ctx.neuron.backend]
        grads = kernels.backpropagate(potential, grad_spikes, ctx.neuron, leak, ctx.constant)
        return *grads, None, None
