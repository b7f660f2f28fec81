"""The LIF neuron of the student, over all time steps at once.

    H_t = V_{t-1} + (r X_t - (V_{t-1} - V_r)) / tau     r = 1, or tau if decay_input is off
    S_t = 1 where H_t > V_th, else 0                    strict, as in Norse and NIR
    V_t = V_r where S_t, else H_t                       V_0 = V_r

tau in time steps; X, H, V and thresholds share one unit. Source: arXiv 2605.27409, Eq. 1; the
comparison is Norse's (norse.torch lif_box_feed_forward_step), whose step is the forward oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.networks import norse_backend
from stars_deploy.networks.surrogate import SURROGATES

VALID = {"fused": tuple(SURROGATES), "norse": norse_backend.SURROGATES}


class Lif(nn.Module):
    """A layer of LIF neurons; it has no parameters and keeps no state between calls."""

    def __init__(self, neuron: Neuron, T: int) -> None:
        super().__init__()
        check(neuron)
        self.neuron = neuron
        self.T = T

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes [T, ...] for input currents [T, ...], or [1, ...] if constant."""
        return lif(current, self.T, self.neuron)


def check(neuron: Neuron) -> None:
    """Raise RecipeError if the backend has no such surrogate, or V_th is not above V_r."""
    valid = VALID[neuron.backend]
    if neuron.surrogate not in valid:
        raise RecipeError(
            f"neuron.surrogate {neuron.surrogate!r} is not one of backend {neuron.backend!r}, "
            f"which has: {', '.join(valid)}{_other_backend(neuron)}"
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


def lif(current: Tensor, T: int, neuron: Neuron) -> Tensor:
    """Return the spikes [T, ...] of T steps from V_r; `current` is [T, ...] or [1, ...]."""
    if current.shape[0] not in (1, T):
        raise ValueError(f"current has {current.shape[0]} steps, expected {T} (or 1 if constant)")
    if neuron.backend == "norse":
        return norse_backend.lif(current, T, neuron)
    if not (torch.is_grad_enabled() and current.requires_grad):
        return run(current, T, neuron, keep=False)[1]
    spikes: Tensor = _FusedLif.apply(current, T, neuron)
    return spikes


def _gains(neuron: Neuron) -> tuple[float, float]:
    """Return (input gain r, 1/tau)."""
    return (1.0 if neuron.decay_input else neuron.tau), 1.0 / neuron.tau


def run(current: Tensor, T: int, neuron: Neuron, keep: bool = True) -> tuple[Tensor, Tensor]:
    """Return the potentials U = H - V_r and the spikes of every step, both [T, ...].

    Working relative to V_r takes it out of the recursion: U_0 = 0 and a reset is a zero. The
    potentials are float32, or float64 if `current` is; the spikes have the type of `current`.
    Without `keep` only the last step's potentials are returned, [1, ...].
    """
    gain, inverse_tau = _gains(neuron)
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
            torch.mul(inputs[0], gain * inverse_tau, out=u)
        else:
            # rest - r X, then rest - that / tau: Norse's order of rounding in two passes.
            torch.sub(rest, inputs[t], alpha=gain, out=u)
            torch.sub(rest, u, alpha=inverse_tau, out=u)
        # Comparing into a float tensor is several times faster than into a bool one.
        torch.gt(u, threshold, out=spikes[t])
        torch.addcmul(u, u, spikes[t], value=-1, out=rest)
    return potential, spikes.to(spike_type)


class _FusedLif(torch.autograd.Function):
    """All T steps as one node of the autograd graph; only the potentials are kept for backward."""

    @staticmethod
    def forward(ctx, current: Tensor, T: int, neuron: Neuron) -> Tensor:  # type: ignore[no-untyped-def]
        potential, spikes = run(current, T, neuron)
        ctx.save_for_backward(potential)
        ctx.neuron = neuron
        ctx.constant = current.shape[0] != T
        return spikes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_spikes: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        """Back-propagation through time, with the surrogate s' for the derivative of a spike.

        dL/dH_t = dL/dS_t s'_t + dL/dV_t (1 - S_t - (H_t - V_r) s'_t), without the last term if
        detach_reset; dL/dX_t = r/tau dL/dH_t; dL/dV_{t-1} = (1 - 1/tau) dL/dH_t.
        """
        (potential,) = ctx.saved_tensors
        neuron: Neuron = ctx.neuron
        gain, inverse_tau = _gains(neuron)
        threshold = neuron.v_threshold - neuron.v_reset
        surrogate = SURROGATES[neuron.surrogate]
        # A constant current gets the sum over t: two buffers in turn then do for all steps.
        grad = torch.empty_like(potential[:2] if ctx.constant else potential)
        result = torch.zeros_like(potential[:1]) if ctx.constant else grad
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
                now.addcmul_(later, keep, value=1.0 - inverse_tau)
            if ctx.constant:
                result.add_(now)
            later = now
        return result.mul_(gain * inverse_tau).to(grad_spikes.dtype), None, None
