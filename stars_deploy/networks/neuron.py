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
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.networks import norse_backend
from stars_deploy.networks.surrogate import SURROGATES

VALID = {"fused": tuple(SURROGATES), "norse": norse_backend.SURROGATES}


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
        return run(current, T, neuron, leak, keep=False)[1]
    spikes: Tensor = _Fused.apply(current, leak, T, neuron)
    return spikes


class _Constants(NamedTuple):
    """H = V + k (r X - (V - V_r)); for an IF neuron k = 0, r is not used and H = V + X.

    drive: dH/dX, which is r k.
    """

    k: float
    r: float
    drive: float


def _constants(neuron: Neuron, leak: Tensor | None) -> _Constants:
    if neuron.model == "if":
        return _Constants(0.0, 0.0, 1.0)
    k = 1.0 / neuron.tau if leak is None else float(leak.detach())
    if neuron.decay_input:
        return _Constants(k, 1.0, k)
    r = neuron.tau if leak is None else 1.0 / k
    return _Constants(k, r, r * k)


def run(
    current: Tensor, T: int, neuron: Neuron, leak: Tensor | None = None, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the potentials U = H - V_r and the spikes of every step, both [T, ...].

    Working relative to V_r takes it out of the recursion: U_0 = 0 and a reset is a zero. The
    potentials are float32, or float64 if `current` is; the spikes have the type of `current`.
    Without `keep` only the last step's potentials are returned, [1, ...].
    """
    k, r, drive = _constants(neuron, leak)
    threshold = neuron.v_threshold - neuron.v_reset
    spike_type = current.dtype
    current = current if current.dtype == torch.float64 else current.float()
    inputs = current.expand(T, *current.shape[1:])
    # empty_like keeps the memory format, so that channels_last stays channels_last.
    spikes, potential = torch.empty_like(inputs), torch.empty_like(inputs if keep else inputs[:1])
    rest = torch.empty_like(inputs[0])
    for t in range(T):
        u = potential[t if keep else 0]
        if t == 0:
            torch.mul(inputs[0], drive, out=u)
        elif k == 0:
            torch.add(rest, inputs[t], out=u)
        else:
            # rest - r X, then rest - k that: Norse's order of rounding in two passes.
            torch.sub(rest, inputs[t], alpha=r, out=u)
            torch.sub(rest, u, alpha=k, out=u)
        # Comparing into a float tensor is several times faster than into a bool one.
        torch.gt(u, threshold, out=spikes[t])
        torch.addcmul(u, u, spikes[t], value=-1, out=rest)
    return potential, spikes.to(spike_type)


class _Fused(torch.autograd.Function):
    """All T steps as one node of the autograd graph; only the potentials are kept for backward."""

    @staticmethod
    def forward(ctx, current: Tensor, leak: Tensor | None, T: int, neuron: Neuron) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.constants = _constants(neuron, leak)
        potential, spikes = run(current, T, neuron, leak)
        ctx.save_for_backward(potential)
        ctx.neuron, ctx.learned = neuron, leak is not None
        ctx.leak_type = None if leak is None else leak.dtype
        ctx.constant = current.shape[0] != T
        return spikes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_spikes: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # type: ignore[no-untyped-def]
        """Back-propagation through time, with the surrogate s' for the derivative of a spike.

        dL/dH_t = dL/dS_t s'_t + dL/dV_t (1 - S_t - (H_t - V_r) s'_t), without the last term if
        detach_reset; dL/dX_t = r k dL/dH_t; dL/dV_{t-1} = (1 - k) dL/dH_t; of a learned k,
        dL/dk = sum_t dL/dH_t dH_t/dk.
        """
        (potential,) = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        constants: _Constants = ctx.constants
        threshold = neuron.v_threshold - neuron.v_reset
        surrogate = SURROGATES[neuron.surrogate]
        # A constant current gets the sum over t: two buffers in turn then do for all steps.
        grad = torch.empty_like(potential[:2] if ctx.constant else potential)
        result = torch.zeros_like(potential[:1]) if ctx.constant else grad
        grad_k = torch.zeros((), dtype=potential.dtype, device=potential.device)
        keep = torch.empty_like(potential[0])
        later: Tensor | None = None
        for t in reversed(range(len(potential))):
            now = grad[t % len(grad)]
            surrogate(torch.sub(potential[t], threshold, out=now), neuron.alpha)
            if later is not None:
                torch.le(potential[t], threshold, out=keep)
                if not neuron.detach_reset:
                    keep.addcmul_(potential[t], now, value=-1)
            now.mul_(grad_spikes[t])
            if later is not None:
                now.addcmul_(later, keep, value=1.0 - constants.k)
            if ctx.learned:
                grad_k += _leak_gradient(now, potential, t, threshold, neuron, constants.k)
            if ctx.constant:
                result.add_(now)
            later = now
        grad_current = result.mul_(constants.drive).to(grad_spikes.dtype)
        return grad_current, grad_k.to(ctx.leak_type) if ctx.learned else None, None, None


def _leak_gradient(
    grad: Tensor, potential: Tensor, t: int, threshold: float, neuron: Neuron, k: float
) -> Tensor:
    """Return dL/dk of step t: <dL/dH_t, X_t - U_{t-1}>, or with decay_input off <., -U_{t-1}>.

    U_{t-1} is the potential after the reset, relative to V_r; X_t - U_{t-1} = (U_t - U_{t-1}) / k.
    """
    before = torch.zeros_like(grad)
    if t > 0:
        before = potential[t - 1] * (potential[t - 1] <= threshold)
    slope = (potential[t] - before) / k if neuron.decay_input else -before
    return (grad * slope).sum()
