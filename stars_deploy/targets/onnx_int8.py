"""Weights in eight bits: one scale per output channel, symmetric, rounded to nearest.

    W[o] ~ s[o] q[o],    s[o] = max |W[o]| / 127,    q[o] = round(W[o] / s[o]) in -127..127

Only kernels and matrices are stored so; biases, neuron parameters and all arithmetic stay float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

WEIGHTED = (nir.Conv1d, nir.Conv2d, nir.Affine, nir.Linear)
LARGEST = 127


def quantise_rows(weight: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return q int8 with the shape of `weight` and s float32 [O], O its first axis.

    A channel of zeros gets s = 1.
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scale = (np.where(largest > 0, largest, LARGEST) / LARGEST).astype(np.float32)
    steps = np.rint(weight / scale.astype(np.float64).reshape(-1, *(1,) * (weight.ndim - 1)))
    return np.clip(steps, -LARGEST, LARGEST).astype(np.int8), scale


def with_int8_weights(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` with the weights that the int8 models hold, float32(q) float32(s)."""
    nodes = dict(graph.nodes)
    for name, node in graph.nodes.items():
        if isinstance(node, WEIGHTED):
            q, scale = quantise_rows(np.asarray(node.weight))
            weight = q.astype(np.float32) * scale.reshape(-1, *(1,) * (q.ndim - 1))
            nodes[name] = dataclasses.replace(node, weight=weight)
    return nir.NIRGraph(nodes, list(graph.edges), metadata=graph.metadata, type_check=False)
