"""Who feeds whom: neighbours and execution order of a graph."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict

import nir

from stars_deploy.errors import GraphError

SPIKING = (nir.LIF, nir.IF, nir.Threshold)
STATEFUL = (nir.LIF, nir.IF, nir.LI)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key under which `lif2` comes before `lif10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def sources(graph: nir.NIRGraph, name: str) -> list[str]:
    """Return the nodes whose values are added up as the input of `name`."""
    return sorted((a for a, b in graph.edges if b == name), key=natural)


def targets(graph: nir.NIRGraph, name: str) -> list[str]:
    """Return the nodes that take the value of `name`."""
    return sorted((b for a, b in graph.edges if a == name), key=natural)


def topological_order(graph: nir.NIRGraph) -> list[str]:
    """Return all nodes, sources first; ties by natural name order, so files and memory agree.

    Raises: GraphError naming the nodes of a cycle, or an edge to a node that does not exist.
    """
    following: dict[str, list[str]] = defaultdict(list)
    waiting = dict.fromkeys(graph.nodes, 0)
    for source, target in graph.edges:
        for end in (source, target):
            if end not in waiting:
                raise GraphError(f"edge {source} -> {target}: there is no node {end!r}")
        following[source].append(target)
        waiting[target] += 1
    ready = [(natural(name), name) for name, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = heapq.heappop(ready)[1]
        order.append(name)
        for target in following[name]:
            waiting[target] -= 1
            if waiting[target] == 0:
                heapq.heappush(ready, (natural(target), target))
    if len(order) < len(waiting):
        cycle = " -> ".join(_cycle(following, set(waiting) - set(order)))
        raise GraphError(f"cycle {cycle}: recurrent graphs are not supported; remove one edge")
    return order


def _cycle(following: dict[str, list[str]], stuck: set[str]) -> list[str]:
    """Return one cycle among `stuck`, each of which is on a cycle or fed by one."""
    # Walking backwards always stays on stuck nodes: each still waits for a stuck source.
    before = {b: a for a in sorted(stuck, key=natural) for b in following[a] if b in stuck}
    path = [min(stuck, key=natural)]
    while path.count(path[-1]) == 1:
        path.append(before[path[-1]])
    return path[path.index(path[-1]) :][::-1]


def spiking_nodes(graph: nir.NIRGraph) -> list[str]:
    """Return the nodes that emit spikes, in execution order."""
    return [n for n in topological_order(graph) if isinstance(graph.nodes[n], SPIKING)]


def stateful_nodes(graph: nir.NIRGraph) -> list[str]:
    """Return the nodes that carry a membrane potential, in execution order."""
    return [n for n in topological_order(graph) if isinstance(graph.nodes[n], STATEFUL)]


def input_name(graph: nir.NIRGraph) -> str:
    """Return the name of the only input node; GraphError when there is none or more than one."""
    return _only(graph, nir.Input, "input")


def output_name(graph: nir.NIRGraph) -> str:
    """Return the name of the only output node; GraphError when there is none or more than one."""
    return _only(graph, nir.Output, "output")


def _only(graph: nir.NIRGraph, kind: type, what: str) -> str:
    names: list[str] = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(names) != 1:
        raise GraphError(
            f"graph has {len(names)} {what} nodes ({', '.join(sorted(names)) or 'none'}), "
            f"expected one; keep one image {what} or split the graph"
        )
    return names[0]
