"""The recursion of the neurons over all steps, forward and backward, in few eager operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stars_deploy.config.recipe import Neuron
from stars_deploy.networks.surrogate import SURROGATES


class Constants(NamedTuple):
    """H = V + k (r X - (V - V_r)); for an IF neuron k = 0, r is not used and H = V + X.

    drive: dH/dX, which is r k.
    """

    k: float
    r: float
    drive: float


def constants_of(neuron: Neuron, leak: Tensor | None) -> Constants:
    if neuron.model == "if":
        return Constants(0.0, 0.0, 1.0)
    k = 1.0 / neuron.tau if leak is None else float(leak.detach())
    if neuron.decay_input:
        return Constants(k, 1.0, k)
    r = neuron.tau if leak is None else 1.0 / k
    return Constants(k, r, r * k)


def run(
    current: Tensor, T: int, neuron: Neuron, leak: Tensor | None = None, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the potentials U = H - V_r and the spikes of every step, both [T, ...].

    Working relative to V_r takes it out of the recursion: U_0 = 0 and a reset is a zero. The
    potentials are float32, or float64 if `current` is; the spikes have the type of `current`.
    Without `keep` only the last step's potentials are returned, [1, ...].
    """
    k, r, drive = constants_of(neuron, leak)
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


def backpropagate(
    potential: Tensor, grad_spikes: Tensor, neuron: Neuron, leak: Tensor | None, constant: bool
) -> tuple[Tensor, Tensor | None]:
    """Return dL/dX and, of a learned k, dL/dk: back-propagation through time.

    With the surrogate s' for the derivative of a spike, dL/dH_t = dL/dS_t s'_t
    + dL/dV_t (1 - S_t - (H_t - V_r) s'_t), without the last term if detach_reset;
    dL/dX_t = r k dL/dH_t; dL/dV_{t-1} = (1 - k) dL/dH_t; dL/dk = sum_t dL/dH_t dH_t/dk.

    potential: U of every step, [T, ...]; constant: whether X is one for all steps, [1, ...].
    """
    constants = constants_of(neuron, leak)
    threshold = neuron.v_threshold - neuron.v_reset
    surrogate = SURROGATES[neuron.surrogate]
    # A constant current gets the sum over t: two buffers in turn then do for all steps.
    grad = torch.empty_like(potential[:2] if constant else potential)
    result = torch.zeros_like(potential[:1]) if constant else grad
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
        if leak is not None:
            grad_k += _leak_gradient(now, potential, t, threshold, neuron, constants.k)
        if constant:
            result.add_(now)
        later = now
    grad_current = result.mul_(constants.drive).to(grad_spikes.dtype)
    return grad_current, None if leak is None else grad_k.to(leak.dtype)


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
