"""The values between populations: sums of linear paths from the populations before, and a constant.

Every node between two neurons is linear, so its value is a sum over populations of one operator
each applied to their messages, plus what remains when all of them are silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import Shape
from stars_deploy.graph.linear import LinearMap, added, applied, compose, map_of
from stars_deploy.targets.findings import Finding

Reals = NDArray[np.float64]
PATHS = 64  # operators into one population, far above any network that was seen
LARGEST = 1e30  # real weight or bias


@dataclass(frozen=True)
class Path:
    """A linear map from a population, and the nodes that it leads through."""

    source: str
    linear: LinearMap
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """The value of a node: a sum over populations, and a constant (None: zero)."""

    paths: tuple[Path, ...]
    constant: Reals | None = None


class Refused(Exception):
    """What a node computes cannot be expressed; holds the finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def total_of(name: str, values: list[Value]) -> Value:
    """Add the values that feed a node; operators of the same kind become one."""
    paths: list[Path] = []
    constant: Reals | None = None
    for value in values:
        for path in value.paths:
            paths = _joined(paths, path)
        if value.constant is not None:
            constant = value.constant if constant is None else constant + value.constant
    if len(paths) > PATHS:
        message = f"{len(paths)} linear paths lead here, more than {PATHS}"
        remedy = "put a neuron on the paths that many blocks share"
        raise Refused(Finding("paths", "error", name, message, len(paths), PATHS, remedy))
    return Value(tuple(paths), constant)


def _joined(paths: list[Path], path: Path) -> list[Path]:
    for index, other in enumerate(paths):
        linear = added(other.linear, path.linear) if other.source == path.source else None
        if linear is not None:
            merged = Path(path.source, linear, other.nodes)
            return [*paths[:index], merged, *paths[index + 1 :]]
    return [*paths, path]


def through(name: str, node: nir.NIRNode, value: Value, given: Shape, made: Shape) -> Value:
    """Return what a linear node makes of a value."""
    try:
        linear = map_of(name, node, given, made)
    except GraphError as problem:
        raise Refused(Finding("structure", "error", name, str(problem))) from None
    bias = getattr(node, "bias", None)
    _require_magnitudes(name, linear.weight, bias)
    paths = []
    for path in value.paths:
        try:
            composed = compose(path.linear, linear)
        except GraphError as problem:
            raise Refused(inexact(name, path, problem)) from None
        nodes = path.nodes if isinstance(node, nir.Flatten) else (*path.nodes, name)
        paths.append(Path(path.source, composed, nodes))
    constant = None if value.constant is None else applied(linear, value.constant)
    if bias is not None and np.any(bias):
        start = np.zeros(made) if constant is None else constant
        shape = (-1, *(1,) * (len(made) - 1))
        constant = start + np.asarray(bias, np.float64).reshape(shape)
    _require_magnitudes(name, constant, *(path.linear.weight for path in paths))
    return Value(tuple(paths), constant)


def _require_magnitudes(name: str, *values: Reals | None) -> None:
    """Refuse weights and biases whose products and squares would overflow."""
    largest = max((float(np.abs(value).max()) for value in values if value is not None), default=0)
    if largest > LARGEST:
        message = f"weights or biases, with those of the nodes before, reach {largest:g}"
        remedy = "scale the weights between two neurons down"
        raise Refused(Finding("range", "error", name, message, largest, LARGEST, remedy))


def inexact(name: str, path: Path, problem: GraphError) -> Finding:
    """Name the node before, usually a pool, whose windows do not fit."""
    message, _, remedy = str(problem).rpartition("; ")
    before = path.nodes[-1] if path.nodes else path.source
    return Finding(
        code="composition",
        severity="error",
        node=before,
        message=f"cannot be merged into {name}: {message}",
        remedy=remedy,
    )
