"""The time step of a third-party graph, and what its r means.

NIR writes differential equations, tau dV/dt = v_leak - V + r X and (IF) dV/dt = r X; every exporter
has its own way of putting a discrete neuron into them. Forward Euler with the step dt gives

    LIF, LI: H = V + (r X - (V - v_leak)) dt / tau        IF: H = V + r dt X

so a file is understood once dt is known. What exporters write, with k = tau in steps:

    SpikingJelly 2.0.0  LIF: tau = k dt, r = 1 (decay_input) or k;  IF: r = 1 / dt;
                        CubaLIF: r = tau_mem / dt, w_in = tau_syn / dt;  dt = 1e-4 unless given
    snnTorch 1.0.0      Leaky: tau = dt / (1 - beta), r = tau / dt;  Synaptic: as CubaLIF above;
                        dt = 1e-4, always
    Norse 1.1.0         LIFBox, LIBox: tau = D / tau_mem_inv, r = 1, for its step of D tau_mem_inv,
                        with D = to_nir's dt, 1e-3 unless given: dt = D^2 here;  IAF: r = 1

The first two were run and compared spike for spike (docs/third-party.md), Norse's source was read.
r = tau / dt and r = 1 / dt give dt away; r = 1 in an IF is a gain per step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import nir
import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph.foreign_structure import Note
from stars_deploy.graph.metadata import DT

Gain = Literal["raw", "discrete"]
#: Relative difference below which two time constants are one, written in float32.
CLOSE = 1e-5
_EXPORTERS = "SpikingJelly and snnTorch write 1e-4 unless told otherwise"


def inferred_dt(nodes: Mapping[str, nir.NIRNode], notes: list[Note]) -> float:
    """Return the step in seconds that the neurons themselves give away.

    Every r other than 1 is a hint: dt = tau / r (LIF, LI), 1 / r (IF), tau_mem / r and
    tau_syn / w_in (CubaLIF). The hints must agree, and be 1e-4, which exporters use, or come from
    several values of r: one r may as well be a resistance.
    Raises: GraphError that names the option to add.
    """
    hints = [
        (name, value, gain)
        for name, node in nodes.items()
        for value, gain in _hints(node)
        if not (gain == 1).all()
    ]
    if not hints:
        if any(hasattr(node, "tau") or hasattr(node, "tau_mem") for node in nodes.values()):
            raise GraphError(
                "the file does not say how long a time step is, and r = 1 gives no hint; add "
                f"--dt SECONDS ({_EXPORTERS}; a neuron's tau in steps is tau / dt)"
            )
        notes.append(Note("dt", None, f"no neuron depends on dt; {DT:g} s is written"))
        return DT
    seen = {f"{float(v):.6g}": name for name, value, _ in hints for v in np.unique(value)}
    values = np.array([float(text) for text in seen])
    if values.max() > values.min() * (1 + CLOSE):
        listed = ", ".join(f"{text} s ({name})" for text, name in list(seen.items())[:4])
        raise GraphError(
            f"the file does not say how long a time step is, and its neurons disagree: tau / r is "
            f"{listed}; add --dt SECONDS"
        )
    exact = float(np.median(hints[0][1]))
    short = float(f"{exact:.4g}")  # what float32 made of it is not what the exporter was given
    dt = short if abs(short / exact - 1) < CLOSE / 10 else exact
    gains = {f"{float(g):.5g}" for _, _, gain in hints for g in np.unique(gain)}
    if len(gains) < 2 and not np.isclose(dt, DT, rtol=CLOSE, atol=0):
        raise GraphError(
            f"the file does not say how long a time step is; tau / r is {dt:g} s, which may be it "
            f"or not; add --dt {dt:g}, or the step that the exporter was given"
        )
    where = ", ".join(dict.fromkeys(name for name, _, _ in hints))
    notes.append(
        Note("dt", None, f"dt = {dt:g} s follows from r = tau / dt (IF: 1 / dt) in {where}")
    )
    return dt


def _hints(node: nir.NIRNode) -> Iterator[tuple[Any, Any]]:
    """Yield (dt, r) per parameter pair, for values that can be divided."""
    pairs: dict[type, list[tuple[str | None, str]]] = {
        nir.LIF: [("tau", "r")],
        nir.LI: [("tau", "r")],
        nir.IF: [(None, "r")],
        nir.CubaLIF: [("tau_mem", "r"), ("tau_syn", "w_in")],
        nir.CubaLI: [("tau_mem", "r"), ("tau_syn", "w_in")],
    }
    for time, gain in pairs.get(type(node), []):
        r = np.asarray(getattr(node, gain), np.float64)
        tau = np.asarray(1.0 if time is None else getattr(node, time), np.float64)
        if r.size and tau.size and (r > 0).all() and np.isfinite(r).all() and (tau > 0).all():
            yield tau / r, r


def discretised(
    nodes: Mapping[str, nir.NIRNode], dt: float, gain: Gain | None, notes: list[Note]
) -> dict[str, nir.NIRNode]:
    """Return the nodes as our engines take them: r as in LIF above, and per step in an IF.

    `gain` says what r is: raw, in the differential equation; discrete, the factor of X in one step.
    By default it is raw, in an IF with r = 1 discrete. A CubaLIF without memory in its synapse
    (tau_syn = dt: I = w_in X) becomes a LIF with r w_in.
    Raises: GraphError where r of an IF can be either, and for tau < dt.
    """
    found = {}
    for name, node in nodes.items():
        node = _without_synapse(name, node, dt, notes)
        if isinstance(node, nir.IF):
            node = dataclasses.replace(node, r=_if_gain(name, node, dt, gain, notes))
        elif isinstance(node, nir.LIF | nir.LI):
            node = _leaky(name, node, dt, gain)
        found[name] = node
    return found


def _without_synapse(name: str, node: nir.NIRNode, dt: float, notes: list[Note]) -> nir.NIRNode:
    if not isinstance(node, nir.CubaLIF | nir.CubaLI):
        return node
    if not np.allclose(node.tau_syn, dt, rtol=CLOSE, atol=0):
        return node
    kind: Any = nir.LIF if isinstance(node, nir.CubaLIF) else nir.LI
    shared = {
        field: getattr(node, field)
        for field in ("v_leak", "v_threshold", "v_reset")
        if hasattr(node, field)
    }
    r = np.asarray(node.r, np.float64) * np.asarray(node.w_in, np.float64)
    message = f"{type(node).__name__} with tau_syn = dt keeps no current, read as {kind.__name__}"
    notes.append(Note("synapse", name, message))
    return kind(tau=np.asarray(node.tau_mem, np.float64), r=r, **shared)


def _if_gain(name: str, node: nir.IF, dt: float, gain: Gain | None, notes: list[Note]) -> Any:
    r = np.asarray(node.r, np.float64)
    per_step = np.where(np.isclose(r * dt, 1, rtol=CLOSE, atol=0), 1.0, r * dt)
    if gain is None and (r == 1).all():
        notes.append(Note("gain", name, "r = 1 is read as the factor of one step"))
        return r
    if gain is None and (per_step != 1).any():
        raise GraphError(
            f"{name}: r is {r.flat[0]:g}; as NIR defines an IF that is a factor of "
            f"{r.flat[0] * dt:g} in a step of {dt:g} s; add --gain raw if that is meant, "
            f"--gain discrete if the factor of a step is {r.flat[0]:g}"
        )
    return r if gain == "discrete" else per_step


def _leaky(name: str, node: nir.NIRNode, dt: float, gain: Gain | None) -> nir.NIRNode:
    tau, r = np.asarray(node.tau, np.float64), np.asarray(node.r, np.float64)
    if (tau < dt * (1 - CLOSE)).any():
        raise GraphError(
            f"{name}: tau is {tau.min():g} s, shorter than the step of {dt:g} s, so the neuron "
            "would overshoot; add --dt in the unit of the file's tau"
        )
    if gain == "discrete":
        r = r * tau / dt
    # r = tau / dt in float32 leaves a rest of 1e-8 in tau, and r is the better known of the two.
    tau = np.where(np.isclose(tau, r * dt, rtol=CLOSE / 10, atol=0), r * dt, tau)
    return dataclasses.replace(node, tau=tau, r=r)
