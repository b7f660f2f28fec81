"""Everything that keeps a graph from being run, found at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import nir
import numpy as np

from stars_deploy.errors import GraphError
from stars_deploy.graph.geometry import MAX_ELEMENTS, input_shape, output_shapes, window_of
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import SPIKING, input_name, output_name, topological_order

SUPPORTED = (
    nir.Input,
    nir.Output,
    nir.Conv1d,
    nir.Conv2d,
    nir.Affine,
    nir.Linear,
    nir.Scale,
    nir.AvgPool2d,
    nir.SumPool2d,
    nir.Flatten,
    nir.LIF,
    nir.IF,
    nir.LI,
    nir.Threshold,
)
NAME = re.compile(r"[A-Za-z0-9_]+")
_SUBJECT = re.compile(r"(?:cycle |edge )?(\w+)(?: \(\w+\)|(?= ->))?(?:: | ->)")

_REMEDIES = {
    "NIRGraph": "inline the subgraph, prefixing its node names",
    "CubaLIF": "use LIF, or tau_syn = dt, which keeps no current, and retrain or recalibrate",
    "CubaLI": "use LI, or tau_syn = dt, which keeps no current, and retrain or recalibrate",
    "I": "use LI, or IF where it should spike",
    "Delay": "remove the delay: layers are evaluated without transport time",
}
_FIELD_ERRORS = (
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
    IndexError,
    AssertionError,
)
# Fields that hold one array per node, and those of them that must be positive.
_ARRAYS = ("weight", "bias", "scale", "tau", "r", "v_leak", "v_reset", "v_threshold", "threshold")


@dataclass(frozen=True)
class Problem:
    """One reason why a graph cannot be run, tied to a node where there is one."""

    code: str
    node: str | None
    message: str
    remedy: str

    def __str__(self) -> str:
        # What a check raised names its node itself.
        named = self.node is None or self.message.startswith((self.node, "cycle ", "edge "))
        where = "" if named else f"{self.node}: "
        return f"{where}{self.message}; {self.remedy}"


def graph_problems(graph: nir.NIRGraph, metadata: bool = True) -> list[Problem]:
    """Return every problem of `graph`, an empty list if it can be run; never raises.

    With `metadata` false, a foreign graph without T, mean and std is acceptable.
    """
    found = structure_problems(graph)
    if not found:
        found += problem_of("shape", lambda: _check_shapes(graph), graph.nodes)
    if metadata:
        found += problem_of("metadata", lambda: _check_metadata(graph), graph.nodes)
    return found


def structure_problems(graph: nir.NIRGraph) -> list[Problem]:
    """Return the problems of names, edges, node types and values, without looking at shapes."""
    found = [*_structure(graph)]
    for name, node in graph.nodes.items():
        found += _unsupported(name, node) or _values(name, node)
    return found


def require_runnable(graph: nir.NIRGraph, where: str, metadata: bool = True) -> None:
    """Raise GraphError listing the problems of `graph`, prefixed with `where` (a file name)."""
    refuse(graph_problems(graph, metadata), where)


def refuse(problems: Sequence[Problem], where: str) -> None:
    """Raise GraphError listing `problems`, prefixed with `where`; return if there are none."""
    if problems:
        shown = "\n  ".join(str(problem) for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise GraphError(f"{where}: this graph cannot be run:\n  {shown}{more}")


def problem_of(code: str, check: Callable[[], Any], nodes: Container[str]) -> list[Problem]:
    """Run `check`; a GraphError becomes a problem, so that no rule is written twice.

    So does what nir, NumPy and Python say of a field that holds anything but what it should.
    """
    try:
        check()
    except GraphError as problem:
        message, _, remedy = str(problem).rpartition("; ")
        message, remedy = (message, remedy) if message else (remedy, "correct the graph")
        return [Problem(code, _named(message, nodes), message, remedy)]
    except _FIELD_ERRORS as problem:
        message = f"a field holds something else than expected ({problem})"
        return [Problem(code, None, message, "write the fields as NIR defines them")]
    return []


def _named(message: str, nodes: Container[str]) -> str | None:
    """Return the node that a message is about: `name: `, `name (Kind): `, an edge, a cycle."""
    found = _SUBJECT.match(message)
    return found[1] if found and found[1] in nodes else None


def _structure(graph: nir.NIRGraph) -> Iterator[Problem]:
    for name in graph.nodes:
        if not NAME.fullmatch(name):
            yield Problem(
                "name", name, "node name outside [A-Za-z0-9_]+", "rename it: names become files"
            )
    for edge, count in Counter(map(tuple, graph.edges)).items():
        if count > 1:
            yield Problem("edge", edge[0], f"edge to {edge[1]} occurs {count} times", "keep one")
    for check in (input_name, output_name, topological_order):
        yield from problem_of("structure", partial(check, graph), graph.nodes)
    fed = {target for _, target in graph.edges}
    used = {source for source, _ in graph.edges}
    for name, node in graph.nodes.items():
        if name not in fed and not isinstance(node, nir.Input):
            yield Problem("dangling", name, "nothing feeds this node", "connect it or remove it")
        if name not in used and not isinstance(node, nir.Output):
            yield Problem("dangling", name, "feeds nothing", "connect it or remove it")


def _unsupported(name: str, node: nir.NIRNode) -> list[Problem]:
    if isinstance(node, SUPPORTED):
        return []
    kind = type(node).__name__
    known = ", ".join(sorted(t.__name__ for t in SUPPORTED))
    remedy = _REMEDIES.get(kind, f"use {known}")
    return [Problem("unsupported", name, f"node type {kind} is not supported", remedy)]


def _values(name: str, node: nir.NIRNode) -> list[Problem]:
    found = []
    arrays = {field: getattr(node, field) for field in _ARRAYS if hasattr(node, field)}
    for field, value in arrays.items():
        message = _bad_array(value)
        if message:
            found.append(Problem("value", name, f"{field} {message}", "write finite numbers"))
    if found:
        return found
    if "tau" in arrays and (np.asarray(node.tau) <= 0).any():
        message = f"tau is {np.min(node.tau):g}, expected a positive time in seconds"
        found.append(Problem("value", name, message, "write tau in steps times dt"))
    return found + _weights(name, node)


def _bad_array(value: Any) -> str | None:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        return f"has type {array.dtype}, expected numbers"
    if array.size == 0:
        return "is empty"
    if not np.isfinite(array).all():
        return "holds NaN or infinity"
    return None


def _weights(name: str, node: nir.NIRNode) -> list[Problem]:
    if not hasattr(node, "weight"):
        return []
    axes = {nir.Conv1d: 3, nir.Conv2d: 4}.get(type(node), 2)
    if node.weight.ndim != axes:
        message = f"weight has shape {node.weight.shape}, expected {axes} axes"
        return [Problem("shape", name, message, "write one weight array per layer, no batch axis")]
    outputs = node.weight.shape[0]
    found = []
    if hasattr(node, "bias") and np.shape(node.bias) != (outputs,):
        message = f"bias has shape {np.shape(node.bias)}, weight has {outputs} outputs"
        found.append(Problem("shape", name, message, f"write {outputs} bias values"))
    if axes > 2:
        found += problem_of("shape", lambda: window_of(name, node), {name})
        if not _divides(node.groups, outputs):
            message = f"{node.groups!r} groups do not divide {outputs} output channels"
            found.append(Problem("shape", name, message, "write the kernel expanded, groups 1"))
    return found


def _divides(groups: Any, outputs: int) -> bool:
    try:
        return int(groups) >= 1 and outputs % int(groups) == 0
    except (TypeError, ValueError, OverflowError):
        return False


def _check_shapes(graph: nir.NIRGraph) -> None:
    shapes = output_shapes(graph)
    out = shapes[output_name(graph)]
    if len(out) != 1:
        raise GraphError(f"{output_name(graph)}: shape {out}, expected [classes]; add a Flatten")
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    if total > MAX_ELEMENTS:
        raise GraphError(f"graph puts out {total} values per step; the limit is {MAX_ELEMENTS}")
    if not any(isinstance(node, SPIKING) for node in graph.nodes.values()):
        raise GraphError("graph has no spiking node; use LIF or IF nodes after the linear layers")


def _check_metadata(graph: nir.NIRGraph) -> None:
    metadata = metadata_of(graph)
    shape = input_shape(graph)
    if len(metadata.mean) != shape[0]:
        raise GraphError(
            f"graph metadata 'mean' has {len(metadata.mean)} values, the input has {shape[0]} "
            "channels; write one mean and std per channel"
        )
    logits = int(np.prod(graph.nodes[output_name(graph)].output_type["output"]))
    if metadata.classes and len(metadata.classes) != logits:
        raise GraphError(
            f"graph metadata 'classes' has {len(metadata.classes)} names, the output has "
            f"{logits} values; name each of them or write an empty list"
        )
