"""Grouped convolutions: NIR files hold them expanded, targets want the blocks back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError

Array = NDArray[Any]


def expand_kernel(weight: Array, groups: int) -> Array:
    """Return the dense kernel [O, I, ...] of a grouped one [O, I / groups, ...], zeros between."""
    outputs, inputs = weight.shape[:2]
    if groups < 1 or outputs % groups:
        raise GraphError(f"kernel with {outputs} outputs cannot have {groups} groups")
    dense = np.zeros((outputs, inputs * groups, *weight.shape[2:]), weight.dtype)
    rows = outputs // groups
    for group in range(groups):
        block = slice(group * rows, (group + 1) * rows)
        dense[block, group * inputs : (group + 1) * inputs] = weight[block]
    return dense


def compact_kernel(weight: Array, groups: int) -> Array:
    """Return the kernel [O, I / groups, ...] of a block-diagonal dense one; inverse of expand."""
    rows, columns = weight.shape[0] // groups, weight.shape[1] // groups
    blocks = [
        weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(groups)
    ]
    return np.concatenate(blocks)


def find_groups(weight: Array) -> int:
    """Return the largest number of groups under which kernel [O, I, ...] is block-diagonal."""
    outputs, inputs = weight.shape[:2]
    rows, columns = np.nonzero(weight.reshape(outputs, inputs, -1).any(axis=2))
    most = math.gcd(outputs, inputs)
    for groups in range(most, 1, -1):
        if most % groups == 0 and np.array_equal(
            rows // (outputs // groups), columns // (inputs // groups)
        ):
            return groups
    return 1


def expand_groups(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return `graph` with every grouped convolution written as a dense one; same outputs."""
    nodes = {name: _expanded(node) for name, node in graph.nodes.items()}
    return nir.NIRGraph(nodes, list(graph.edges), metadata=graph.metadata, type_check=False)


def _expanded(node: nir.NIRNode) -> nir.NIRNode:
    if not isinstance(node, nir.Conv1d | nir.Conv2d) or int(node.groups) == 1:
        return node
    weight = expand_kernel(node.weight, int(node.groups))
    return dataclasses.replace(node, weight=weight, groups=1)
