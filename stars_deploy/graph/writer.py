"""Writing a graph so that equal graphs give equal bytes and nothing is lost on the way."""

from __future__ import annotations

import io
from pathlib import Path

import nir

from stars_deploy.errors import GraphError
from stars_deploy.files import write_bytes
from stars_deploy.graph.canonical import canonical, difference
from stars_deploy.graph.groups import expand_groups
from stars_deploy.graph.problems import require_runnable


def write_graph(graph: nir.NIRGraph, path: Path) -> None:
    """Write `graph` as a .nir file, read it back and compare; `path` changes only on success.

    Grouped convolutions are written expanded, because nir cannot type them.
    Raises: GraphError when the graph cannot be run, or not be typed by nir (rectangular kernels).
    """
    require_runnable(graph, path.name)
    written = canonical(expand_groups(graph))
    _require_square_kernels(written)
    # In memory first: the HDF5 library crashes when the disk fills up under it.
    file = io.BytesIO()
    nir.write(file, written)
    different = difference(written, canonical(_typed(file, path)))
    if different:
        raise GraphError(f"{path.name}: {different} changed in the file; please report this")
    write_bytes(path, file.getvalue())


def _typed(file: io.BytesIO, path: Path) -> nir.NIRGraph:
    """Read `file` with the type check of nir, which other readers run first."""
    try:
        return nir.read(file)
    except Exception as problem:  # nir's checks raise whatever they run into
        raise GraphError(
            f"{path.name}: the type check of nir refuses this graph ({problem}); "
            "write grouped or rectangular kernels expanded to square ones"
        ) from None


def _require_square_kernels(graph: nir.NIRGraph) -> None:
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Conv2d) and node.weight.shape[2] != node.weight.shape[3]:
            kernel = "x".join(map(str, node.weight.shape[2:]))
            raise GraphError(
                f"{name}: kernel {kernel}; NIR readers assume square kernels, "
                "pad the shorter side with zeros (and adapt the padding)"
            )
