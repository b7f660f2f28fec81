"""The reference: the NIR graph itself, executed layer by layer in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy import __version__
from stars_deploy.errors import DataError, EngineError
from stars_deploy.graph.geometry import input_shape, output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import (
    SPIKING,
    output_name,
    sources,
    spiking_nodes,
    targets,
    topological_order,
)
from stars_deploy.graph.problems import require_runnable
from stars_deploy.simulation.neurons import run_neurons
from stars_deploy.simulation.operators import Array, Operator, operator_of
from stars_deploy.simulation.recording import EngineInfo, Recording, Spikes

_CHUNK_BYTES = 256 << 20


class FloatEngine:
    """Executes a NIR graph in float64: every layer for all T steps, then the next layer.

    What comes before the first spiking node is the same at every step and computed once.
    """

    def __init__(self, graph: nir.NIRGraph) -> None:
        """Prepare `graph`; GraphError when it cannot be run."""
        require_runnable(graph, "graph")
        self.info = EngineInfo("float", __version__, "simulated")
        self.nodes: list[str] = spiking_nodes(graph)
        self._metadata = metadata_of(graph)
        self._shapes = output_shapes(graph)
        self._input_shape = input_shape(graph)
        self._order = topological_order(graph)
        self._graph = graph
        self._sources = {name: sources(graph, name) for name in self._order}
        self._uses = {name: len(targets(graph, name)) for name in self._order}
        self._operators: dict[str, Operator] = {
            name: operator_of(name, node)
            for name, node in graph.nodes.items()
            if not isinstance(node, (nir.Input, nir.LI, *SPIKING))
        }

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Run on uint8 images [N, C, H, W]; memory beyond the recording does not grow with N.

        Raises: DataError for images of another shape, EngineError for a feed that does not fit.
        """
        self._check_images(images)
        self._check_feed(feed or {}, len(images))
        parts = [
            self._run_chunk(images[part], {n: s[:, part] for n, s in (feed or {}).items()}, margins)
            for part in self._chunks(len(images))
        ]
        return Recording(
            engine=self.info,
            logits=np.concatenate([part.logits for part in parts]),
            spikes=_join([part.spikes for part in parts], self.nodes),
            margins=_join([part.margins or {} for part in parts], self.nodes) if margins else None,
            outputs=np.concatenate([part.outputs for part in parts if part.outputs is not None], 1),
        )

    def _chunks(self, count: int) -> Iterator[slice]:
        """Slices of images whose layers fit in memory; one empty slice for no images."""
        values = sum(math.prod(shape) for shape in self._shapes.values())
        size = max(1, _CHUNK_BYTES // (8 * values * self._metadata.T))
        for start in range(0, max(count, 1), size):
            yield slice(start, min(start + size, count))

    def _run_chunk(
        self, images: NDArray[np.uint8], feed: Mapping[str, Array], margins: bool
    ) -> Recording:
        values: dict[str, Array] = {}
        spikes: dict[str, Array] = {}
        distances: dict[str, Array] = {}
        waiting = dict(self._uses)
        for name in self._order:
            node = self._graph.nodes[name]
            x = self._sum(name, values) if self._sources[name] else self._normalised(images)
            self._release(name, values, waiting)
            if isinstance(node, (nir.LI, *SPIKING)):
                trace = run_neurons(node, x, self._metadata.T, self._metadata.dt, margins)
                if isinstance(node, SPIKING):
                    spikes[name] = trace.output
                if trace.margins is not None:
                    distances[name] = trace.margins
                x = feed.get(name, trace.output)
            elif name in self._operators:
                x = self._operators[name](x)
            values[name] = x
        outputs = np.asarray(values[output_name(self._graph)], np.float64)
        every_step = np.broadcast_to(outputs, (self._metadata.T, *outputs.shape[1:]))
        logits = outputs.mean(axis=0).astype(np.float32)
        return Recording(self.info, logits, spikes, distances, every_step)

    def _sum(self, name: str, values: Mapping[str, Array]) -> Array:
        """Several edges into a node add up."""
        given = [values[source] for source in self._sources[name]]
        if len(given) == 1:
            return given[0]
        total = np.asarray(given[0], np.float64)
        for other in given[1:]:
            total = total + other
        return total

    def _release(self, name: str, values: dict[str, Array], waiting: dict[str, int]) -> None:
        for source in self._sources[name]:
            waiting[source] -= 1
            if waiting[source] == 0:
                del values[source]

    def _normalised(self, images: NDArray[np.uint8]) -> Array:
        """Return (pixel / 255 - mean) / std as [1, N, C, H, W]."""
        shape = (-1, *(1,) * (len(self._input_shape) - 1))
        mean = np.array(self._metadata.mean).reshape(shape)
        std = np.array(self._metadata.std).reshape(shape)
        normalised: Array = (images / 255.0 - mean) / std
        return normalised[None]

    def _check_images(self, images: NDArray[np.uint8]) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != self._input_shape:
            expected = ", ".join(map(str, self._input_shape))
            raise DataError(
                f"images are {images.dtype} {list(images.shape)}, the graph takes "
                f"uint8 [N, {expected}]; use the data set the graph was trained for"
            )

    def _check_feed(self, feed: Spikes, count: int) -> None:
        for name, spikes in feed.items():
            if name not in self.nodes:
                raise EngineError(f"feed names {name!r}, spiking nodes are {self.nodes}")
            expected = (self._metadata.T, count, *self._shapes[name])
            if spikes.shape != expected:
                raise EngineError(f"feed of {name} has shape {spikes.shape}, expected {expected}")


def _join(parts: list[Mapping[str, Array]], names: list[str]) -> dict[str, Array]:
    """Concatenate chunks of [T, N, ...] over N."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in names}
