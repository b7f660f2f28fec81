"""NIR neurons in float64: one step after the other, the equation as it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Trace:
    """What a neuron node did: its output, and H - V_th where that was asked for."""

    output: Array  # [T, N, ...]; uint8 spikes, or float64 potentials of an LI node
    margins: NDArray[np.float32] | None = None


def run_neurons(node: nir.NIRNode, current: Array, steps: int, dt: float, margins: bool) -> Trace:
    """Run the neurons of `node` for `steps` steps on the current X, [1 or T, N, ...].

    LIF: H = V + (r X - (V - v_leak)) / tau_steps, tau_steps = tau / dt;  IF: H = V + r X;
    Threshold: H = X.  S = H > v_threshold;  V = v_reset where S, else H;  V_0 = v_reset.
    LI: V = V + (r X - (V - v_leak)) / tau_steps, V_0 = v_leak, puts out V.
    """
    if isinstance(node, nir.LI):
        return Trace(_leaky_integrator(node, current, steps, dt))
    integrate = _integration(node, dt)
    threshold = _uniform(node.threshold if isinstance(node, nir.Threshold) else node.v_threshold)
    reset = 0.0 if isinstance(node, nir.Threshold) else _uniform(node.v_reset)
    shape = current.shape[1:]
    v = np.broadcast_to(np.asarray(reset), shape)
    spikes = np.empty((steps, *shape), np.uint8)
    distance = np.empty((steps, *shape), np.float32) if margins else None
    for t in range(steps):
        h = integrate(v, current[t if len(current) > 1 else 0])
        fired = h > threshold
        if distance is not None:
            distance[t] = h - threshold
        spikes[t] = fired
        v = np.where(fired, reset, h)
    return Trace(spikes, distance)


def _integration(node: nir.NIRNode, dt: float) -> Callable[[Array, Array], Array]:
    """Return (V, X) -> H."""
    if isinstance(node, nir.Threshold):
        return lambda v, x: np.asarray(x, np.float64)
    r = _uniform(node.r)
    if isinstance(node, nir.IF):
        return lambda v, x: v + r * x
    tau, leak = _uniform(np.asarray(node.tau, np.float64) / dt), _uniform(node.v_leak)
    return lambda v, x: v + (r * x - (v - leak)) / tau


def _leaky_integrator(node: nir.LI, current: Array, steps: int, dt: float) -> Array:
    integrate = _integration(node, dt)
    v = np.broadcast_to(np.asarray(node.v_leak, np.float64), current.shape[1:])
    out = np.empty((steps, *current.shape[1:]))
    for t in range(steps):
        v = integrate(v, current[t if len(current) > 1 else 0])
        out[t] = v
    return out


def _uniform(values: Any) -> Any:
    """Return a scalar for parameters that are all equal: same result, less memory traffic."""
    array = np.asarray(values, np.float64)
    return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else array
