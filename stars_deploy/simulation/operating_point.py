"""Where on the staircase of its neurons each layer of a graph works, on given images.

A neuron at rest fires by step t on a constant current above theta_t, so the share of currents
above each theta_t, the tail, decides what a layer does (STARS, arXiv 2605.27409, Eq. 8 and 9).
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.graph.metadata import metadata_of
from stars_deploy.simulation.reference import FloatEngine

NEURON_STEPS = 20_000_000  # recorded at most: as many images are taken as stay below
BINS = 40
EDGES = (0.001, 0.999)  # quantiles between which the histogram of currents lies

Array = NDArray[Any]


def operating_point(graph: nir.NIRGraph, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Return currents, tails and rates of every spiking layer on uint8 images [N, C, H, W].

    Per layer: `rate`, spikes per neuron and step; `neurons_silent` and `neurons_always`, the shares
    of neurons that fire at no step, and at every step, of all images; `current_mean`,
    `current_sd`, and a histogram of the current, all of its mean over T; `thresholds`, theta_t for
    t = 1..T, None where neurons differ; `tail_mass`, the shares of currents above them, and
    `predicted_rate`, their mean (Eq. 9).
    """
    metadata = metadata_of(graph)
    engine = FloatEngine(graph)
    first = engine.run(images[:1]).spikes
    size = sum(train.size for train in first.values())
    chosen = images[: max(1, NEURON_STEPS // max(size, 1))]
    answer = engine.run(chosen, margins=True)
    layers = [
        {
            "name": name,
            **_layer(graph.nodes[name], train, (answer.margins or {})[name], metadata.dt),
        }
        for name, train in answer.spikes.items()
    ]
    return {
        "images": len(chosen),
        "T": metadata.T,
        "engine": {"name": engine.info.name, "version": engine.info.version},
        "kind": "simulated",
        "layers": layers,
    }


def currents(node: nir.NIRNode, spikes: Array, margins: Array, dt: float) -> Array:
    """Return the current X [T, N, ...] that made neurons fire as they did: the equation, solved.

    margins: H - V_th. LIF: X = (tau (H - V) + V - v_leak) / r; IF: X = (H - V) / r; Threshold:
    X = H, where V is v_reset after a spike and at the start, else the H before.
    """
    if isinstance(node, nir.Threshold):
        return np.asarray(margins + node.threshold, np.float64)
    h = margins + np.asarray(node.v_threshold, np.float64)
    before = np.empty_like(h)
    before[0] = node.v_reset
    before[1:] = np.where(spikes[:-1] > 0, node.v_reset, h[:-1])
    if isinstance(node, nir.IF):
        return np.asarray((h - before) / node.r)
    tau = np.asarray(node.tau, np.float64) / dt
    return np.asarray((tau * (h - before) + before - node.v_leak) / node.r)


def firing_thresholds(node: nir.NIRNode, steps: int, dt: float) -> Array:
    """Return theta_t [T, ...], the constant current above which a neuron at rest fires by step t.

    From V_0 = v_reset, H_t = a^t v_reset + (1 - a^t) (v_leak + r X) with a = 1 - 1/tau; of an IF
    neuron H_t = v_reset + t r X. Source: Eq. 8.
    """
    if isinstance(node, nir.Threshold):
        return np.stack([np.asarray(node.threshold, np.float64)] * steps)
    times = range(1, steps + 1)
    if isinstance(node, nir.IF):
        return np.stack([(node.v_threshold - node.v_reset) / (node.r * t) for t in times])
    kept = [(1 - dt / np.asarray(node.tau, np.float64)) ** t for t in times]
    rows = [((node.v_threshold - a * node.v_reset) / (1 - a) - node.v_leak) / node.r for a in kept]
    return np.stack(rows)


def _layer(node: nir.NIRNode, spikes: Array, margins: Array, dt: float) -> dict[str, Any]:
    steps = len(spikes)
    mean = currents(node, spikes, margins, dt).mean(axis=0)
    levels = firing_thresholds(node, steps, dt)
    tails = [float((mean > level).mean()) for level in levels]
    counts = spikes.sum(axis=(0, 1), dtype=np.int64)
    low, high = np.quantile(mean, EDGES)
    bins, edges = np.histogram(mean, BINS, (float(low), max(float(high), float(low) + 1e-9)))
    alike = all((level == level.flat[0]).all() for level in levels)
    return {
        "neurons": int(counts.size),
        "rate": float(spikes.mean()),
        "neurons_silent": float((counts == 0).mean()),
        "neurons_always": float((counts == steps * spikes.shape[1]).mean()),
        "current_mean": float(mean.mean()),
        "current_sd": float(mean.std()),
        "thresholds": [float(level.flat[0]) for level in levels] if alike else None,
        "tail_mass": tails,
        "predicted_rate": float(np.mean(tails)),
        "histogram": {"from": float(edges[0]), "to": float(edges[-1]), "counts": bins.tolist()},
    }
