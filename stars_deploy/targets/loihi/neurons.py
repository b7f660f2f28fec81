"""LIF, IF, Threshold and LI nodes as Loihi's dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.targets.findings import Finding

Reals = NDArray[np.float64]
DECAY_ONE = 4096  # decays are multiples of 1/4096
LARGEST_GAIN = 1e30  # its product with a weight, squared, stays finite


@dataclass(frozen=True)
class Dynamics:
    """v <- v (1 - dv/4096) + gain * X, spike where v > threshold, then v = 0; None: no spikes."""

    dv: int
    gain: float
    threshold: float | None


READOUT = Dynamics(dv=0, gain=1.0, threshold=None)  # sums over T
NEURONS = (nir.LIF, nir.IF, nir.Threshold, nir.LI)


def dynamics(name: str, node: nir.NIRNode, dt: float) -> tuple[Dynamics | None, list[Finding]]:
    """Return the integer decay and the input gain of a node, or findings that refuse it.

    LIF and LI: H = V + (r X - V) / tau becomes dv = round(4096 / tau), gain = r dv / 4096, so that
    the rest value r X survives the rounding of the decay (r = tau: an input that does not decay);
    IF: dv = 0, gain = r; Threshold: dv = 4096, a neuron without memory.
    """
    found = [*_uniform(name, node), *_zeros(name, node)]
    if found:
        return None, found
    threshold = None
    if not isinstance(node, nir.LI):
        field = "threshold" if isinstance(node, nir.Threshold) else "v_threshold"
        threshold = _first(getattr(node, field))
        if threshold <= 0:
            remedy = "use a threshold above 0"
            return None, [_refusal(name, f"{field} is {threshold:g}", remedy, threshold)]
    if isinstance(node, nir.Threshold):
        return Dynamics(DECAY_ONE, 1.0, threshold), [_no_memory(name, "it has no memory")]
    gain = _first(node.r)
    if abs(gain) > LARGEST_GAIN:
        remedy = "move the factor into the weights, and scale them down"
        return None, [_refusal(name, f"r is {gain:g}", remedy, gain)]
    if isinstance(node, nir.IF):
        return Dynamics(0, gain, threshold), []
    tau = _first(node.tau) / dt
    dv = round(DECAY_ONE / tau)
    if not 1 <= dv <= DECAY_ONE:
        remedy = "use an IF node" if dv < 1 else "use a time constant of at least one step"
        return None, [_refusal(name, f"tau is {tau:g} steps, a decay of 1/tau", remedy, tau)]
    return Dynamics(dv, gain * dv / DECAY_ONE, threshold), _decay_notes(name, tau, dv)


def _decay_notes(name: str, tau: float, dv: int) -> list[Finding]:
    found = []
    if abs(dv * tau / DECAY_ONE - 1) > 1e-9:
        message = (
            f"tau = {tau:g} steps becomes {DECAY_ONE / dv:.6g}: decays are multiples of 1/4096"
        )
        found.append(Finding("decay_rounded", "info", name, message, tau, DECAY_ONE / dv))
    if dv == DECAY_ONE:
        found.append(_no_memory(name, "tau is one step"))
    return found


def _no_memory(name: str, why: str) -> Finding:
    return Finding(
        code="decay_range",
        severity="warning",
        node=name,
        message=f"{why}, which takes dv = 4096; 12 bits end at 4095",
        value=float(DECAY_ONE),
        limit=float(DECAY_ONE - 1),
        remedy="Lava's simulation accepts it; for a board use tau of at least 1.0003 steps",
    )


def _uniform(name: str, node: nir.NIRNode) -> list[Finding]:
    fields = [f for f in ("tau", "r", "v_threshold", "threshold") if hasattr(node, f)]
    return [
        _refusal(name, f"{field} differs between its neurons", "use one value per node")
        for field in fields
        if np.ptp(getattr(node, field)) != 0
    ]


def _zeros(name: str, node: nir.NIRNode) -> list[Finding]:
    found = []
    for field in ("v_reset", "v_leak"):
        values = np.asarray(getattr(node, field, None) if hasattr(node, field) else 0.0)
        if values.dtype == object:  # not given: NIR resets to zero
            continue
        if np.any(values != 0):
            worst = float(values.flat[np.argmax(np.abs(values))])
            remedy = "train with rest and reset at zero: Loihi resets and leaks to zero"
            found.append(_refusal(name, f"{field} is {worst:g}", remedy, worst))
    return found


def _refusal(name: str, message: str, remedy: str, value: float | None = None) -> Finding:
    return Finding("neuron", "error", name, message, value, remedy=remedy)


def _first(values: object) -> float:
    return float(np.asarray(values, np.float64).flat[0])
