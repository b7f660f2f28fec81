"""Reading .nir files that may be broken or hostile."""

from __future__ import annotations

from pathlib import Path

import nir

from stars_deploy.graph.canonical import canonical
from stars_deploy.graph.isolate import inspect, read_nir
from stars_deploy.graph.prescan import LIMIT_BYTES
from stars_deploy.graph.problems import require_runnable


def load_graph(path: Path, limit_bytes: int = LIMIT_BYTES) -> nir.NIRGraph:
    """Return the graph in a .nir file as it is, once the file is known to be harmless.

    For callers that want every finding of a bad graph (graph_problems); others use read_graph.
    Raises: GraphError for a missing, truncated or hostile file, or one nir cannot construct.
    """
    inspect(path, limit_bytes)
    return read_nir(path)


def read_graph(path: Path, limit_bytes: int = LIMIT_BYTES, metadata: bool = True) -> nir.NIRGraph:
    """Return the runnable graph in a .nir file, in canonical form.

    With `metadata` false, a foreign graph without T, mean and std is accepted.
    Raises: GraphError naming every node that keeps the graph from being run.
    """
    graph = load_graph(path, limit_bytes)
    require_runnable(graph, str(path), metadata)
    return canonical(graph)
