"""The LIF neuron run by Norse itself, step by step; slower than ours, and its oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from stars_deploy.config.recipe import Neuron

# Norse's surrogates by their own names; its "heaviside" is left out, it has no gradient.
SURROGATES = ("super", "triangle", "tanh", "circ", "heavi_erfc")


def lif(current: Tensor, T: int, neuron: Neuron) -> Tensor:
    """Return the spikes [T, ...] of norse's LIF box step from V_r, for [T, ...] or [1, ...]."""
    from norse.torch.functional.lif_box import (  # seconds to import: only when it is asked for
        LIFBoxFeedForwardState,
        LIFBoxParameters,
        lif_box_feed_forward_step,
    )
    from norse.torch.functional.reset import reset_value

    def reset(z: Tensor, v: Tensor, value: Tensor, threshold: Tensor) -> Tensor:
        gate = z.detach() if neuron.detach_reset else z
        return reset_value(gate, v, value, threshold)  # type: ignore[no-any-return]

    working = current if current.dtype == torch.float64 else current.float()

    def number(value: float) -> Tensor:
        return torch.as_tensor(value, dtype=working.dtype, device=working.device)

    # Norse's defaults (tau_mem_inv 100, dt 0.001, method super, alpha 100) are not this neuron's.
    parameters = LIFBoxParameters(
        tau_mem_inv=number(1.0 / neuron.tau),
        v_leak=number(neuron.v_reset),
        v_th=number(neuron.v_threshold),
        v_reset=number(neuron.v_reset),
        method=neuron.surrogate,
        alpha=neuron.alpha,
        reset_method=reset,
    )
    gain = 1.0 if neuron.decay_input else neuron.tau
    state = LIFBoxFeedForwardState(v=torch.full_like(working[0], neuron.v_reset))
    spikes = []
    for t in range(T):
        x = working[t if working.shape[0] == T else 0] * gain
        z, state = lif_box_feed_forward_step(x, state, parameters, dt=1.0)
        spikes.append(z)
    return torch.stack(spikes).to(current.dtype)
